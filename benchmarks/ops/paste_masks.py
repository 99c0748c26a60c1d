"""100 masks of boxes on one image, against sampling each box's window on a grid."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ops.duel import Duel
from segdet import ops

COUNT, SIDE, HEIGHT, WIDTH = 100, 28, 800, 1200


def random_boxes(device: str) -> Tensor:
    """(COUNT, 4): sides of 20 to 600 pixels, clipped to the image."""
    size = torch.tensor([WIDTH, HEIGHT], dtype=torch.float32)
    side = torch.rand(COUNT, 2) * 580 + 20
    centre = torch.rand(COUNT, 2) * size
    low, high = (centre - side / 2).clamp(min=0), torch.minimum(centre + side / 2, size)
    return torch.cat([low, high], dim=1).to(device)


def sampled(masks: Tensor, boxes: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Masks (n, M, M) at the pixels that rows and columns cross, by torch's grid sampling."""
    x = (columns + 0.5 - boxes[:, :1]) / (boxes[:, 2:3] - boxes[:, :1]) * 2 - 1
    y = (rows + 0.5 - boxes[:, 1:2]) / (boxes[:, 3:] - boxes[:, 1:2]) * 2 - 1
    shape = len(masks), len(rows), len(columns)
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=3)
    return F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]


def paste_by_grid(masks: Tensor, boxes: Tensor, threshold: float = 0.5) -> Tensor:
    """detectron2's way: on the CPU mask by mask and only where the box is."""
    image = torch.zeros(COUNT, HEIGHT, WIDTH, dtype=torch.bool, device=masks.device)
    if masks.device.type != "cpu":
        rows, columns = (torch.arange(n, device=masks.device) for n in (HEIGHT, WIDTH))
        return sampled(masks, boxes, rows, columns) >= threshold
    for i in range(COUNT):
        part = slice(i, i + 1)
        x0, y0 = (int(v) for v in (boxes[i, :2].floor() - 1).clamp(min=0))
        x1, y1 = (int(v) for v in boxes[i, 2:].ceil() + 1)
        x1, y1 = min(x1, WIDTH), min(y1, HEIGHT)
        window = sampled(masks[part], boxes[part], torch.arange(y0, y1), torch.arange(x0, x1))
        image[i, y0:y1, x0:x1] = window[0] >= threshold
    return image


def duels(device: str) -> Iterator[Duel]:
    masks, boxes = torch.rand(COUNT, SIDE, SIDE, device=device), random_boxes(device)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1).sum().item()
    for name, threshold in (("", 0.5), (" as bytes", -1.0)):
        yield Duel(
            name=f"paste_masks {COUNT} of {SIDE}x{SIDE} -> {HEIGHT}x{WIDTH}{name}",
            ours=lambda threshold=threshold: ops.paste_masks(
                masks, boxes, (HEIGHT, WIDTH), threshold
            ),
            peer=lambda: paste_by_grid(masks, boxes),
            peer_name="grid_sample",
            megabytes=COUNT * HEIGHT * WIDTH / 1e6,
            gigaflops=8 * area / 1e9,
        )
