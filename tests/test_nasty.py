"""Every broken or odd input goes through the commands: a message that names it, or a sane run.

What each file should give is tested beside the readers (`tests/data`); here the point is that the
commands keep it: no traceback, no hang, no NaN.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from segdet.cli import run_command
from segdet.config import get_cfg
from segdet.data.detection_utils import read_image
from segdet.engine import DefaultPredictor
from segdet.engine.train import main as train
from segdet.errors import DataError

ROOT = Path(__file__).resolve().parents[1]
NASTY = ROOT.parent / "shared" / "data" / "nasty"
CONFIG = ROOT / "configs" / "demo" / "mask_rcnn.yaml"
PANOPTIC = ROOT / "configs" / "demo" / "panoptic_fpn.yaml"
TINY = """
    MODEL.RESNETS.RES2_OUT_CHANNELS 32 MODEL.RESNETS.STEM_OUT_CHANNELS 32 MODEL.RESNETS.NORM GN
    MODEL.FPN.OUT_CHANNELS 32 MODEL.FPN.NORM GN MODEL.ROI_BOX_HEAD.FC_DIM 16
    MODEL.ROI_MASK_HEAD.NUM_CONV 1 MODEL.ROI_MASK_HEAD.CONV_DIM 8 MODEL.ROI_HEADS.NUM_CLASSES 3
    INPUT.MIN_SIZE_TRAIN (96,) INPUT.MIN_SIZE_TEST 96 INPUT.MAX_SIZE_TEST 400
    MODEL.SEM_SEG_HEAD.NUM_CLASSES 2 MODEL.SEM_SEG_HEAD.CONVS_DIM 32
    DATALOADER.NUM_WORKERS 0
    SOLVER.IMS_PER_BATCH 3 SOLVER.MAX_ITER 2 SOLVER.WARMUP_ITERS 1 SOLVER.BASE_LR 0.001
"""
NO_DATA = pytest.param(None, marks=pytest.mark.skip(f"needs the nasty files, not at {NASTY}"))


SLOW = {
    "many_annotations.json",  # 20 000 boxes in one image
    *("crowd_segment.json", "png_palette.json", "png_rgba.json", "stuff_twice.json"),  # as ok.json
}


def cases(folder: str) -> list:
    files = sorted((NASTY / folder).glob("*.*"))
    marked = [pytest.param(f, marks=pytest.mark.slow) if f.name in SLOW else f for f in files]
    return marked or [NO_DATA]


def train_or_say_why(config: Path, name: str, folder: Path, capsys) -> list[dict] | str:
    """The lines of metrics.json, or the one message that the command ends with."""
    argv = ["--config-file", str(config), *TINY.split(), "OUTPUT_DIR", str(folder)]
    argv += ["DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", f"('{name}',)"]
    try:
        run_command(train, argv)
    except SystemExit as exit_:
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert exit_.code == 2 and message.startswith("error: ")
        return message
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    losses = [v for line in lines for k, v in line.items() if "loss" in k]
    assert losses and all(math.isfinite(v) for v in losses)
    assert (folder / "model_final.pth").exists()
    return lines


@pytest.mark.parametrize("file", cases("json"), ids=lambda p: getattr(p, "name", None))
def test_training_on_it_ends_well_or_says_why(file: Path, tmp_path: Path, capsys):
    ended = train_or_say_why(CONFIG, f"{file}:{NASTY / 'images'}", tmp_path, capsys)
    if isinstance(ended, str):
        assert file.name in ended or "images/" in ended
    else:
        assert any("bbox/AP" in line and "segm/AP" in line for line in ended)


@pytest.mark.parametrize("file", cases("panoptic"), ids=lambda p: getattr(p, "name", None))
def test_panoptic_training_on_it_ends_well_or_says_why(file: Path, tmp_path: Path, capsys):
    name = f"{file}:{NASTY / 'images'}:{NASTY / 'panoptic' / 'png'}"
    ended = train_or_say_why(PANOPTIC, name, tmp_path, capsys)
    if isinstance(ended, str):
        assert file.name in ended
    else:
        assert any("panoptic_seg/PQ" in line and "segm/AP" in line for line in ended)


@pytest.fixture(scope="module")
def predictor() -> DefaultPredictor:
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIG))
    cfg.merge_from_list([*TINY.split(), "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"])
    return DefaultPredictor(cfg)


@pytest.mark.parametrize("file", cases("images"), ids=lambda p: getattr(p, "name", None))
def test_predicting_on_it_gives_results_or_says_why(file: Path, predictor: DefaultPredictor):
    try:
        image = read_image(file, "BGR")
    except DataError as error:
        assert file.name in str(error)
        return
    found = predictor(image)["instances"]
    assert found.image_size == image.shape[:2]
    assert found.pred_masks.shape[1:] == image.shape[:2]
    assert np.isfinite(found.scores.numpy()).all()
    assert np.isfinite(found.pred_boxes.tensor.numpy()).all()


@pytest.mark.parametrize(
    "image, message",
    [
        (None, "the image is None"),
        ([[0]], "must be a numpy array, is list"),
        (np.zeros((4, 4), np.uint8), r"must be \(H, W, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), r"must be \(H, W, 3\)"),
    ],
)
def test_what_is_no_image_is_refused(predictor: DefaultPredictor, image, message):
    with pytest.raises(DataError, match=message):
        predictor(image)
