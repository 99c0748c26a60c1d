"""Small models learn four pictures by heart: everything from the data to the metrics works."""

import json
from pathlib import Path

import pytest

from segdet.config import get_cfg
from segdet.data.demo import make_demo_dataset
from segdet.engine import DefaultTrainer, default_setup

CONFIGS = Path(__file__).parents[3] / "configs" / "demo"
# Config of the demo -> the metric that must pass 90, and settings of its own.
SYSTEMS: dict[str, tuple[str, list]] = {
    "fcos": ("bbox/AP50", []),
}
FOUR_PICTURES = [
    *("DATASETS.TEST", ["demo_train"], "DATALOADER.NUM_WORKERS", 0),
    *("INPUT.MIN_SIZE_TRAIN", [160], "INPUT.MIN_SIZE_TEST", 160, "INPUT.RANDOM_FLIP", "none"),
    *("SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 300, "SOLVER.STEPS", [240]),
    *("SOLVER.BASE_LR", 0.02, "SOLVER.WARMUP_ITERS", 30, "SOLVER.CHECKPOINT_PERIOD", 1000),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_four_pictures_are_learnt_by_heart(name, tmp_path, monkeypatch):
    monkeypatch.setenv("SEGDET_DATASETS", str(tmp_path))
    make_demo_dataset(tmp_path / "demo", num_train=4, num_val=1)
    metric, settings = SYSTEMS[name]
    cfg = get_cfg()
    cfg.merge_from_file(CONFIGS / f"{name}.yaml")
    cfg.merge_from_list([*FOUR_PICTURES, *settings, "OUTPUT_DIR", str(tmp_path / "run")])
    default_setup(cfg, None)
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    *_, last = (tmp_path / "run" / "metrics.json").read_text().splitlines()
    assert json.loads(last)[metric] > 90
