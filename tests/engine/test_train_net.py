"""tools/train_net.py on a hand-made data set, as a user starts it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segdet.config import get_cfg
from segdet.engine import train
from segdet.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]

# Mask R-CNN at its smallest: ResNet-18 of a quarter of the width, images of 64 pixels.
SETTINGS = {
    "MODEL.DEVICE": "cpu",
    "MODEL.MASK_ON": "True",
    "MODEL.BACKBONE.FREEZE_AT": "0",
    "MODEL.RESNETS.DEPTH": "18",
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.RESNETS.STRIDE_IN_1X1": "False",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": "16",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": "16",
    "MODEL.FPN.OUT_CHANNELS": "16",
    "MODEL.ROI_HEADS.NUM_CLASSES": "2",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": "16",
    "MODEL.ROI_BOX_HEAD.FC_DIM": "32",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": "1",
    "MODEL.ROI_MASK_HEAD.CONV_DIM": "16",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": "50",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "20",
    "INPUT.MIN_SIZE_TRAIN": "(64,)",
    "INPUT.MIN_SIZE_TEST": "64",
    "DATALOADER.NUM_WORKERS": "1",
    "SEED": "1",
    "TEST.DETECTIONS_PER_IMAGE": "10",
    "SOLVER.IMS_PER_BATCH": "2",
    "SOLVER.MAX_ITER": "2",
    "SOLVER.STEPS": "()",
    "SOLVER.CHECKPOINT_PERIOD": "1",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four images with a bright rectangle each, of two classes; the name of the data set."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(4):
        pixels = rng.integers(0, 100, (48, 64, 3), dtype=np.uint8)
        x, y, w, h = 8 + 4 * i, 6, 24, 20
        pixels[y : y + h, x : x + w] += 100
        Image.fromarray(pixels).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 48, "width": 64})
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        annotations.append(
            {
                "id": i + 1,
                "image_id": i,
                "category_id": 1 + i % 2,
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": 0,
                "segmentation": [polygon],
            }
        )
    categories = [{"id": 1, "name": "left"}, {"id": 2, "name": "right"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content))
    return f"{folder / 'instances.json'}:{folder}"


def train_net(*argv: object, ok: bool = True) -> subprocess.CompletedProcess[str]:
    run = subprocess.run(
        [sys.executable, ROOT / "tools/train_net.py", *map(str, argv)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert not ok or run.returncode == 0, run.stderr
    return run


def arguments(data: str, output: Path, *more: object) -> list[object]:
    config = ["--config-file", "configs/Base-RCNN-FPN.yaml"]
    names = {"DATASETS.TRAIN": f'("{data}",)', "DATASETS.TEST": f'("{data}",)'}
    settings = {**SETTINGS, **names, "OUTPUT_DIR": output}
    return [*config, *more, *(part for pair in settings.items() for part in pair)]


def lines(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


def test_trains_and_evaluates(data, tmp_path):
    run = train_net(*arguments(data, tmp_path))
    last, final = lines(tmp_path)
    # What detectron2's metrics.json has after a run of Mask R-CNN.
    assert set(last) >= {
        "data_time", "iteration", "lr", "total_loss", "rank_data_time",
        "loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc",
        "fast_rcnn/cls_accuracy", "fast_rcnn/false_negative", "fast_rcnn/fg_cls_accuracy",
        "mask_rcnn/accuracy", "mask_rcnn/false_negative", "mask_rcnn/false_positive",
        "roi_head/num_bg_samples", "roi_head/num_fg_samples",
        "rpn/num_neg_anchors", "rpn/num_pos_anchors",
    }  # fmt: skip
    assert {"bbox/AP", "segm/AP", "segm/AP50"} <= set(final)
    assert final["iteration"] == 2
    files = {"model_0000000.pth", "model_final.pth", "config.yaml", "log.txt", "predictions.png"}
    assert files <= {path.name for path in tmp_path.iterdir()}
    assert "total_loss" in run.stdout
    assert run.stderr == ""


@pytest.mark.slow
def test_resumes_to_the_weights_of_an_uninterrupted_run(data, tmp_path):
    train_net(*arguments(data, tmp_path / "whole"), "SOLVER.MAX_ITER", 4)
    cut = arguments(data, tmp_path / "cut", "--resume")
    train_net(*cut, "SOLVER.MAX_ITER", 4)
    # As after a kill in the third iteration.
    (tmp_path / "cut" / "last_checkpoint").write_text("model_0000001.pth")
    train_net(*cut, "SOLVER.MAX_ITER", 4)
    whole, resumed = (
        torch.load(tmp_path / name / "model_final.pth")["model"] for name in ("whole", "cut")
    )
    torch.testing.assert_close(resumed, whole)


@pytest.mark.slow
def test_evaluates_only(data, tmp_path):
    train_net(*arguments(data, tmp_path))
    evaluate = arguments(data, tmp_path / "eval", "--eval-only")
    run = train_net(*evaluate, "MODEL.WEIGHTS", tmp_path / "model_final.pth")
    assert "copypaste: Task: segm" in run.stdout
    assert not (tmp_path / "eval" / "model_final.pth").exists()


@pytest.mark.slow
@pytest.mark.parametrize("amp", [False, True])
def test_two_processes(data, tmp_path, amp):
    run = train_net(*arguments(data, tmp_path, "--num-gpus", 2), "SOLVER.AMP.ENABLED", amp)
    assert "Process 0 of 2" in run.stdout
    assert len(lines(tmp_path)) == 2
    assert (tmp_path / "log.txt.rank1").is_file()


@pytest.mark.slow
def test_processes_load_the_project(data, tmp_path):
    folder = tmp_path / "one_rate"
    folder.mkdir()
    (folder / "__init__.py").write_text("LR_SCHEDULES = {'OneLR': lambda solver: lambda where: 1}")
    processes = ["--num-gpus", 2, "--project", folder]
    settings = ["SOLVER.LR_SCHEDULER_NAME", "OneLR", "SOLVER.BASE_LR", "0.0625"]
    train_net(*arguments(data, tmp_path, *processes), *settings)
    assert lines(tmp_path)[0]["lr"] == 0.0625


def mistake(*argv: object) -> str:
    """The one message of a command that must end with exit code 2."""
    run = train_net(*argv, ok=False)
    assert run.returncode == 2, run.stderr
    # torch's own line, of the processes that it ends when one has failed, may come first.
    (message,) = (line for line in run.stderr.splitlines() if "Terminating process" not in line)
    assert message.startswith("error: ")
    return message


def test_a_mistyped_key_is_one_message(data, tmp_path):
    message = mistake(*arguments(data, tmp_path), "SOLVER.BASE_LRR", "1")
    assert "unknown key SOLVER.BASE_LRR; did you mean SOLVER.BASE_LR?" in message


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_an_image_that_a_worker_cannot_read_is_one_message(data, tmp_path, processes):
    content = json.loads(Path(data.rpartition(":")[0]).read_text())
    for image in content["images"]:
        (tmp_path / image["file_name"]).write_bytes(b"no image")
    (tmp_path / "a.json").write_text(json.dumps(content))
    name = f"{tmp_path / 'a.json'}:{tmp_path}"
    message = mistake(*arguments(name, tmp_path / "out", "--num-gpus", processes))
    assert ".png" in message


@pytest.mark.slow
def test_debug_keeps_the_traceback(data, tmp_path):
    run = train_net("--debug", *arguments(data, tmp_path), "SOLVER.BASE_LRR", "1", ok=False)
    assert "Traceback" in run.stderr and "ConfigError" in run.stderr


def test_prints_the_config_and_what_set_it(data, tmp_path):
    run = train_net(*arguments(data, tmp_path, "--print-config"))
    assert "  MAX_ITER: 2  # command line\n" in run.stdout
    assert "    NAME: StandardROIHeads  # configs/Base-RCNN-FPN.yaml\n" in run.stdout
    assert not (tmp_path / "config.yaml").exists()


@pytest.mark.slow
def test_test_time_augmentation(data, tmp_path):
    views = ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(48, 64)"]
    train_net(*arguments(data, tmp_path), *views)
    last = lines(tmp_path)[-1]
    assert {"bbox/AP", "bbox_TTA/AP", "segm_TTA/AP"} <= last.keys()
    assert (tmp_path / "inference_TTA/coco_instances_results.json").is_file()
    weights = ["MODEL.WEIGHTS", tmp_path / "model_final.pth"]
    train_net("--eval-only", *arguments(data, tmp_path / "again"), *views, *weights)
    assert (tmp_path / "again/inference_TTA/coco_instances_results.json").is_file()


def test_an_augmentation_that_cannot_be_is_refused_first(tmp_path, monkeypatch):
    cfg = get_cfg()
    settings = {"MODEL.META_ARCHITECTURE": "ProposalNetwork", "OUTPUT_DIR": str(tmp_path)}
    settings |= {"TEST.AUG.ENABLED": "True", "MODEL.MASK_ON": "False"}
    cfg.merge_from_list([part for pair in {**SETTINGS, **settings}.items() for part in pair])
    monkeypatch.setattr(train.Trainer, "test", lambda *_: pytest.fail("was evaluated"))
    with pytest.raises(ConfigError, match="is for R-CNNs, the model is a ProposalNetwork"):
        train.Trainer(cfg)
    with pytest.raises(ConfigError, match="is for R-CNNs, the model is a ProposalNetwork"):
        train.evaluate(cfg, resume=False)
