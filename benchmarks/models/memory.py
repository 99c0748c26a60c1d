"""The most memory that a process takes which trains or predicts; each in a process of its own."""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import systems

STEPS = 4
PEER = "torchvision"
WORKS = {"inference": 1, "training step": 1, "training step of 2 images": 2}


def rows(threads: int, wanted: Callable[[str], bool]) -> Iterator[dict[str, Any]]:
    """A row for each system and work: resident MiB of the process, and of torchvision's."""
    for system, official in systems.SYSTEMS.items():
        side = official.side
        for work, batch in WORKS.items():
            size = (side, side) if side else (480, 640)
            name = f"memory of {system} {size[1]}x{size[0]} {work}"
            if not wanted(name):
                continue
            train = work != "inference"
            ours = _measured(system, train, batch, size, threads)
            peer = _measured(PEER, train, batch, size, threads)
            yield {
                "name": name,
                "ours_s": None,
                "peer": "torchvision's Mask R-CNN R50-FPN",
                "peer_s": None,
                "ratio": None,
                "ours_mib": ours["peak"],
                "ours_imports_mib": ours["imports"],
                "peer_mib": peer["peak"],
                "peer_imports_mib": peer["imports"],
                "system": system,
                "work": work,
                "batch": batch,
            }


@functools.lru_cache
def _measured(
    model: str, train: bool, batch: int, size: tuple[int, int], threads: int
) -> dict[str, float]:
    ask = {"model": model, "train": train, "batch": batch, "size": size}
    command = [sys.executable, "-m", "benchmarks.models.memory", json.dumps(ask)]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    out = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    return json.loads(out.splitlines()[-1])


def _resident() -> float:
    """The most MiB that this process has had."""
    if sys.platform == "linux":  # where `ru_maxrss` begins with that of the parent
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def main() -> None:
    """What a child process does."""
    parser = argparse.ArgumentParser()
    parser.add_argument("ask", type=json.loads)
    ask = parser.parse_args().ask
    torch.manual_seed(0)
    imports, size = _resident(), tuple(ask["size"])
    batch = systems.random_batch(size, ask["batch"], 7, "cpu")
    if ask["model"] == PEER:
        model = systems.torchvision_model("cpu", size)
        inputs = (batch.images, batch.targets)[: 1 + ask["train"]]
    else:
        model, inputs = systems.our_model(ask["model"], "cpu"), (batch.ours,)
    run = systems.training_step if ask["train"] else systems.predicted
    step = run(model, *inputs)
    for _ in range(STEPS):
        step()
    print(json.dumps({"peak": _resident(), "imports": imports}))


if __name__ == "__main__":
    main()
