"""The TEST section of configs, and what is done with results: print, flatten, compare."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from segdet.config.node import CfgNode
from segdet.config.ranges import Finite, PositiveFloat, PositiveInt
from segdet.data.test_time_augmentation import TestAugConfig
from segdet.errors import ConfigError
from segdet.utils.mixed_precision import AMPConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PreciseBNConfig:
    """TEST.PRECISE_BN: batch norm statistics recomputed before evaluation."""

    enabled: bool = False
    num_iter: PositiveInt = 200  # batches that the statistics are taken from


@dataclass(frozen=True, kw_only=True)
class TestConfig:
    """TEST; defaults are detectron2's."""

    expected_results: tuple[tuple[str | Finite, ...], ...] = ()  # see verify_results
    eval_period: int = 0  # iterations between evaluations; 0 evaluates at the end only
    best_metric: str = ""  # such as "segm/AP": the model with the highest is kept as model_best
    keypoint_oks_sigmas: tuple[PositiveFloat, ...] = ()
    detections_per_image: PositiveInt = 100
    aug: TestAugConfig = field(default_factory=TestAugConfig)
    precise_bn: PreciseBNConfig = field(default_factory=PreciseBNConfig)
    amp: AMPConfig = field(default_factory=AMPConfig)

    def __post_init__(self) -> None:
        for row in self.expected_results:
            types = tuple(map(type, row))
            if types[:2] != (str, str) or types[2:] != (float, float):
                raise ConfigError(
                    'EXPECTED_RESULTS rows are ["task", "metric", value, tolerance], '
                    f"one is {list(row)}"
                )


def print_csv_format(results: Mapping[str, Any]) -> None:
    """Log results in lines that can be copied into a spreadsheet.

    Args:
        results: task -> metric -> value, or task -> value; metrics with a "-" in their name
            (those of single classes) are left out.
    """
    for task, metrics in results.items():
        if not isinstance(metrics, Mapping):
            logger.info("copypaste: %s=%s", task, metrics)
            continue
        shown = {name: value for name, value in metrics.items() if "-" not in name}
        logger.info("copypaste: Task: %s", task)
        logger.info("copypaste: %s", ",".join(shown))
        logger.info("copypaste: %s", ",".join(f"{value:.4f}" for value in shown.values()))


def flatten_results_dict(results: Mapping[str, Any]) -> dict[str, Any]:
    """Turn {"bbox": {"AP": 1.0}} into {"bbox/AP": 1.0}, at any depth."""
    flat: dict[str, Any] = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}/{name}": v for name, v in flatten_results_dict(value).items()})
        else:
            flat[key] = value
    return flat


def verify_results(cfg: CfgNode, results: Mapping[str, Any]) -> bool:
    """Compare results with TEST.EXPECTED_RESULTS; leave with exit code 1 if they differ.

    Args:
        cfg: whose rows are [task, metric, value, tolerance].
        results: task -> metric -> value; a task with a bare value has no metrics.

    Returns:
        True: every expected value is there, finite and within its tolerance.
    """
    wrong = []
    for task, metric, expected, tolerance in cfg.TEST.EXPECTED_RESULTS:
        metrics = results.get(task)
        actual = metrics.get(metric) if isinstance(metrics, Mapping) else None
        if actual is None or not math.isfinite(actual) or abs(actual - expected) > tolerance:
            wrong.append(f"{task}/{metric} is {actual}, expected {expected} +- {tolerance}")
    if wrong:
        logger.error("Results are not as TEST.EXPECTED_RESULTS says: %s", "; ".join(wrong))
        sys.exit(1)
    if cfg.TEST.EXPECTED_RESULTS:
        logger.info("Results are as TEST.EXPECTED_RESULTS says")
    return True
