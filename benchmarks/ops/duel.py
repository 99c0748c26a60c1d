"""One line of the table: the same work done by us and by the peer, and how both are timed."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Duel:
    """One line of the table: the same work done by us and by the peer."""

    name: str
    ours: Callable[[], object]
    peer: Callable[[], object]
    megabytes: float  # of all arrays, each once
    gigaflops: float
    peer_name: str = f"torchvision {torchvision.__version__}"


def backward_of(op: Callable[..., Tensor], maps: Tensor, args: tuple) -> Callable[[], object]:
    """The gradient alone; the forward is done once, when it is first asked for."""
    leaf = maps.detach().requires_grad_()
    graph: list[tuple[Tensor, Tensor]] = []

    def run() -> object:
        if not graph:
            out = op(leaf, *args)
            graph.append((out, torch.randn_like(out)))
        return torch.autograd.grad(graph[0][0], leaf, graph[0][1], retain_graph=True)

    return run


def seconds(run: Callable[[], object], device: str) -> float:
    """Wall time of one call."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def medians(runs: list[Callable[[], object]], device: str) -> list[float]:
    """Median wall time of each, called in turn: at least 5 times, for about 3 seconds."""
    times: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    end = time.perf_counter() + 3
    while len(times[0]) < 5 or (time.perf_counter() < end and len(times[0]) < 50):
        for run, seen in zip(runs, times, strict=True):
            seen.append(seconds(run, device))
    return [statistics.median(seen) for seen in times]


def machine_rates(device: str) -> tuple[float, float]:
    """Copy bandwidth (read and written) in GB/s and float32 matrix products in GFLOP/s."""
    source = torch.randn(64 * 2**20, device=device)
    target = torch.empty_like(source)
    square = torch.randn(2048, 2048, device=device)
    copy, product = medians([lambda: target.copy_(source), lambda: square @ square], device)
    return 2 * 4 * source.numel() / copy / 1e9, 2 * 2048**3 / product / 1e9


def compare(duel: Duel, device: str, rates: tuple[float, float]) -> dict[str, Any]:
    """The row of a duel; `rates` are `machine_rates`."""
    ours, peer = medians([duel.ours, duel.peer], device)
    return {
        "name": duel.name,
        "ours_s": ours,
        "peer": duel.peer_name,
        "peer_s": peer,
        "ratio": peer / ours,
        "limit_s": max(duel.megabytes / 1e3 / rates[0], duel.gigaflops / rates[1]),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print rows as a table."""
    width = max((len(row["name"]) for row in rows), default=0)
    print(f"{'':<{width}} {'ours ms':>9} {'peer ms':>9} {'ratio':>6} {'limit ms':>9}")
    for row in rows:
        times = [_milliseconds(row.get(key)) for key in ("ours_s", "peer_s", "limit_s")]
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.1f}"
        print(f"{row['name']:<{width}} {times[0]} {times[1]} {ratio:>6} {times[2]}")


def _milliseconds(time: float | None) -> str:
    return f"{'' if time is None else f'{time * 1e3:.3f}':>9}"


def write(rows: list[dict[str, Any]], file: Path | None) -> None:
    """Write rows as JSON; after each row, so that those there are outlive an interruption."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(rows, indent=2) + "\n")
