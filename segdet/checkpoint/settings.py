"""Config keys that change results without changing shapes, compared with what weights need."""

from __future__ import annotations

import math
from typing import Any

from segdet.checkpoint.families.family import TORCHVISION_IMAGES
from segdet.checkpoint.loading import LoadReport
from segdet.config.node import CfgNode

# Converted files have official names, but say who trained them.
BY_AUTHOR: dict[str, dict[str, Any]] = {
    "torchvision": TORCHVISION_IMAGES | {"MODEL.RESNETS.STRIDE_IN_1X1": False},
}
_TOLERANCE = 0.02  # of means and deviations, which programs round differently


def differing_settings(cfg: CfgNode, report: LoadReport, author: Any = None) -> list[str]:
    """One message for each key of the config that is not as the weights need it.

    Args:
        cfg: the whole config.
        report: of loading the weights.
        author: what the file says about itself under `__author__`.
    """
    needed = BY_AUTHOR.get(author, {}) if isinstance(author, str) else {}
    messages = []
    for key, expected in (needed | report.trained_with).items():
        found = _value(cfg, key)
        if not _same(found, expected):
            messages.append(
                f"{report.file}: these weights were trained with {key} {_text(expected)}, the "
                f"config has {_text(found)} (set by {cfg.source_of(key)}); results will be worse"
            )
    return messages


def _value(cfg: CfgNode, key: str) -> Any:
    value: Any = cfg
    for name in key.split("."):
        value = value[name]
    return value


def _same(found: Any, expected: Any) -> bool:
    if not isinstance(expected, tuple):
        return found == expected
    return len(found) == len(expected) and all(
        math.isclose(a, b, rel_tol=_TOLERANCE) for a, b in zip(found, expected, strict=True)
    )


def _text(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple | list) else str(value)
