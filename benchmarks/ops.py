"""Our ops against torchvision's, in one process and on the same inputs.

    python -m benchmarks.ops --json output/ops.json --threads 2 --filter roi_align

`limit_s` is the roofline: the larger of bytes / copy bandwidth and operations / matrix-product
rate, both measured here with the same number of threads. It counts every array once, 8 operations
per bilinear sample and channel, and 12 per pair of boxes (kept * N / 2 pairs).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import Tensor
from tqdm import tqdm

from segdet import ops

CHANNELS, HEIGHT, WIDTH, STRIDE = 256, 200, 304, 4  # the p2 level of an 800 x 1216 image


@dataclass(frozen=True, kw_only=True)
class Duel:
    """One line of the table: the same work done by us and by the peer."""

    name: str
    ours: Callable[[], object]
    peer: Callable[[], object]
    megabytes: float
    gigaflops: float


def random_rois(n: int, device: str) -> Tensor:
    """(n, 5) in one image: sides of 16 to 400 pixels, log-uniform, clipped to the image."""
    size = torch.tensor([WIDTH * STRIDE, HEIGHT * STRIDE], dtype=torch.float32)
    side = torch.exp(torch.rand(n, 2) * math.log(400 / 16)) * 16
    centre = torch.rand(n, 2) * size
    low, high = (centre - side / 2).clamp(min=0), torch.minimum(centre + side / 2, size)
    return torch.cat([torch.zeros(n, 1), low, high], dim=1).to(device)


def heaped_boxes(n: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (n, 4) in heaps of 20 around one object each, scores (n,), classes (n,) of 80."""
    centre = (torch.rand(n // 20, 2) * 1000).repeat_interleave(20, dim=0) + torch.randn(n, 2) * 8
    side = torch.rand(n, 2) * 60 + 40
    boxes = torch.cat([centre - side / 2, centre + side / 2], dim=1)
    return boxes.to(device), torch.rand(n).to(device), torch.randint(80, (n,)).to(device)


def roi_align_duels(device: str) -> Iterator[Duel]:
    """512 regions of one feature map, forward and backward."""
    maps = torch.randn(1, CHANNELS, HEIGHT, WIDTH, device=device)
    rois = random_rois(512, device)
    for bins in (7, 14):
        for ratio in (0, 2):
            args = (rois, bins, 1 / STRIDE, ratio, True)
            side = (rois[:, 3:] - rois[:, 1:3]) / STRIDE / bins  # of a bin, in cells
            samples = side.ceil() if ratio == 0 else torch.full_like(side, ratio)
            flops = 8 * CHANNELS * bins**2 * samples.prod(1).sum().item()
            pooled_bytes = 4 * len(rois) * CHANNELS * bins**2
            map_bytes = 4 * maps.numel()
            yield Duel(
                name=f"roi_align fwd {bins}x{bins} sampling {ratio}",
                ours=lambda args=args: ops.roi_align(maps, *args),
                peer=lambda args=args: torchvision.ops.roi_align(maps, *args),
                megabytes=(map_bytes + pooled_bytes) / 1e6,
                gigaflops=flops / 1e9,
            )
            yield Duel(
                name=f"roi_align bwd {bins}x{bins} sampling {ratio}",
                ours=backward_of(ops.roi_align, maps, args),
                peer=backward_of(torchvision.ops.roi_align, maps, args),
                megabytes=(2 * map_bytes + pooled_bytes) / 1e6,
                gigaflops=flops / 1e9,
            )


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


def nms_duels(device: str) -> Iterator[Duel]:
    """All boxes together, and class by class."""
    for n in (1000, 5000, 20000):
        boxes, scores, classes = heaped_boxes(n, device)
        kept = len(ops.nms(boxes, scores, 0.5))
        yield Duel(
            name=f"nms N={n} (kept {kept})",
            ours=lambda args=(boxes, scores, 0.5): ops.nms(*args),
            peer=lambda args=(boxes, scores, 0.5): torchvision.ops.nms(*args),
            megabytes=20 * n / 1e6,
            gigaflops=12 * kept * n / 2 / 1e9,
        )
        args = (boxes, scores, classes, 0.5)
        kept = len(ops.batched_nms(*args))
        yield Duel(
            name=f"batched_nms N={n} 80 classes (kept {kept})",
            ours=lambda args=args: ops.batched_nms(*args),
            peer=lambda args=args: torchvision.ops.batched_nms(*args),
            megabytes=28 * n / 1e6,
            gigaflops=12 * kept * n / 80 / 2 / 1e9,
        )


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


def main() -> None:
    parser = argparse.ArgumentParser(description="Our ops against torchvision's.")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--filter", default="", metavar="WORD", help="only rows that contain it")
    args = parser.parse_args()
    if args.device not in ops.BINARY_DEVICES:
        raise SystemExit(f"the ops are not compiled for {args.device}: pip install -e .")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    bandwidth, flops = machine_rates(args.device)
    print(f"{args.device}, {args.threads} threads: copy {bandwidth:.1f} GB/s, {flops:.0f} GFLOP/s")
    duels = [*roi_align_duels(args.device), *nms_duels(args.device)]
    rows = []
    for duel in tqdm([duel for duel in duels if args.filter in duel.name], unit="op"):
        ours, peer = medians([duel.ours, duel.peer], args.device)
        limit = max(duel.megabytes / 1e3 / bandwidth, duel.gigaflops / flops)
        rows.append(
            {
                "name": duel.name,
                "ours_s": ours,
                "peer": f"torchvision {torchvision.__version__}",
                "peer_s": peer,
                "ratio": peer / ours,
                "limit_s": limit,
            }
        )
    print(f"{'op':<44} {'ours ms':>9} {'peer ms':>9} {'ratio':>6} {'limit ms':>9}")
    for row in rows:
        times = [row[key] * 1e3 for key in ("ours_s", "peer_s", "limit_s")]
        print(
            f"{row['name']:<44} {times[0]:9.3f} {times[1]:9.3f} {row['ratio']:6.1f} {times[2]:9.3f}"
        )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
