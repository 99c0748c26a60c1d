from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class ImageList:
    """Images of different sizes in one padded tensor.

    Attributes:
        tensor: (B, H, W) or (B, C, H, W); each image lies in the top left corner.
        image_sizes: (height, width) of each image before padding.
    """

    def __init__(self, tensor: Tensor, image_sizes: Sequence[tuple[int, int]]) -> None:
        self.tensor = tensor
        self.image_sizes = [(int(h), int(w)) for h, w in image_sizes]

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, idx: int) -> Tensor:
        """The image without its padding, (H, W) or (C, H, W)."""
        h, w = self.image_sizes[idx]
        return self.tensor[idx, ..., :h, :w]

    def to(self, *args: Any, **kwargs: Any) -> ImageList:
        """The same images on a device or in a dtype; arguments of `Tensor.to`."""
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)

    @property
    def device(self) -> torch.device:
        """Where `tensor` is."""
        return self.tensor.device

    @staticmethod
    def from_tensors(
        tensors: Sequence[Tensor],
        size_divisibility: int = 0,
        pad_value: float = 0.0,
        padding_constraints: Mapping[str, int] | None = None,
    ) -> ImageList:
        """Pad images to one size, at the right and the bottom.

        Args:
            tensors: (H, W) or (C, H, W) each, alike but for H and W.
            size_divisibility: the padded height and width are multiples of it; 0 and 1
                demand nothing.
            pad_value: what the padding holds.
            padding_constraints: a backbone's wishes. "size_divisibility" goes before the
                argument; "square_size", where > 0, is the padded height and width.

        Raises:
            ValueError: no image, different channels, or an image above "square_size".
        """
        if not tensors:
            raise ValueError("ImageList.from_tensors needs at least one image")
        for index, image in enumerate(tensors):
            if image.ndim < 2 or image.shape[:-2] != tensors[0].shape[:-2]:
                raise ValueError(
                    f"image {index} has shape {tuple(image.shape)}, which does not go with "
                    f"image 0 of shape {tuple(tensors[0].shape)}"
                )
        constraints = padding_constraints or {}
        sizes = [(image.shape[-2], image.shape[-1]) for image in tensors]
        height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
        square = constraints.get("square_size", 0)
        if square > 0:
            if max(height, width) > square:
                raise ValueError(
                    f"an image of {height} x {width} does not fit into square_size {square}"
                )
            height = width = square
        multiple = max(constraints.get("size_divisibility", size_divisibility), 1)
        height, width = -(-height // multiple) * multiple, -(-width // multiple) * multiple

        shape = (len(tensors), *tensors[0].shape[:-2], height, width)
        batch = tensors[0].new_full(shape, pad_value)
        for index, (h, w) in enumerate(sizes):
            batch[index, ..., :h, :w] = tensors[index]
        return ImageList(batch, sizes)
