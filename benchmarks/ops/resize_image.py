"""A photo of COCO's size to the short side of the official recipes, against Pillow."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import PIL
import torch
from PIL import Image

from benchmarks.ops.duel import Duel
from segdet import ops

SIZE, NEW_SIZE = (480, 640), (800, 1067)


def duels(device: str) -> Iterator[Duel]:
    if device != "cpu":  # data is prepared on the CPU
        return
    image = torch.randint(0, 256, (*SIZE, 3), dtype=torch.uint8)
    array = image.numpy()
    new_h, new_w = NEW_SIZE

    def by_pillow() -> np.ndarray:
        resized = Image.fromarray(array).resize((new_w, new_h), Image.Resampling.BILINEAR)
        return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))

    yield Duel(
        name=f"resize_image {SIZE[0]}x{SIZE[1]} -> {new_h}x{new_w}, to planes",
        ours=lambda: ops.resize_image(image, new_h, new_w),
        peer=by_pillow,
        peer_name=f"Pillow {PIL.__version__}",
        megabytes=3 * (SIZE[0] * SIZE[1] + new_h * new_w) / 1e6,
        gigaflops=3 * 4 * (SIZE[0] * new_w + new_h * new_w) / 1e9,
    )
