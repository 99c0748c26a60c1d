"""PointRend's first release: the two heads of its mask branch stood beside each other."""

from __future__ import annotations

from collections.abc import Collection

from segdet.checkpoint.families.family import Family

_NAMES = (
    (".mask_point_head.", ".mask_head.point_head."),
    (".mask_coarse_head.", ".mask_head.coarse_head."),
    (".coarse_mask_fc", ".fc"),
)


def pointrend_name(name: str) -> str:
    """`mask_coarse_head.coarse_mask_fc1.bias` is `mask_head.coarse_head.fc1.bias`."""
    for old, new in _NAMES:
        name = name.replace(old, new)
    return name


def _recognises(names: Collection[str]) -> bool:
    return any(old in name for name in names for old, _ in _NAMES)


POINTREND_FIRST_RELEASE = Family("PointRend's first", _recognises, pointrend_name)
