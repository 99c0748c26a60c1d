"""Training on a SLURM cluster, by submitit: one task for each GPU; where time ends it goes on."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from segdet.engine import train
from segdet.engine.launch import join_others
from segdet.engine.setup import add_project_argument, add_run_arguments, load_config
from segdet.engine.stopping import Stopped
from segdet.errors import ConfigError

_NOTICE = 120  # seconds before the end of its time in which a job saves and is queued again
_MOST_REQUEUES = 1000
_EXAMPLES = """
Examples:
  2 machines of 8 GPUs:   {prog} --partition gpu --num-machines 2 --num-gpus 8 --config-file FILE
  of an account:          {prog} --partition gpu --sbatch account=vision --config-file FILE
  on this machine:        {prog} --local --num-gpus 2 --config-file FILE
"""


def main(argv: list[str]) -> None:
    """Queue a training on a SLURM cluster: the command line of `train`, and what SLURM asks."""
    parser = argparse.ArgumentParser(
        description=main.__doc__,
        epilog=_EXAMPLES.format(prog=sys.argv[0]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--partition", help="where to queue; the cluster's default")
    add("--time", type=int, default=24 * 60, metavar="MINUTES", help="then it is queued again")
    add("--cpus-per-gpu", type=int, default=8, metavar="N", help="for a process and its workers")
    add("--mem-gb", type=float, metavar="GB", help="main memory of each machine")
    add("--sbatch", action="append", default=[], metavar="KEY=VALUE", help="any option of sbatch")
    add("--local", action="store_true", help="run on this machine, at once")
    add_run_arguments(parser)
    add_project_argument(parser)
    args = parser.parse_args(argv)
    cfg = load_config(args)  # a mistake in it shows here, not when the job's turn has come
    job = submit(
        Task(train.run, (args,)),
        Path(cfg.OUTPUT_DIR, "slurm"),
        num_tasks=max(1, args.num_gpus),
        num_machines=args.num_machines,
        has_gpus=cfg.MODEL.DEVICE != "cpu",
        minutes=args.time,
        is_local=args.local,
        mem_gb=args.mem_gb,
        cpus_per_task=args.cpus_per_gpu,
        sbatch=_options(args),
    )
    print(f"job {job.job_id}; its log: {job.paths.stdout}")


def _options(args: argparse.Namespace) -> dict[str, str]:
    options = {"partition": args.partition} if args.partition else {}
    for one in args.sbatch:
        key, equals, value = one.partition("=")
        if not (key and equals):
            raise ConfigError(f"--sbatch takes KEY=VALUE, such as account=vision, not {one!r}")
        options[key.lstrip("-")] = value
    return options


@dataclass(frozen=True)
class Task:
    """What each process of a job calls; submitit pickles it.

    SIGUSR2, which SLURM sends before the job's time ends, lets the run save as SIGTERM does; the
    main process then queues the job again, and it goes on from there. SIGTERM alone (of `scancel`
    or of a preemption after which SLURM queues the job again by itself) lets it save and exit.

    Attributes:
        main_func: importable by name.
        args: of `main_func`.
        restarts: how often the job has been queued again.
    """

    main_func: Callable[..., Any]
    args: tuple[Any, ...]
    restarts: int = 0

    def __call__(self) -> None:
        """Join the other tasks and run."""
        if self.restarts:  # as SLURM says itself; submitit's local executor does not
            os.environ.setdefault("SLURM_RESTART_COUNT", str(self.restarts))
        place = _submitit().helpers.TorchDistributedEnvironment()
        place.export(set_cuda_visible_devices=False, overwrite=True)
        queue_again: Any = signal.getsignal(signal.SIGUSR2)  # submitit's: calls `checkpoint`, exits
        is_over = False

        def note(*_: object) -> None:
            nonlocal is_over
            is_over = True
            signal.raise_signal(signal.SIGTERM)

        signal.signal(signal.SIGTERM, _stop)  # until the training has a handler of its own
        signal.signal(signal.SIGUSR2, note)
        try:
            join_others(self.main_func, self.args)
        except Stopped:
            if place.rank != 0:
                return  # a bad exit code would let SLURM end the main process while it saves
            if not is_over:
                raise
            queue_again(signal.SIGUSR2, None)

    def checkpoint(self) -> Any:
        """For submitit: what the job calls when its turn comes again."""
        return _submitit().helpers.DelayedSubmission(replace(self, restarts=self.restarts + 1))


def _stop(number: int, _: FrameType | None) -> None:
    raise Stopped(number)


def submit(
    task: Task,
    folder: Path,
    *,
    num_tasks: int,
    num_machines: int = 1,
    has_gpus: bool = True,
    minutes: int = 60,
    is_local: bool = False,
    mem_gb: float | None = None,
    cpus_per_task: int | None = None,
    sbatch: Mapping[str, Any] | None = None,
) -> Any:
    """Queue a task.

    Args:
        task: called by every process.
        folder: of the job's script and logs; all machines must see it.
        num_tasks: processes on each machine.
        num_machines: how many.
        has_gpus: whether each process needs a GPU.
        minutes: of a turn.
        is_local: run it on this machine instead.
        mem_gb: main memory of each machine.
        cpus_per_task: cores of each process.
        sbatch: further options, by the names of sbatch.

    Returns:
        submitit's job.

    Raises:
        ConfigError: there is no submitit or no SLURM, or several machines of a local job.
    """
    if is_local and num_machines > 1:
        raise ConfigError(f"--local is one machine, --num-machines is {num_machines}")
    cluster = "local" if is_local else "slurm"
    try:
        executor = _submitit().AutoExecutor(
            folder, cluster=cluster, **{f"{cluster}_max_num_timeout": _MOST_REQUEUES}
        )
    except RuntimeError:  # it finds no srun
        raise ConfigError(
            "there is no srun: submit from a machine of a SLURM cluster, or try it with --local"
        ) from None
    executor.update_parameters(
        name=folder.parent.name,
        nodes=num_machines,
        tasks_per_node=num_tasks,
        gpus_per_node=num_tasks if has_gpus else None,
        cpus_per_task=cpus_per_task,
        mem_gb=mem_gb,
        timeout_min=minutes,
        slurm_signal_delay_s=_NOTICE,
        slurm_srun_args=["--kill-on-bad-exit=1"],
        slurm_additional_parameters={"requeue": True, **(sbatch or {})},
    )
    return executor.submit(task)


def _submitit() -> Any:
    try:
        import submitit.helpers
    except ImportError:
        raise ConfigError("this needs submitit: pip install 'segdet[slurm]'") from None
    return submitit
