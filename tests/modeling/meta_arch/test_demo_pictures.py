"""Systems on pictures that the project draws: learnt by heart; crowds, and pictures of nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segdet.config import get_cfg
from segdet.engine import DefaultTrainer

ROOT = Path(__file__).resolve().parents[3]
YOLACT = ["INPUT.SQUARE_SIZE", 160, "SOLVER.IMS_PER_BATCH", 4, "SOLVER.WARMUP_ITERS", 30]
SMALL = ["INPUT.MIN_SIZE_TRAIN", (192,), "INPUT.MIN_SIZE_TEST", 192, "SOLVER.IMS_PER_BATCH", 4]

# configs/demo/<name>.yaml -> iterations, the one where the rate drops, and further settings
LEARNT: dict[str, tuple[int, int, list[Any]]] = {
    "blendmask": (250, 210, SMALL),
    "centermask_lite": (300, 250, ["INPUT.MIN_SIZE_TRAIN", (160,)]),
    "fcis": (80, 68, SMALL),
    "fcos": (300, 240, [*SMALL, "SOLVER.BASE_LR", 0.02]),
    "mask_scoring_rcnn": (200, 170, SMALL),
    "yolact": (300, 250, YOLACT),
    "yolact_plus": (300, 250, YOLACT),
}

# key of SYSTEMS -> where its tiny config has the number of classes, and further settings
HARD: dict[str, list[Any]] = {
    "BlendMask": ["MODEL.FCOS.NUM_CLASSES", 5, "MODEL.BASIS_MODULE.NUM_CLASSES", 5],
    "CenterMask": ["MODEL.ROI_HEADS.NUM_CLASSES", 5, "MODEL.FCOS.NUM_CLASSES", 5],
    "FCIS": ["MODEL.ROI_HEADS.NUM_CLASSES", 5],
    "MaskScoringRCNN": ["MODEL.ROI_HEADS.NUM_CLASSES", 5],
    "YOLACT": [
        *("MODEL.YOLACT.NUM_CLASSES", 5, "INPUT.SQUARE_SIZE", 96, "INPUT.MASK_FORMAT", "bitmask"),
        *("INPUT.SSD.PHOTOMETRIC", True, "INPUT.SSD.EXPAND", True, "INPUT.SSD.CROP", True),
    ],
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", LEARNT)
def test_four_pictures_are_learnt(on_demo_pictures, name):
    cfg = get_cfg()
    cfg.merge_from_file(ROOT / f"configs/demo/{name}.yaml")
    on_demo_pictures(cfg, 4)
    last, step, settings = LEARNT[name]
    cfg.merge_from_list(
        [
            *("SOLVER.MAX_ITER", last, "SOLVER.STEPS", (step,), "SOLVER.WARMUP_ITERS", 20),
            *("INPUT.RANDOM_FLIP", "none", "MODEL.YOLACT.MIN_IMAGES_FOR_BN", 4, *settings),
        ]
    )
    results = DefaultTrainer(cfg).train()
    assert results["segm" if cfg.MODEL.MASK_ON else "bbox"]["AP50"] > 90


@pytest.mark.slow
@pytest.mark.parametrize("system", HARD)
def test_crowds_and_empty_pictures_train_and_evaluate(tiny_cfg, on_demo_pictures, system):
    cfg = tiny_cfg(system)
    on_demo_pictures(cfg, 8)  # the 5th has a crowd, the 8th nothing
    cfg.merge_from_list(
        [
            *("DATALOADER.FILTER_EMPTY_ANNOTATIONS", False, "SOLVER.IMS_PER_BATCH", 8),
            *("SOLVER.MAX_ITER", 2, "SOLVER.STEPS", ()),
            *("INPUT.MIN_SIZE_TRAIN", (96,), "INPUT.MIN_SIZE_TEST", 96, *HARD[system]),
        ]
    )
    trainer = DefaultTrainer(cfg)
    results = trainer.train()
    assert np.isfinite([results["bbox"]["AP"], results["segm"]["AP"]]).all()
    assert all(p.isfinite().all() for p in trainer.model.parameters())
