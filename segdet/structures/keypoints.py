from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segdet.structures.boxes import Index


class Keypoints:
    """The keypoints of each object.

    Attributes:
        tensor: (N, K, 3) float32: x and y in absolute pixels, and visibility: 0 not labelled,
            1 labelled but hidden, 2 visible.
    """

    tensor: Tensor

    def __init__(self, keypoints: Tensor | np.ndarray[Any, Any] | Sequence[Any]) -> None:
        if not isinstance(keypoints, Tensor):
            keypoints = torch.as_tensor(np.asarray(keypoints, np.float32))
        elif keypoints.dtype != torch.float64:
            keypoints = keypoints.to(torch.float32)
        if keypoints.ndim != 3 or keypoints.shape[2] != 3:
            raise ValueError(f"Keypoints takes an (N, K, 3) tensor, got {tuple(keypoints.shape)}")
        self.tensor = keypoints

    def to(self, *args: Any, **kwargs: Any) -> Keypoints:
        """The keypoints on a device; arguments of `Tensor.to`."""
        return Keypoints(self.tensor.to(*args, **kwargs))

    @property
    def device(self) -> torch.device:
        """Where `tensor` is."""
        return self.tensor.device

    def __getitem__(self, item: Index) -> Keypoints:
        """The objects at an int (as one object), a slice, or an int64 or bool tensor."""
        return Keypoints(self.tensor[item][None] if isinstance(item, int) else self.tensor[item])

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __repr__(self) -> str:
        return f"Keypoints(num_instances={len(self)})"

    @staticmethod
    def cat(keypoints_list: Sequence[Keypoints]) -> Keypoints:
        """One Keypoints of all, in order."""
        return Keypoints(torch.cat([keypoints.tensor for keypoints in keypoints_list]))
