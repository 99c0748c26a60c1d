"""The views of an image that test-time augmentation looks at."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from segdet.config.configurable import configurable
from segdet.config.node import CfgNode
from segdet.config.ranges import PositiveInt
from segdet.config.reader import read_section
from segdet.data import transforms as T
from segdet.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TestAugConfig:
    """TEST.AUG: test-time augmentation; defaults are detectron2's."""

    enabled: bool = False
    min_sizes: tuple[PositiveInt, ...] = (400, 500, 600, 700, 800, 900, 1000, 1100, 1200)
    max_size: PositiveInt = 4000
    flip: bool = True

    def __post_init__(self) -> None:
        if not self.min_sizes:
            raise ConfigError("AUG.MIN_SIZES must have a size at least, has none")


class DatasetMapperTTA:
    """Resizes an image to several sizes, and mirrors each.

    `DatasetMapperTTA(cfg)` takes its settings from a config's TEST.AUG.

    Args:
        min_sizes: of the short side, in pixels.
        max_size: bound of the long side.
        flip: mirror each size, too.
    """

    @configurable
    def __init__(self, min_sizes: Sequence[int], max_size: int, flip: bool) -> None:
        self.min_sizes, self.max_size, self.flip = tuple(min_sizes), max_size, flip

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The constructor's arguments from a config."""
        section = read_section(TestAugConfig, cfg, at="TEST.AUG")
        return {
            "min_sizes": section.min_sizes,
            "max_size": section.max_size,
            "flip": section.flip,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> list[dict[str, Any]]:
        """The views of one image.

        Args:
            dataset_dict: `image` (C, H, W), and `height` and `width` of the original.

        Returns:
            Copies of it with another `image`, and `transforms` from the original to that.
        """
        image = np.ascontiguousarray(dataset_dict["image"].permute(1, 2, 0).cpu().numpy())
        original = dataset_dict["height"], dataset_dict["width"]
        before = T.ResizeTransform(*original, *image.shape[:2])
        views = []
        for min_size in self.min_sizes:
            resize = T.ResizeShortestEdge(min_size, self.max_size).get_transform(image)
            resized = resize.apply_image(image)
            flip = T.HFlipTransform(resized.shape[1])
            for moves in ([], [flip])[: 1 + self.flip]:
                transforms = T.TransformList([before, resize, *moves])
                view = T.TransformList(list(moves)).apply_image(resized)
                tensor = torch.from_numpy(np.ascontiguousarray(view.transpose(2, 0, 1)).copy())
                rest = {key: value for key, value in dataset_dict.items() if key != "image"}
                views.append({**copy.deepcopy(rest), "image": tensor, "transforms": transforms})
        return views
