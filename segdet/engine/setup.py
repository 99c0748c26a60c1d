"""What a training script does before it trains: arguments, logs, random state, precision."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from segdet.config import CfgNode, get_cfg
from segdet.config.defaults import check_values
from segdet.engine.output_lock import output_lock
from segdet.projects import load_installed_projects, load_project
from segdet.utils import comm
from segdet.utils.collect_env import collect_env_info
from segdet.utils.env import seed_all_rng
from segdet.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from segdet.utils.logger import setup_logger
from segdet.utils.writing import make_output_folder, write_text_atomically

# Newer torch warns of the old name of the argument.
_SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)

_EXAMPLES = """
Examples:
  one process:       {prog} --config-file FILE
  other settings:    {prog} --config-file FILE MODEL.WEIGHTS weights.pth SOLVER.BASE_LR 0.001
  8 GPUs:            {prog} --config-file FILE --num-gpus 8
  2 machines:        {prog} --config-file FILE --num-gpus 8 --num-machines 2 --machine-rank N
                       --dist-url tcp://HOST:PORT
  under torchrun:    torchrun --nproc-per-node 8 {prog} --config-file FILE
"""


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """The command line of detectron2's training scripts.

    Args:
        epilog: the end of the help text; examples by default.
    """
    parser = argparse.ArgumentParser(
        epilog=epilog or _EXAMPLES.format(prog=sys.argv[0]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_run_arguments(parser)
    add = parser.add_argument
    add("--machine-rank", type=int, default=0, help="which of the machines this is, from 0")
    add("--dist-url", default="auto", help="where the processes meet; auto: one machine")
    return parser


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what to run and on how many devices, however the processes are started."""
    add = parser.add_argument
    add("--config-file", default="", metavar="FILE", help="a YAML config")
    add("--resume", action="store_true", help="continue from the last checkpoint in OUTPUT_DIR")
    add("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, train nothing")
    add("--num-gpus", type=int, default=1, help="processes on each machine")
    add("--num-machines", type=int, default=1)
    add(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="settings that win over the config file's; they come last",
    )


def add_project_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--project`, for commands that read their config by `load_config`."""
    parser.add_argument(
        "--project",
        action="append",
        default=[],
        metavar="FOLDER",
        help="a plug-in, the folder of a Python package; may be given several times",
    )


def load_projects(folders: Iterable[str]) -> None:
    """Load installed projects, then those in these folders."""
    load_installed_projects()
    for folder in folders:
        load_project(folder)


def load_config(args: argparse.Namespace) -> CfgNode:
    """Defaults, below the file, below the command line; frozen.

    Args:
        args: `project` folders are loaded first, after installed projects; `config_file` ("" for
            none) and `opts` follow.
    """
    load_projects(args.project)
    cfg = get_cfg()
    if args.config_file:
        cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    return cfg


def default_setup(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Make OUTPUT_DIR with log.txt and config.yaml in it; seed; set cuDNN and matmul precision.

    Args:
        cfg: the complete config.
        args: `config_file` is logged; with `eval_only` cuDNN tries no algorithms.

    Raises:
        ConfigError: a value that cannot be used; OUTPUT_DIR cannot be written to or is another
            run's.
    """
    settings = check_values(cfg)
    rank = comm.get_rank()
    output = Path(settings.output_dir)
    if comm.is_main_process():
        make_output_folder(output)
        if not getattr(args, "eval_only", False):
            with output_lock(output):  # before the other run's log and config are written to
                pass
    comm.synchronize()
    log = setup_logger(output, distributed_rank=rank).getChild("engine")
    log.info("Process %d of %d; arguments: %s", rank, comm.get_world_size(), args)
    log.info("Environment:\n%s", collect_env_info())
    if comm.is_main_process():
        write_text_atomically(output / "config.yaml", cfg.dump())
        log.info("The complete config is in %s", output / "config.yaml")

    seed_all_rng(None if settings.seed < 0 else settings.seed + rank)
    if not getattr(args, "eval_only", False):
        torch.backends.cudnn.benchmark = settings.cudnn_benchmark
    if precision := settings.float32_precision:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = precision != "highest"


def default_writers(output_dir: str, max_iter: int | None = None) -> list[EventWriter]:
    """Console line, metrics.json and TensorBoard.

    Args:
        output_dir: made if it is not there.
        max_iter: the run's length, for the time left.
    """
    output = Path(output_dir)
    make_output_folder(output)
    return [
        CommonMetricPrinter(max_iter),
        JSONWriter(output / "metrics.json"),
        TensorboardXWriter(output),
    ]


def create_ddp_model(model: nn.Module, *, fp16_compression: bool = False, **kwargs: Any) -> Any:
    """The model in DistributedDataParallel, or itself where there is one process.

    All processes begin with rank 0's parameters and buffers, which may be random, too.

    Args:
        model: on this process's device.
        fp16_compression: send gradients as float16.
        kwargs: of DistributedDataParallel.
    """
    if comm.get_world_size() == 1:
        return model
    kwargs.setdefault("gradient_as_bucket_view", True)  # instead of a copy of every gradient
    if next(model.parameters()).is_cuda:
        kwargs.setdefault("device_ids", [comm.get_local_rank()])
    if not {"broadcast_buffers", "forward_sync_buffers"} & set(kwargs):
        kwargs[_SYNC_BUFFERS] = False
    share_buffers(model)  # older torch leaves them as they are
    ddp = DistributedDataParallel(model, **kwargs)
    if fp16_compression:
        ddp.register_comm_hook(state=None, hook=default_hooks.fp16_compress_hook)
    return ddp


def share_buffers(model: nn.Module) -> None:
    """Give all processes the buffers of rank 0, which are those that checkpoints have."""
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            first = buffer.detach().contiguous()
            dist.broadcast(first, 0)
            buffer.copy_(first)
