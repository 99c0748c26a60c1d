"""Our ops against torchvision's, in one process and on the same inputs.

    python -m benchmarks.ops --json output/ops.json --threads 2 --filter roi_align

`limit_s` is the roofline: the larger of bytes / copy bandwidth and operations / matrix-product
rate, both measured here with the same number of threads. It counts every array once, 8 operations
per bilinear sample and channel, 12 per pair of boxes (kept * N / 2 pairs), and 2 per multiplication
of a convolution, whose gradients need two of its size.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.ops import (
    box_iou_rotated,
    deform_conv,
    fast_nms,
    matrix_nms,
    nms,
    nms_rotated,
    paste_masks,
    point_sample,
    ps_roi_align,
    ps_roi_pool,
    resize_image,
    roi_align,
    roi_align_rotated,
    soft_nms,
    winograd_conv,
)
from benchmarks.ops.duel import compare, machine_rates, show, write
from segdet import ops

# Each has duels(device).
OPS = [
    roi_align,
    nms,
    deform_conv,
    paste_masks,
    nms_rotated,
    box_iou_rotated,
    ps_roi_pool,
    ps_roi_align,
    soft_nms,
    fast_nms,
    matrix_nms,
    roi_align_rotated,
    point_sample,
    winograd_conv,
    resize_image,
]


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
    duels = [duel for op in OPS for duel in op.duels(args.device)]
    rows = []
    for duel in tqdm([duel for duel in duels if args.filter in duel.name], unit="op"):
        rows.append(compare(duel, args.device, (bandwidth, flops)))
        write(rows, args.json)
    show(rows)


if __name__ == "__main__":
    main()
