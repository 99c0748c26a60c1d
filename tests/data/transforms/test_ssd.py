import colorsys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segdet.data import transforms as T
from segdet.data.transforms.ssd import _recoloured


@pytest.fixture(autouse=True)
def seed():
    np.random.seed(0)


def drawn(monkeypatch: pytest.MonkeyPatch, choices: list[int], end: int = 1) -> None:
    """Whole numbers drawn in turn, and the ends of ranges."""
    numbers = iter(choices)
    monkeypatch.setattr(np.random, "randint", lambda high: next(numbers))
    monkeypatch.setattr(np.random, "uniform", lambda low, high: (low, high)[end])


COLOR = np.array([[[200, 100, 50]]], np.uint8)


def distorted(monkeypatch, choices: list[int], end: int = 1, order: str = "RGB") -> np.ndarray:
    """`choices`: brightness, contrast first, contrast, saturation, hue."""
    drawn(monkeypatch, choices, end)
    color = COLOR if order == "RGB" else COLOR[:, :, ::-1]
    out = T.PhotometricDistortion(order).get_transform(color).apply_image(color)
    assert out.dtype == np.float32
    return out[0, 0] if order == "RGB" else out[0, 0, ::-1]


def test_brightness_and_contrast_are_not_clipped(monkeypatch):
    assert distorted(monkeypatch, [1, 0, 0, 0, 0]).tolist() == [232, 132, 82]
    assert distorted(monkeypatch, [0, 1, 1, 0, 0]).tolist() == [300, 150, 75]
    assert distorted(monkeypatch, [1, 1, 1, 0, 0], 0).tolist() == [84, 34, 9], "(x - 32) / 2"


@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("contrast_first", [0, 1])
def test_saturation_and_hue(monkeypatch, order, contrast_first):
    out = distorted(monkeypatch, [0, contrast_first, 0, 1, 1], 0, order)
    hue, saturation, value = colorsys.rgb_to_hsv(*(out / 255).tolist())
    assert (hue * 360, saturation) == pytest.approx((20 - 18, 0.375), abs=1e-3)
    assert value * 255 == pytest.approx(200, abs=1e-3)


def test_colours_come_back_from_hues():
    colours = np.random.uniform(-20, 300, (40, 3)).astype(np.float32)[None]
    colours[0, 0] = 77.0  # grey has no hue
    np.testing.assert_allclose(_recoloured(colours, 1.0, 0.0), colours, atol=1e-2)
    np.testing.assert_allclose(_recoloured(colours, 1.0, 360.0), colours, atol=1e-2)
    turned = _recoloured(colours[:, 1:].clip(1, 255), 1.0, 120.0)
    np.testing.assert_allclose(turned[..., [1, 2, 0]], colours[:, 1:].clip(1, 255), atol=1e-2)


def test_an_image_is_put_on_a_canvas_of_the_mean():
    aug = T.RandomExpand("BGR", max_ratio=4.0, prob=1.0)
    image = np.full((20, 30, 3), 7, np.uint8)
    for _ in range(20):
        tfm = aug.get_transform(image)
        canvas = tfm.apply_image(image)
        assert canvas.dtype == np.float32 and (canvas == 7).all(2).sum() == 600
        assert 20 <= canvas.shape[0] <= 80 and 30 <= canvas.shape[1] <= 120
        border = canvas[~(canvas == 7).all(2)]
        assert not len(border) or border[0].tolist() == pytest.approx([103.94, 116.78, 123.68])
        x0, y0, x1, y1 = tfm.apply_box(np.array([[0.0, 0, 30, 20]]))[0].astype(int)
        assert (canvas[y0:y1, x0:x1] == 7).all()
        mask = tfm.apply_segmentation(np.ones((20, 30), np.uint8))
        assert mask.sum() == 600 and mask.shape == canvas.shape[:2]
    assert isinstance(T.RandomExpand("RGB", prob=0.0).get_transform(image), T.NoOpTransform)


def test_a_crop_holds_a_centre_and_drops_boxes_whose_centre_it_does_not():
    image = np.zeros((60, 80, 3), np.uint8)
    boxes = np.array([[0.0, 0, 20, 20], [50, 30, 80, 60]])
    kinds = set()
    for _ in range(100):
        tfm = T.CropAroundCentres().get_transform(image, boxes)
        kinds.add(type(tfm))
        if isinstance(tfm, T.NoOpTransform):
            continue
        assert tfm.w + 1 >= 24 and tfm.h + 1 >= 18 and 0.4 < tfm.h / tfm.w < 2.2
        inside = tfm.holds_centres(boxes)
        assert inside.any()
        moved = tfm.apply_box(boxes)
        assert (moved[~inside] == 0).all()
        expected = boxes[inside] - [tfm.x0, tfm.y0] * 2
        np.testing.assert_array_equal(moved[inside], expected)
    assert kinds == {T.NoOpTransform, T.CentreCropTransform}


def test_a_centre_on_the_border_is_not_inside():
    tfm = T.CentreCropTransform(10, 10, 20, 20)
    boxes = np.array([[0.0, 10, 20, 30], [1, 10, 20, 30], [20, 20, 40, 40]])
    assert tfm.holds_centres(boxes).tolist() == [False, True, False]


def test_without_objects_nothing_is_cropped():
    image = np.zeros((60, 80, 3), np.uint8)
    for _ in range(20):
        tfm = T.CropAroundCentres().get_transform(image, np.zeros((0, 4)))
        assert isinstance(tfm, T.NoOpTransform)


def test_stretching_is_bilinear_in_floating_point():
    image = np.random.randint(0, 256, (5, 9, 3)).astype(np.uint8)
    out = T.Stretch(4).get_transform(image).apply_image(image)
    chw = torch.from_numpy(image).permute(2, 0, 1).float()[None]
    expected = F.interpolate(chw, (4, 4), mode="bilinear", align_corners=False)[0]
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, expected.permute(1, 2, 0).numpy(), atol=1e-4)
    box = T.Stretch(4).get_transform(image).apply_box(np.array([[0.0, 0, 9, 5]]))
    assert box.tolist() == [[0, 0, 4, 4]]


def test_masks_are_stretched_bilinearly_and_labels_to_the_nearest():
    tfm = T.StretchTransform(1, 4, 1, 3)
    mask = np.array([[1, 1, 0, 0]], np.uint8)  # 1, 0.5, 0 at the new centres
    assert tfm.apply_segmentation(mask).tolist() == [[1, 1, 0]]
    assert tfm.apply_segmentation(mask).dtype == np.uint8
    labels = np.array([[3, 3, 255, 255]], np.uint8)
    assert set(tfm.apply_segmentation(labels)[0].tolist()) == {3, 255}
