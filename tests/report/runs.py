"""Runs whose mistakes are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

EVIL = "</script><img src=x onerror='window.hurt=1'><script>window.hurt=1</script>"


def write_run(folder: Path, demo: Path, *, shift: int = 0, **settings: Any) -> Path:
    """A run that found every object, with its box `shift` pixels aside; every ninth
    twice, every fifth also as another class.

    Args:
        folder: of the run.
        demo: the data.
        shift: of all boxes.
        settings: sections of its config.
    """
    file = demo / "annotations/instances_val.json"
    (folder / "inference").mkdir(parents=True)
    data = {"TRAIN": [], "TEST": [f"{file}:{demo / 'val'}"]}
    (folder / "config.yaml").write_text(yaml.safe_dump({"DATASETS": data, **settings}))
    lines = [{"iteration": i, "total_loss": 2 / (i + 1), "lr": 0.1} for i in range(0, 100, 20)]
    lines.append({"iteration": 100, "bbox/AP": 50.0, "total_loss": float("nan")})
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (folder / "metrics.json").write_text(text)
    rows = []
    for number, one in enumerate(json.loads(file.read_text())["annotations"]):
        x, y, width, height = one["bbox"]
        row = {key: one[key] for key in ("image_id", "category_id")}
        row |= {"bbox": [x + shift, y, width, height], "score": 0.95 - number / 100}
        rows += [row] if number % 9 else [row, {**row, "score": 0.6}]
        rows += [] if number % 5 else [{**row, "category_id": row["category_id"] % 5 + 1}]
    (folder / "inference/coco_instances_results.json").write_text(json.dumps(rows))
    return folder
