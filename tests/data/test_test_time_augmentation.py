from __future__ import annotations

import numpy as np
import pytest
import torch

from segdet.config import get_cfg
from segdet.data import transforms as T
from segdet.data.test_time_augmentation import DatasetMapperTTA
from segdet.errors import ConfigError


def test_views_of_an_image():
    cfg = get_cfg()
    cfg.merge_from_list(["TEST.AUG.MIN_SIZES", (20, 60), "TEST.AUG.MAX_SIZE", 70])
    image = torch.zeros(3, 40, 50, dtype=torch.uint8)
    image[:, 10:20, 10:20] = 255
    record = {"image": image, "height": 80, "width": 100, "image_id": 7, "x": [1]}
    views = DatasetMapperTTA(cfg)(record)
    # 60 x 75 is bounded by 70.
    assert [tuple(v["image"].shape[1:]) for v in views] == [(20, 25)] * 2 + [(56, 70)] * 2
    assert all(v["image_id"] == 7 and v["height"] == 80 for v in views)
    assert views[0]["x"] == [1] and views[0]["x"] is not record["x"]
    for view in views:
        # The square of the original is where the picture is white.
        x0, y0, x1, y1 = view["transforms"].apply_box(np.array([[20, 20, 40, 40]]))[0]
        middle = view["image"][:, int((y0 + y1) / 2), int((x0 + x1) / 2)]
        assert middle.tolist() == [255] * 3
        assert view["image"].float().mean() == pytest.approx(255 / 20, rel=0.05)
        back = view["transforms"].inverse().apply_box(np.array([[x0, y0, x1, y1]]))
        assert back == pytest.approx(np.array([[20, 20, 40, 40]]))
    mirrored = [isinstance(v["transforms"].transforms[-1], T.HFlipTransform) for v in views]
    assert mirrored == [False, True, False, True]


def test_without_flip_and_with_unusable_sizes():
    record = {"image": torch.zeros(3, 4, 5, dtype=torch.uint8), "height": 4, "width": 5}
    assert len(DatasetMapperTTA(min_sizes=[4, 8], max_size=99, flip=False)(record)) == 2
    cfg = get_cfg()
    for key, value in (("MIN_SIZES", ()), ("MIN_SIZES", (0,)), ("MAX_SIZE", 0)):
        bad = cfg.clone()
        bad.TEST.AUG[key] = value
        with pytest.raises(ConfigError, match=r"TEST.AUG.*(MIN_SIZES|MAX_SIZE) must"):
            DatasetMapperTTA(bad)
