"""How long each stage of YOLACT and YOLACT++ takes on one image; rows of `benchmarks.models`.

Weights are random. To make the work that of trained ones, residual branches start at zero, which
keeps activations small, and the threshold of scores lets `CANDIDATES` prior boxes pass, of which
100 become detections with masks; `DRAWN` of them are drawn.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.ops.duel import seconds
from segdet.config import get_cfg
from segdet.model_zoo import get_config_file
from segdet.modeling import build_model
from segdet.modeling.meta_arch.yolact import YOLACT, resize_detections
from segdet.structures import ImageList
from segdet.utils.visualizer import Visualizer

CONFIGS = {"YOLACT": "yolact_resnet50", "YOLACT++": "yolact_plus_resnet50"}
STAGES = ("backbone", "heads", "NMS", "masks", "drawing")
CANDIDATES, DRAWN, RUNS = 1000, 15, 7


def random_model(config: str, device: str) -> tuple[YOLACT, ImageList]:
    """The official model and an image of its size, ready for the network."""
    cfg = get_cfg()
    cfg.merge_from_file(get_config_file(f"YOLACT/{config}.yaml"))
    cfg.MODEL.DEVICE = device
    model = build_model(cfg).eval()
    assert isinstance(model, YOLACT)
    for name, value in model.state_dict().items():
        if name.endswith("conv3.norm.weight"):
            value.zero_()
    side = cfg.INPUT.SQUARE_SIZE
    pixels = torch.randint(256, (3, side, side), dtype=torch.uint8, device=device)
    images = model.preprocess_image([{"image": pixels}])
    with torch.inference_mode():
        maps = model.read_out(model.levels(images), (side, side))
    best = maps.predictions.logits.softmax(-1)[0, :, 1:]
    model.selector.score_thresh = best.amax(1).topk(CANDIDATES + 1).values[-1].item()
    return model, images


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


def rows(device: str, word: str) -> Iterator[dict[str, Any]]:
    """Rows whose name contains `word`: each stage of each model, and all but the drawing."""
    for title, config in CONFIGS.items():
        names = [f"{title} R50 550x550 inference, {stage}" for stage in (*STAGES, "in all")]
        if not any(word in name for name in names):
            continue
        model, images = random_model(config, device)
        with torch.inference_mode():
            times = [list(stage_seconds(model, images, device)) for _ in range(RUNS + 1)][1:]
        each = [statistics.median(column) for column in zip(*times, strict=True)]
        for name, time in zip(names, [*each, sum(each[:-1])], strict=True):
            if word in name:
                yield {"name": name, "ours_s": time, "peer": "", "peer_s": None, "ratio": None}
