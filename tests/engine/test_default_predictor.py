"""`DefaultPredictor`: one image in, results out."""

import numpy as np
import pytest
import torch
from torch import nn

from segdet.config import CfgNode, get_cfg
from segdet.engine import DefaultPredictor
from segdet.engine import predictor as predictor_module
from segdet.errors import ConfigError, DataError


@pytest.fixture
def cfg() -> CfgNode:
    return get_cfg()


class Echo(nn.Module):
    """Gives back what it was given."""

    def forward(self, batch: list[dict]) -> list[dict]:
        return batch


@pytest.fixture
def predictor_of(monkeypatch):
    """A predictor whose model is an echo."""

    def build(cfg: CfgNode) -> DefaultPredictor:
        monkeypatch.setattr(predictor_module, "build_model", lambda cfg: Echo())
        return DefaultPredictor(cfg)

    return build


@pytest.fixture
def image() -> np.ndarray:
    """(20, 40, 3) BGR: blue everywhere."""
    image = np.zeros((20, 40, 3), dtype=np.uint8)
    image[..., 0] = 200
    return image


@pytest.mark.parametrize("format, blue", [("BGR", 0), ("RGB", 2)])
def test_predictor_prepares_one_bgr_image(cfg, predictor_of, image, format, blue):
    cfg.INPUT.FORMAT = format
    cfg.INPUT.MIN_SIZE_TEST = 10
    given = predictor_of(cfg)(image)
    assert (given["height"], given["width"]) == (20, 40)
    assert given["image"].shape == (3, 10, 20)
    assert given["image"].dtype == torch.float32
    expected = torch.zeros(3)
    expected[blue] = 200
    assert torch.equal(given["image"].amax((1, 2)), expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_predictor_takes_floats(cfg, predictor_of, image, dtype):
    cfg.INPUT.MIN_SIZE_TEST = 10
    given = predictor_of(cfg)(image.astype(dtype))["image"]
    assert given.dtype == torch.float32
    assert torch.equal(given, predictor_of(cfg)(image)["image"])


def test_a_list_of_images_is_one_batch(cfg, predictor_of, image):
    cfg.INPUT.MIN_SIZE_TEST = 10
    predictor = predictor_of(cfg)
    batch = predictor([image, image[:, :20]])
    assert [tuple(one["image"].shape) for one in batch] == [(3, 10, 20), (3, 10, 10)]
    assert [one["width"] for one in batch] == [40, 20]
    assert torch.equal(batch[0]["image"], predictor(image)["image"])
    with pytest.raises(DataError, match="must be a numpy array, is str"):
        predictor([image, "a.jpg"])


def test_predictor_keeps_the_size_where_the_config_says_so(cfg, predictor_of, image):
    cfg.INPUT.MIN_SIZE_TEST = 0
    assert predictor_of(cfg)(image)["image"].shape == (3, 20, 40)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (None, "None, as cv2.imread returns"),
        ("a.jpg", "must be a numpy array, is str"),
        (np.zeros((4, 4), np.uint8), r"must be \(H, W, 3\) in BGR order, is \(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), r"is \(4, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), r"is \(0, 4, 3\)"),
        (np.zeros((4, 4, 3), np.int64), r"must be uint8 or floating in \[0, 255\], is int64"),
        (np.zeros((4, 4, 3), bool), "is bool"),
        (np.zeros((4, 4, 3), object), "is object"),
    ],
)
def test_predictor_names_what_is_no_image(cfg, predictor_of, wrong, message):
    with pytest.raises(DataError, match=message):
        predictor_of(cfg)(wrong)


def test_predictor_refuses_an_unknown_channel_order(cfg, predictor_of):
    cfg.INPUT.FORMAT = "L"
    with pytest.raises(ConfigError, match=r'INPUT.FORMAT must be "BGR" or "RGB", is "L"'):
        predictor_of(cfg)
