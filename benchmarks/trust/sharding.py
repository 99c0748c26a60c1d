"""Would sharding (FSDP2) save memory? Mask R-CNN R50-FPN, against DistributedDataParallel.

python -m benchmarks.trust.sharding [--size H W] [--images N] [--json FILE]

Two gloo processes on the CPU train three steps of `--images` images each. Of one of them, in MB:
what it keeps between steps (its parameters, gradients and momentum), and the most that its
resident memory rises above that of before the model was built; and the seconds of the last step.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from benchmarks.models.systems import our_model, random_batch
from segdet.engine import create_ddp_model
from segdet.modeling.backbones.resnet import Block
from segdet.modeling.box_head import FastRCNNConvFCHead

PROCESSES = 2
_SPAWN = multiprocessing.get_context("spawn")  # nothing of one measurement is left for the next


def sharded(model: nn.Module) -> nn.Module:
    """Each block of the backbone, and the box head, gathers its weights when it runs."""
    for part in [one for one in model.modules() if isinstance(one, Block | FastRCNNConvFCHead)]:
        fully_shard(part)
    fully_shard(model)
    return model


MODES = {"DistributedDataParallel": create_ddp_model, "FSDP2": sharded}


def resident(what: str) -> float:
    """MB that /proc tells: VmRSS now, VmHWM the most since the last reset."""
    rows = Path("/proc/self/status").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith(what)) / 1024


def kept(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """MB of this process's parameters, gradients and optimizer state."""
    tensors = [one for p in model.parameters() for one in (p, p.grad)]
    tensors += [one for state in optimizer.state.values() for one in state.values()]
    own = [one.to_local() if isinstance(one, DTensor) else one for one in tensors]
    return sum(one.nbytes for one in own if isinstance(one, torch.Tensor)) / 2**20


def measure(mode: str, rank: int, store: str, size: tuple[int, int], images: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES)
    batch = random_batch(size, images, 7, "cpu").ours
    before = resident("VmRSS")
    model = MODES[mode](our_model("Mask R-CNN R50-FPN", "cpu")).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-9, momentum=0.9)
    started = 0.0
    for step in range(3):
        if step == 1:  # building, and the first step's preparations, are left out
            Path("/proc/self/clear_refs").write_text("5")
        dist.barrier()
        started = time.perf_counter()
        optimizer.zero_grad()
        torch.stack(list(model(batch).values())).sum().backward()
        optimizer.step()
    return {
        "mode": mode,
        "kept_mb": kept(model, optimizer),
        "peak_mb": resident("VmHWM") - before,
        "seconds": time.perf_counter() - started,
    }


def process(queue: Any, *args: Any) -> None:
    queue.put(measure(*args))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("H", "W"))
    parser.add_argument("--images", type=int, default=1, help="of each process")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the numbers there, too")
    args = parser.parse_args()
    rows = []
    for mode in MODES:
        queue = _SPAWN.SimpleQueue()
        with tempfile.TemporaryDirectory() as folder:
            store = f"{folder}/store"
            rest = (store, tuple(args.size), args.images)
            runs = [_SPAWN.Process(target=process, args=(queue, mode, r, *rest)) for r in range(2)]
            for run in runs:
                run.start()
            row = max((queue.get() for _ in runs), key=lambda one: one["peak_mb"])
            for run in runs:
                run.join()
        rows.append(row)
        print(
            f"{mode:24} keeps {row['kept_mb']:5.0f} MB, rises to {row['peak_mb']:5.0f} MB, "
            f"{row['seconds']:5.1f} s a step",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
