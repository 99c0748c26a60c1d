import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from segdet.ops import library, resize_image


def pillows(image: Tensor, height: int, width: int) -> Tensor:
    resized = Image.fromarray(image.numpy()).resize((width, height), Image.Resampling.BILINEAR)
    return torch.tensor(np.asarray(resized)).permute(2, 0, 1)


def noise(height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)


@pytest.mark.parametrize(
    "size, new_size",
    [
        ((48, 64), (80, 107)),
        ((64, 48), (107, 80)),
        ((40, 64), (40, 64)),
        ((40, 64), (40, 90)),
        ((40, 64), (70, 64)),
        ((40, 64), (70, 9)),  # wider no more, higher
        ((1, 1), (7, 9)),
        ((1, 50), (1, 1)),
        ((93, 25), (129, 25)),  # centres of rows at which rounding reaches for a third one
        ((60, 80), (59, 81)),  # Pillow's own
        ((300, 33), (4, 170)),
    ],
)
def test_equals_pillow(implementation, size, new_size):
    image = noise(*size)
    resized = resize_image(image, *new_size)
    assert resized.dtype == torch.uint8 and resized.is_contiguous()
    assert torch.equal(resized, pillows(image, *new_size))


def test_equals_pillow_at_any_size():
    rng = np.random.default_rng(0)
    for _ in range(150):
        height, width, new_h, new_w = np.exp(rng.uniform(0, np.log(150), 4)).round().astype(int)
        image, new_h = noise(height, width), max(int(new_h), int(height))
        assert torch.equal(resize_image(image, new_h, new_w), pillows(image, new_h, new_w))


def test_white_stays_white_and_any_layout_is_read():
    white = torch.full((37, 53, 3), 255, dtype=torch.uint8)
    assert (resize_image(white, 90, 200) == 255).all()
    planes = noise(20, 30).permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert torch.equal(resize_image(planes, 33, 44), resize_image(planes.contiguous(), 33, 44))


@pytest.mark.parametrize(
    "shape, size, message",
    [
        ((5, 5), (6, 6), r"image must be \(H, W, 3\)"),
        ((5, 5, 4), (6, 6), r"image must be \(H, W, 3\)"),
        ((0, 5, 3), (6, 6), r"image must be \(H, W, 3\)"),
        ((5, 5, 3), (6, 0), r"size must be .*is \(6, 0\)"),
        ((5, 5, 3), (0, 6), r"size must be .*is \(0, 6\)"),
    ],
)
def test_refusals(implementation, shape, size, message):
    with pytest.raises(RuntimeError, match=message):
        resize_image(torch.zeros(shape, dtype=torch.uint8), *size)
    with pytest.raises(RuntimeError, match="uint8"):
        resize_image(torch.zeros(5, 5, 3), 6, 6)


def test_a_build_that_lacks_the_op_is_told_and_replaced(monkeypatch):
    library._warn_of_old_build.cache_clear()
    monkeypatch.setattr(library, "BINARY_DEVICES", frozenset({"cpu"}))
    with pytest.warns(UserWarning, match="older than the package and lack no_such_op"):
        assert not library.has_op("no_such_op")


@pytest.mark.skipif(not library.has_op("resize_image"), reason="needs the compiled op")
def test_is_a_well_formed_op():
    torch.library.opcheck(torch.ops.segdet.resize_image, (noise(8, 9), 12, 7))
