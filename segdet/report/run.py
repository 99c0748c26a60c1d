"""What a run left in its folder."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from segdet.config import CfgNode
from segdet.config.yaml_files import is_sequence
from segdet.errors import ConfigError, DataError
from segdet.modeling.meta_arch import META, system_name

# Tasks that evaluators report, and what they are called.
TASKS = {
    "segm": "Masks",
    "bbox": "Boxes",
    "boundary": "Boundaries of masks",
    "keypoints": "Keypoints",
    "panoptic_seg": "Panoptic segments",
    "sem_seg": "Semantic segments",
    "box_proposals": "Proposals",
}

Points = list[tuple[int, float | None]]  # iteration and value, None where that is not finite


class Missing(NamedTuple):
    """A part of the page that cannot be."""

    what: str
    why: str


@dataclass
class Run:
    """A run, as far as its folder tells; parts that it lacks are empty and named in `missing`."""

    folder: Path
    name: str
    config: dict[str, Any] = field(default_factory=dict)  # key path -> value
    curves: dict[str, Points] = field(default_factory=dict)  # of all scalars but results
    results: dict[str, Points] = field(default_factory=dict)  # "segm/AP" -> percent on the way
    missing: list[Missing] = field(default_factory=list)

    @property
    def inference(self) -> Path:
        """The folder of what was found in the test data."""
        return self.folder / "inference"

    @property
    def tested(self) -> str:
        """The data set that `inference` is of, the last of several; "" where none is known."""
        return next(reversed(self.names("DATASETS.TEST")), "")

    def results_of(self, task: str) -> dict[str, Points]:
        """Metric -> its values, of the data set `tested`."""
        several = len(self.names("DATASETS.TEST")) > 1
        start = f"{self.tested}/{task}/" if several else f"{task}/"
        return {n.removeprefix(start): p for n, p in self.results.items() if n.startswith(start)}

    def shown_curves(self) -> dict[str, Points]:
        """All scalars; of results those of more than one evaluation, and not of single classes."""
        on_the_way = {
            name: points
            for name, points in self.results.items()
            if len(points) > 1 and "-" not in metric_of(name)
        }
        return {**self.curves, **on_the_way}

    @property
    def iterations(self) -> int:
        """How far the training came; 0 where it is not known."""
        return max((points[-1][0] + 1 for points in self.curves.values()), default=0)

    def names(self, key: str) -> list[str]:
        """The data sets of DATASETS.TRAIN or DATASETS.TEST."""
        value = self.config.get(key) or []
        return [str(one) for one in value] if is_sequence(value) else [str(value)]

    def system(self) -> str:
        """The name of its system; "" where the config does not say it."""
        try:
            return system_name(self.config) if META in self.config else ""
        except ConfigError:  # of a plug-in
            return str(self.config[META])


def read_run(folder: str | os.PathLike[str]) -> Run:
    """Read what is in the folder of a run.

    Args:
        folder: OUTPUT_DIR of the run.

    Raises:
        ConfigError: there is no such folder, or it has nothing of a run.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ConfigError(f"{folder} is no folder; give the OUTPUT_DIR of a run")
    run = Run(folder=path, name=path.resolve().name)
    if not any((path / part).exists() for part in ("config.yaml", "metrics.json", "inference")):
        raise ConfigError(
            f"{folder} has no config.yaml, metrics.json or inference/; give the OUTPUT_DIR of a run"
        )
    _read_config(run)
    _read_metrics(run)
    return run


def _read_config(run: Run) -> None:
    file = run.folder / "config.yaml"
    if not file.is_file():
        run.missing.append(Missing("the configuration", f"there is no {file}"))
        return
    try:
        leaves = CfgNode.load_yaml_with_base(file).leaves()
    except ConfigError as error:
        run.missing.append(Missing("the configuration", str(error)))
        return
    run.config = {path: value for path, value, _ in leaves}


def _read_metrics(run: Run) -> None:
    file = run.folder / "metrics.json"
    try:
        text = file.read_text("utf-8", "replace")
    except OSError as error:
        why = f"{file} cannot be read ({error.strerror or error}); training writes it"
        run.missing.append(Missing("curves and results", why))
        return
    broken = 0
    for line in text.splitlines():
        try:
            row = _read_line(line)
        except DataError:
            broken += 1
            continue
        iteration = row.pop("iteration")
        for name, value in row.items():
            kept = run.results if metric_of(name) else run.curves
            kept.setdefault(name, []).append((iteration, value))
    if broken:
        why = f"{file} has {broken} lines that are no JSON objects with an iteration"
        run.missing.append(Missing("some of the curves", why))
    if not run.results:
        why = f"no line of {file} holds results of an evaluation; set TEST.EVAL_PERIOD"
        run.missing.append(Missing("results in metrics.json", why))


def _read_line(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        raise DataError("is not valid JSON") from None
    if type(row) is not dict or type(row.get("iteration")) is not int:
        raise DataError("is no object with an iteration")
    numbers = {name: value for name, value in row.items() if type(value) in (int, float)}
    return {name: v if math.isfinite(v) else None for name, v in numbers.items()}


_RESULT = re.compile(rf"(?:^|/)(?:{'|'.join(TASKS)})(?:_TTA)?/(.+)")


def metric_of(name: str) -> str:
    """The metric of a result, "AP" of "segm/AP" or "coco_val/segm/AP"; "" of other scalars."""
    match = _RESULT.search(name)
    return match[1] if match else ""


def group_of(name: str) -> str:
    """Where the page shows the curve of a scalar."""
    if name in ("time", "data_time", "rank_data_time", "eta_seconds"):
        return "speed"
    if metric_of(name):
        return "results"
    return "losses" if "loss" in name or name == "lr" else "inside"
