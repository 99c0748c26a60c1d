"""Every op on a device against the same op on the CPU: values, gradients, layouts, repetition.

    python -m benchmarks.gpu_check.agreement --device cuda --json output/agreement.json

A difference is the largest one, relative to the largest value of the CPU's result. Each op is
compared in four types; with deterministic algorithms its gradient must come out twice the same, bit
for bit; and a channels-last map must give the same values, channels-last.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segdet import ops

LIMITS = {
    torch.float64: 1e-11,
    torch.float32: 2e-5,
    torch.float16: 2e-3,  # two units in the last place
    torch.bfloat16: 1.6e-2,
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """An op and its inputs."""

    run: Callable[..., Any]  # of the features, then the rest
    features: tuple[Tensor, ...]  # in each of the types
    rest: tuple[Tensor, ...] = ()  # regions, which stay float32 beside narrower features; classes
    differentiable: bool = True  # in all features
    limit: float = 0  # of the difference, where larger than that of the type


def make_cases() -> dict[str, Case]:
    """By the op's folder in csrc/."""
    torch.manual_seed(0)
    maps = torch.randn(2, 16, 50, 68)
    rois = torch.cat([torch.arange(200)[:, None] % 2, boxes_in(200, 272)], dim=1)
    turned = torch.cat([rois[:, :1], rotated_boxes(200, 272)], dim=1)
    boxes, rotated, scores = boxes_in(2000, 500), rotated_boxes(2000, 500), torch.rand(2000)
    classes = torch.randint(5, (2000,))
    offset = torch.randn(2, 2 * 2 * 9, 50, 68) * 2  # two groups of 3 x 3 taps
    strength = torch.rand(2, 2 * 9, 50, 68)
    weight, bias = torch.randn(8, 16, 3, 3) / 12, torch.randn(8)
    masks, places = torch.rand(50, 28, 28), boxes_in(50, 500)
    cases: dict[str, Case] = {}

    def add(op: str, run: Callable[..., Any], *features: Tensor, **options: Any) -> None:
        cases[op] = Case(run=run, features=features, **options)

    add("roi_align", lambda f, r: ops.roi_align(f, r, 7, 0.25), maps, rest=(rois,))

    def roi_align_rotated(maps: Tensor, rois: Tensor) -> Tensor:
        return ops.roi_align_rotated(maps, rois, 7, 0.25)

    add("roi_align_rotated", roi_align_rotated, maps, rest=(turned,))
    add("ps_roi_align", lambda f, r: ops.ps_roi_align(f, r, 2, 0.25), maps, rest=(rois,))
    add("ps_roi_pool", lambda f, r: ops.ps_roi_pool(f, r, 2, 0.25), maps, rest=(rois,))

    add("point_sample", lambda f, p: ops.point_sample(f, p), maps, torch.rand(2, 500, 2))

    def deform_conv(f: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, s: Tensor) -> Tensor:
        return ops.deform_conv2d(f, offset, weight, bias, padding=1, mask=s)

    add("deform_conv", deform_conv, maps, offset, weight, bias, strength)

    fixed = {"differentiable": False}

    def nms(boxes: Tensor, scores: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        return ops.nms(boxes, scores, 0.5), ops.batched_nms(boxes, scores, classes, 0.5)

    def nms_rotated(boxes: Tensor, scores: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        every = ops.nms_rotated(boxes, scores, 0.5)
        return every, ops.batched_nms_rotated(boxes, scores, classes, 0.5)

    add("nms", nms, boxes, scores, rest=(classes,), **fixed)
    add("nms_rotated", nms_rotated, rotated, scores, rest=(classes,), **fixed)

    def soft_nms(boxes: Tensor, scores: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        return ops.soft_nms(boxes, scores, idxs=classes)

    def matrix_nms(scores: Tensor, masks: Tensor, classes: Tensor) -> Tensor:
        return ops.matrix_nms(masks, scores, classes)

    shapes = ops.paste_masks(masks, places, (400, 600))
    add("soft_nms", soft_nms, boxes, scores, rest=(classes,), **fixed)
    add("fast_nms", lambda b, s: ops.fast_nms(b, s, 0.5), boxes, torch.rand(3, 2000), **fixed)
    add("matrix_nms", matrix_nms, scores[:50], rest=(shapes, classes[:50]), **fixed)
    add("box_iou_rotated", ops.box_iou_rotated, rotated[:300], rotated[300:700], **fixed)

    def paste_masks(masks: Tensor, boxes: Tensor) -> Tensor:
        return ops.paste_masks(masks, boxes, (400, 600), -1)

    # Rounded down to whole numbers up to 255.
    add("paste_masks", paste_masks, masks, rest=(places,), limit=1.01 / 255, **fixed)
    return cases


def boxes_in(n: int, side: float) -> Tensor:
    """(n, 4) XYXY: corners in a square of that side, extents up to a third of it."""
    corner = torch.rand(n, 2) * side
    return torch.cat([corner, corner + torch.rand(n, 2) * side / 3], dim=1)


def rotated_boxes(n: int, side: float) -> Tensor:
    """(n, 5): centre, size, degrees."""
    place, size = torch.rand(n, 2) * side, torch.rand(n, 2) * side / 3
    return torch.cat([place, size, torch.rand(n, 1) * 360], dim=1)


def results(
    case: Case, dtype: torch.dtype, device: str, layout: torch.memory_format
) -> tuple[list[Tensor], list[Tensor]]:
    """What the op returns, and the gradients of its features."""
    region_type = torch.float64 if dtype == torch.float64 else torch.float32
    features = [
        one.to(device, dtype, memory_format=layout if one.dim() == 4 else torch.contiguous_format)
        for one in case.features
    ]
    features = [one.requires_grad_(case.differentiable) for one in features]
    rest = [one.to(device, region_type if one.is_floating_point() else None) for one in case.rest]
    out = case.run(*features, *rest)
    if not case.differentiable:
        return list(out) if isinstance(out, tuple) else [out], []
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    grads = torch.autograd.grad(out, features, grad.to(device, dtype))
    return [out.detach()], list(grads)


def difference(ours: list[Tensor], reference: list[Tensor]) -> float:
    """The largest, relative to the largest value; infinite where shapes or NaNs differ."""
    largest = 0.0
    for a, b in zip(ours, reference, strict=True):
        a, b = a.cpu().double(), b.cpu().double()
        if a.shape != b.shape or not torch.equal(a.isnan(), b.isnan()):
            return math.inf
        a, b = a.nan_to_num(), b.nan_to_num()
        if a.numel():
            scale = max(b.abs().max().item(), torch.finfo(torch.float64).tiny)
            largest = max(largest, (a - b).abs().max().item() / scale)
    return largest


def compare(name: str, case: Case, device: str) -> list[dict[str, Any]]:
    """The rows of one op."""
    rows: list[dict[str, Any]] = []

    def add(check: str, found: float, limit: float) -> None:
        row = {"op": name, "check": check, "difference": found, "limit": limit}
        rows.append({**row, "ok": found <= limit})

    for dtype, least in LIMITS.items():
        limit = max(least, case.limit)
        kind = str(dtype).removeprefix("torch.")
        reference = results(case, dtype, "cpu", torch.contiguous_format)
        ours = results(case, dtype, device, torch.contiguous_format)
        add(f"values {kind}", difference(ours[0], reference[0]), limit)
        if not case.differentiable:
            continue
        add(f"gradients {kind}", difference(ours[1], reference[1]), limit)
        last = results(case, dtype, device, torch.channels_last)
        add(f"channels-last {kind}", difference(last[0] + last[1], ours[0] + ours[1]), limit)
        (out,) = last[0]
        if out.dim() == 4:
            strays = not out.is_contiguous(memory_format=torch.channels_last)
            add(f"channels-last stays {kind}", float(strays), 0)
        torch.use_deterministic_algorithms(True)
        try:
            first, second = (
                results(case, dtype, device, torch.contiguous_format)[1] for _ in range(2)
            )
        finally:
            torch.use_deterministic_algorithms(False)
        repeats = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        add(f"deterministic gradients repeat {kind}", float(not repeats), 0)
        add(f"deterministic gradients {kind}", difference(first, reference[1]), limit)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    args = parser.parse_args()
    if args.device not in ops.BINARY_DEVICES:
        raise SystemExit(f"the ops are not compiled for {args.device}: pip install -e .")
    rows: list[dict[str, Any]] = []
    for name, case in make_cases().items():
        try:
            rows += compare(name, case, args.device)
        except RuntimeError as error:  # torch's for every refusal
            rows.append(
                {"op": name, "check": f"{error}"[:200], "difference": math.inf, "ok": False}
            )
        if args.json:
            args.json.write_text(json.dumps(rows, indent=2) + "\n")
    for row in rows:
        verdict = "ok" if row["ok"] else "FAILED"
        print(f"{verdict:<7} {row['op']:<16} {row['check']:<38} {row['difference']:.1e}")
    return 0 if all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
