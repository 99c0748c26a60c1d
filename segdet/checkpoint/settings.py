"""Config keys compared: with what weights need, and with those of the run that is resumed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segdet.checkpoint.families.family import TORCHVISION_IMAGES
from segdet.checkpoint.loading import LoadReport
from segdet.config.node import CfgNode
from segdet.errors import ConfigError

# Converted files have official names, but say who trained them.
BY_AUTHOR: dict[str, dict[str, Any]] = {
    "torchvision": TORCHVISION_IMAGES | {"MODEL.RESNETS.STRIDE_IN_1X1": False},
}
# What a resumed run may have otherwise, since it trains the same model to the same weights.
FREE_ON_RESUME = (
    *("OUTPUT_DIR", "SEED", "VIS_PERIOD", "CUDNN_BENCHMARK", "MODEL.WEIGHTS"),
    *("DATASETS.TEST", "DATASETS.PROPOSAL_FILES_TEST", "DATALOADER.NUM_WORKERS"),
    *("INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST", "TEST.AUG.", "TEST.EXPECTED_RESULTS"),
    *("TEST.BEST_METRIC", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.CHECKPOINTS_KEPT"),
    *("SOLVER.RESUME_CHANGED", "SOLVER.NONFINITE"),
)
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


def settings_of(cfg: CfgNode) -> dict[str, str]:
    """Every key of a config and its value as text."""
    return {path: repr(value) for path, value, _ in cfg.leaves()}


def refuse_changes(cfg: CfgNode, before: Mapping[str, str], file: Path) -> None:
    """Compare a config with that of the run to be resumed.

    Args:
        cfg: the whole config; with SOLVER.RESUME_CHANGED nothing is refused.
        before: `settings_of` the earlier run; keys that only one of the two has do not count.
        file: the checkpoint, for the message.

    Raises:
        ConfigError: keys differ.
    """
    now = settings_of(cfg)
    changed = [
        f"{key} is {now[key]}, was {value}"
        for key, value in before.items()
        if key in now and now[key] != value and not key.startswith(FREE_ON_RESUME)
    ]
    if changed and not cfg.SOLVER.RESUME_CHANGED:
        raise ConfigError(
            f"{file}: the run that is resumed had other settings: {'; '.join(changed)}. Resume "
            "with the former ones, or add SOLVER.RESUME_CHANGED True to go on with these"
        )


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
