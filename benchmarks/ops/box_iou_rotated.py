"""Every pair of rotated boxes, against shapely's polygons (GEOS, on the CPU, one thread)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import shapely
import torch
from torch import Tensor

from benchmarks.ops.duel import Duel
from segdet import ops


def heaped_rotated_boxes(n: int) -> Tensor:
    """Boxes (n, 5) in heaps of 20 around one object each, at any angle."""
    centre = (torch.rand(n // 20, 2) * 1000).repeat_interleave(20, dim=0) + torch.randn(n, 2) * 8
    return torch.cat([centre, torch.rand(n, 2) * 60 + 40, torch.rand(n, 1) * 360], dim=1)


def shapely_iou(boxes1: Tensor, boxes2: Tensor) -> np.ndarray:
    """The same (N, M), by way of polygons."""
    a, b = _polygons(boxes1)[:, None], _polygons(boxes2)[None]
    inter = shapely.area(shapely.intersection(a, b))
    return inter / (shapely.area(a) + shapely.area(b) - inter)


def _polygons(boxes: Tensor) -> np.ndarray:
    x, y, w, h, degrees = boxes.double().numpy().T[..., None]  # each (N, 1)
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    u, v = w * np.array([-0.5, 0.5, 0.5, -0.5]), h * np.array([-0.5, -0.5, 0.5, 0.5])
    corners = np.stack([x + u * cos + v * sin, y + v * cos - u * sin], -1)  # (N, 4, 2)
    return np.asarray(shapely.polygons(corners))


def duels(device: str) -> Iterator[Duel]:
    boxes = heaped_rotated_boxes(300)
    args = (boxes.to(device), boxes.to(device))
    yield Duel(
        name=f"box_iou_rotated {len(boxes)}x{len(boxes)}",
        ours=lambda: ops.box_iou_rotated(*args),
        peer=lambda: shapely_iou(boxes, boxes),
        peer_name=f"shapely {shapely.__version__}",
        megabytes=4 * (len(boxes) ** 2 + 10 * len(boxes)) / 1e6,
        gigaflops=12 * len(boxes) ** 2 / 1e9,
    )
