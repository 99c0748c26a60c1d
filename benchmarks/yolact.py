"""How long each stage of YOLACT and YOLACT++ takes on one image; rows of `benchmarks.models`.

Weights are random and made to work as hard as trained ones: see `benchmarks.models.systems`. An
image has 100 detections with masks; `DRAWN` of them are drawn.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.models import systems
from benchmarks.ops.duel import seconds
from segdet.modeling.meta_arch.yolact import YOLACT, resize_detections
from segdet.structures import ImageList
from segdet.utils.visualizer import Visualizer

SYSTEMS = ("YOLACT R50", "YOLACT++ R50")  # keys of `systems.SYSTEMS`
STAGES = ("backbone", "heads", "NMS", "masks", "drawing")
SIDE, DRAWN, RUNS = 550, 15, 7


def stage_seconds(model: YOLACT, images: ImageList, device: str) -> Iterator[float]:
    """The time of each of `STAGES`, once."""
    done: dict[str, Any] = {}
    height, width = images.tensor.shape[-2:]
    picture = np.full((height, width, 3), 127, np.uint8)

    def draw() -> None:
        found = done["found"][:DRAWN].to("cpu")
        Visualizer(picture).draw_instance_predictions(found)

    def finish() -> None:
        detections = model.detect(done["maps"], done["selected"], images)
        done["found"] = resize_detections(detections[0], height, width)

    steps = [
        lambda: done.update(levels=model.levels(images)),
        lambda: done.update(maps=model.read_out(done["levels"], (height, width))),
        lambda: done.update(selected=model.select(done["maps"])),
        finish,
        draw,
    ]
    return (seconds(step, device) for step in steps)


def row_name(system: str, stage: str) -> str:
    return f"{system} {SIDE}x{SIDE} inference, {stage}"


def rows(device: str, word: str) -> Iterator[dict[str, Any]]:
    """Rows whose name contains `word`: each stage of each model, and all but the drawing."""
    for system in SYSTEMS:
        names = [row_name(system, stage) for stage in (*STAGES, "in all")]
        if not any(word in name for name in names):
            continue
        model = systems.our_model(system, device).eval()
        assert isinstance(model, YOLACT), "as its name says"
        pixels = torch.randint(256, (3, SIDE, SIDE), dtype=torch.uint8, device=device)
        images = model.preprocess_image([{"image": pixels}])
        with torch.inference_mode():
            times = [list(stage_seconds(model, images, device)) for _ in range(RUNS + 1)][1:]
        each = [statistics.median(column) for column in zip(*times, strict=True)]
        for name, time in zip(names, [*each, sum(each[:-1])], strict=True):
            if word in name:
                yield {"name": name, "ours_s": time, "peer": "", "peer_s": None, "ratio": None}


def show_shares(rows: list[dict[str, Any]]) -> None:
    """Print the frame rate of each model, and the share of what follows the network."""
    seconds_of = {row["name"]: row["ours_s"] for row in rows}
    for system in SYSTEMS:
        nms, masks, total = (
            seconds_of.get(row_name(system, stage)) for stage in ("NMS", "masks", "in all")
        )
        if nms and masks and total:
            share = (nms + masks) / total
            print(
                f"{system}: {1 / total:.2f} frames/s; NMS and masks take {share:.1%} of the whole"
            )
