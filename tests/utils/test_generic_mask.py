import numpy as np
import pytest

from segdet.data.rle import decode_rle
from segdet.utils.generic_mask import GenericMask
from segdet.utils.visualizer import Visualizer

RING = np.zeros((8, 10), np.uint8)
RING[1:7, 2:9] = 1
RING[3:5, 4:6] = 0


def test_the_outline_of_an_l():
    mask = np.zeros((5, 6), bool)
    mask[1:4, 1] = mask[3, 1:4] = True
    one = GenericMask(mask, 5, 6)
    (polygon,) = one.polygons
    corners = {(1, 1), (2, 1), (2, 3), (4, 3), (4, 4), (1, 4)}
    assert {tuple(point) for point in polygon.reshape(-1, 2).tolist()} == corners
    assert len(polygon) == 12 and not one.has_holes
    assert one.area() == 5 and one.bbox().tolist() == [1, 1, 4, 4]


@pytest.mark.parametrize("seed", range(8))
def test_polygons_give_the_mask_again(seed):
    """Blobs whose holes are filled first."""
    rng = np.random.default_rng(seed)
    mask = rng.random((20, 30)) < 0.6
    one = GenericMask(mask, 20, 30)
    filled = one.polygons_to_mask(one.polygons)
    assert (filled >= mask).all()
    again = GenericMask(filled, 20, 30)
    assert not again.has_holes
    np.testing.assert_array_equal(again.polygons_to_mask(again.polygons), filled)


def test_holes_are_told():
    ring = GenericMask(RING, 8, 10)
    assert ring.has_holes and len(ring.polygons) == 1
    assert ring.polygons_to_mask(ring.polygons).sum() == ring.area() + 4


def test_pixels_that_touch_at_a_corner_are_two_parts():
    assert len(GenericMask(np.eye(3), 3, 3).polygons) == 3


def test_other_forms():
    square = GenericMask([[2, 1, 5, 1, 5, 4, 2, 4]], 6, 7)
    assert square.mask.sum() == 9 and square.mask.dtype == np.uint8 and not square.has_holes
    rle = {"size": [2, 3], "counts": [1, 2, 3]}
    np.testing.assert_array_equal(GenericMask(rle, 2, 3).mask, decode_rle(rle))
    empty = GenericMask(np.zeros((2, 3)), 2, 3)
    assert empty.polygons == [] and not empty.has_holes and empty.bbox().tolist() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match=r"the mask is \(2, 3\), the image \(3, 2\)"):
        GenericMask(np.zeros((2, 3)), 3, 2)


def test_a_soft_mask_is_drawn_by_its_opacity():
    soft = np.zeros((40, 60), np.float32)
    soft[:, 20:40], soft[:, 40:] = 0.5, 1.0
    drawing = Visualizer(np.zeros((40, 60, 3), np.uint8))
    red = drawing.draw_soft_mask(soft, "#ff0000", alpha=0.8).get_image()[20, :, 0]
    assert red[10] == 0 and red[30] == pytest.approx(102, abs=2) and red[50] == 204
    text = drawing.draw_soft_mask(soft, "#ff0000", text="x").get_image()
    assert (text[:, :30, 0] <= 255).all() and len(np.unique(text[:, 45:, 1])) > 1
