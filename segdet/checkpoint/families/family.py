"""What a family of weight files is: a program's own names for the parameters of our models."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


def _nothing(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Family:
    """A kind of weight file with names of its own.

    Attributes:
        title: what messages call it.
        recognises: told the file's names that the model does not have, whether they are of it.
        official_name: the official name, perhaps without a prefix such as "backbone.", of a file's
            name; None for what is no parameter, or another one's copy.
        official_value: the tensor for an official name.
        settings: config key -> the value that these weights were trained with, as far as the file
            tells; they change results but no shapes.
        author: what a converted file keeps as `__author__`; None keeps what the file says.
    """

    title: str
    recognises: Callable[[Collection[str]], bool]
    official_name: Callable[[str], str | None]
    official_value: Callable[[str, Tensor], Tensor] = lambda name, value: value
    settings: Callable[[Mapping[str, Tensor]], dict[str, Any]] = _nothing
    author: str | None = None


def background_last(name: str, value: Tensor) -> Tensor:
    """Where class 0 is the background: here it is the last class, and has no box and no mask.

    Args:
        name: the official one.
        value: rows are classes, or the four deltas of each class.
    """
    module = f".{name}".rpartition(".")[0]
    if module.endswith(".bbox_pred"):
        return value[4:]
    if module.endswith((".mask_head.predictor", ".maskiou_head.maskiou")):
        return value[1:]
    if module.endswith(".cls_score"):
        return value.roll(-1, 0)
    return value


# How images were given to the networks, by config key.
CAFFE2_IMAGES = {
    "INPUT.FORMAT": "BGR",
    "MODEL.PIXEL_MEAN": (103.53, 116.28, 123.675),
    "MODEL.PIXEL_STD": (1.0, 1.0, 1.0),
}
TORCHVISION_IMAGES = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": (123.675, 116.28, 103.53),
    "MODEL.PIXEL_STD": (58.395, 57.12, 57.375),
}
