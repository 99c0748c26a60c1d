"""The getting-started tour runs from end to end, on a hand-registered data set."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
SMALL = """
    MODEL.DEVICE cpu MODEL.WEIGHTS "" MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 16
    MODEL.RESNETS.STEM_OUT_CHANNELS 16 MODEL.RESNETS.NORM BN MODEL.BACKBONE.FREEZE_AT 0
    MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.FC_DIM 32 MODEL.ROI_MASK_HEAD.CONV_DIM 16
    MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 16 MODEL.PIXEL_STD (60.0,60.0,60.0)
    INPUT.MIN_SIZE_TRAIN (96,) INPUT.MIN_SIZE_TEST 96
    SOLVER.MAX_ITER 3 SOLVER.WARMUP_ITERS 1 DATALOADER.NUM_WORKERS 0
"""


def make_balloons(folder: Path, count: int) -> None:
    """Pictures of one ellipse each, annotated as the VGG Image Annotator exports polygons."""
    folder.mkdir(parents=True)
    rng, annotations = np.random.default_rng(0), {}
    for i in range(count):
        cx, cy, rx, ry = rng.uniform((40, 30, 15, 12), (80, 60, 30, 25))
        angles = [k * math.tau / 24 for k in range(24)]
        xs = [int(cx + rx * math.cos(a)) for a in angles]
        ys = [int(cy + ry * math.sin(a)) for a in angles]
        image = Image.new("RGB", (120, 96), (90, 140, 200))
        ImageDraw.Draw(image).polygon(list(zip(xs, ys, strict=True)), fill=(200, 40, 40))
        image.save(folder / f"{i}.jpg")
        shape = {"name": "polygon", "all_points_x": xs, "all_points_y": ys}
        annotations[f"{i}.jpg"] = {
            "filename": f"{i}.jpg",
            "regions": {"0": {"shape_attributes": shape, "region_attributes": {}}},
        }
    (folder / "via_region_data.json").write_text(json.dumps(annotations))


def run_tour(script: Path, folder: Path) -> None:
    """Run a script of the tour in a folder, and look at what it says and leaves."""
    make_balloons(folder / "balloon" / "train", 4)
    make_balloons(folder / "balloon" / "val", 2)
    opts = ["" if word == '""' else word for word in SMALL.split()]
    run = subprocess.run(
        [sys.executable, str(script), "--data", "balloon", *opts],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "'segm'" in run.stdout and "'bbox'" in run.stdout
    output = folder / "output"
    assert {"model_final.pth", "metrics.json", "val_0.png", "val_1.png"} <= {
        p.name for p in output.iterdir()
    }
    assert len(list(output.glob("train_*.png"))) == 3


def test_the_tour_trains_predicts_draws_and_evaluates(tmp_path):
    run_tour(ROOT / "docs" / "getting_started.py", tmp_path)
