"""FCOS's first releases: on maskrcnn-benchmark, and AdelaiDet's that still said `centerness`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from segdet.checkpoint.families.family import CAFFE2_IMAGES, Family
from segdet.checkpoint.families.maskrcnn_benchmark import (
    maskrcnn_benchmark_name,
    stride_of_body,
    without_eps,
)

_RENAMED = (
    ("backbone.fpn.top_blocks.", "backbone.top_block."),
    ("rpn.head.", "proposal_generator.fcos_head."),
    ("fcos_head.centerness.", "fcos_head.ctrness."),
)


def fcos_name(name: str) -> str | None:
    """`rpn.head.centerness.bias` is `proposal_generator.fcos_head.ctrness.bias`."""
    for old, new in _RENAMED:
        name = name.replace(old, new)
    return maskrcnn_benchmark_name(name) if name.startswith("backbone.") else name


def _is_benchmarks(names: Collection[str]) -> bool:
    return "rpn.head.centerness.weight" in names


def _is_adelaidets(names: Collection[str]) -> bool:
    return any(name.endswith("fcos_head.centerness.weight") for name in names)


def _settings(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    return CAFFE2_IMAGES | stride_of_body(weights)


FCOS_BENCHMARK = Family(
    "FCOS's first (maskrcnn-benchmark)", _is_benchmarks, fcos_name, without_eps, _settings
)
FCOS_FIRST_RELEASE = Family(
    "AdelaiDet's first",
    _is_adelaidets,
    lambda name: name.replace("fcos_head.centerness.", "fcos_head.ctrness."),
)
