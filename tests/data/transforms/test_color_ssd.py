import colorsys

import numpy as np
import pytest

from segdet.data import transforms as T


class Draws:
    """Numpy's generator replaced: uniform numbers in turn, and the ends of ranges."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, numbers: list[float], end: int = 1):
        self.numbers = iter(numbers)
        monkeypatch.setattr(np.random, "rand", lambda: next(self.numbers))
        monkeypatch.setattr(np.random, "uniform", lambda low, high: (low, high)[end])
        monkeypatch.setattr(np.random, "randint", lambda low, high: (low, high - 1)[end])


NO, YES, FIRST, LAST = 0.9, 0.1, 0.1, 0.9
COLOR = np.array([[[200, 100, 50]]], np.uint8)


def hsv(image: np.ndarray) -> tuple[float, float, float]:
    return colorsys.rgb_to_hsv(*(image[0, 0] / 255))


def test_nothing_is_drawn_nothing_changes(monkeypatch: pytest.MonkeyPatch):
    Draws(monkeypatch, [FIRST, NO, NO, NO, NO])
    assert (T.ColorAugSSDTransform("RGB").apply_image(COLOR) == COLOR).all()


@pytest.mark.parametrize("end, expected", [(0, [168, 68, 18]), (1, [232, 132, 82])])
def test_brightness_adds(monkeypatch: pytest.MonkeyPatch, end: int, expected: list[int]):
    Draws(monkeypatch, [FIRST, YES, NO, NO, NO], end)
    assert T.ColorAugSSDTransform("RGB").apply_image(COLOR)[0, 0].tolist() == expected


@pytest.mark.parametrize("end, expected", [(0, [100, 50, 25]), (1, [255, 150, 75])])
def test_contrast_multiplies_and_is_clipped(monkeypatch, end: int, expected: list[int]):
    Draws(monkeypatch, [FIRST, NO, YES, NO, NO], end)
    assert T.ColorAugSSDTransform("RGB").apply_image(COLOR)[0, 0].tolist() == expected


def test_saturation_and_hue(monkeypatch: pytest.MonkeyPatch):
    Draws(monkeypatch, [FIRST, NO, NO, YES, NO], 0)
    h, s, v = hsv(T.ColorAugSSDTransform("RGB").apply_image(COLOR))
    assert (h, s, v) == pytest.approx((20 / 360, 0.375, 200 / 255), abs=0.01)
    Draws(monkeypatch, [FIRST, NO, NO, NO, YES], 0)
    h, s, v = hsv(T.ColorAugSSDTransform("RGB").apply_image(COLOR))
    assert (h, s, v) == pytest.approx((1 - 16 / 360, 0.75, 200 / 255), abs=0.01), "20 - 36 degrees"
    Draws(monkeypatch, [FIRST, NO, NO, NO, YES], 1)
    assert hsv(T.ColorAugSSDTransform("RGB").apply_image(COLOR))[0] == pytest.approx(
        56 / 360, abs=0.01
    )


def test_contrast_is_first_or_last(monkeypatch: pytest.MonkeyPatch):
    # Clipping by contrast before or after saturation shows the order.
    Draws(monkeypatch, [FIRST, NO, YES, YES, NO])
    first = T.ColorAugSSDTransform("RGB").apply_image(COLOR)
    Draws(monkeypatch, [LAST, NO, YES, NO, YES])
    last = T.ColorAugSSDTransform("RGB").apply_image(COLOR)
    assert hsv(first)[1] == pytest.approx(min(1, (1 - 75 / 255) * 1.5), abs=0.02)
    assert first[0, 0].tolist() != last[0, 0].tolist()


def test_channels_follow_the_format(monkeypatch: pytest.MonkeyPatch):
    Draws(monkeypatch, [FIRST, YES, YES, YES, YES] * 2)
    rgb = T.ColorAugSSDTransform("RGB").apply_image(COLOR)
    bgr = T.ColorAugSSDTransform("BGR").apply_image(COLOR[:, :, ::-1])
    assert (rgb == bgr[:, :, ::-1]).all() and bgr.flags["C_CONTIGUOUS"]


def test_moves_nothing_and_refuses_what_it_cannot_change():
    transform = T.ColorAugSSDTransform("BGR")
    labels = np.arange(6).reshape(2, 3)
    assert (transform.apply_segmentation(labels) == labels).all()
    with pytest.raises(ValueError, match=r"got float32 \(1, 1, 3\)"):
        transform.apply_image(COLOR.astype(np.float32))
    with pytest.raises(ValueError, match=r'must be "BGR" or "RGB", is \'L\''):
        T.ColorAugSSDTransform("L")
