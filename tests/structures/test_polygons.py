import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import Polygon as ShapelyPolygon
from shapely import contains_xy, points, prepare
from shapely.geometry import box as shapely_box

from segdet.structures import polygons_to_bitmask, rasterize_polygons_within_box
from segdet.structures.polygons import polygon_area, rasterized_area, signed_polygon_area

NAN, INF = float("nan"), float("inf")


def array(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float64)


def rows(mask: np.ndarray | torch.Tensor) -> list[str]:
    return ["".join("#" if pixel else "." for pixel in row) for row in mask.tolist()]


def test_golden_rectangle():
    mask = polygons_to_bitmask([array(1.5, 1.5, 6.5, 1.5, 6.5, 4.5, 1.5, 4.5)], 8, 10)
    expected = np.zeros((8, 10), bool)
    expected[2:5, 2:7] = True
    assert mask.dtype == np.bool_ and np.array_equal(mask, expected)


def test_golden_triangle():
    mask = polygons_to_bitmask([array(0, 0, 4, 0, 4, 4)], 6, 6)
    assert rows(mask) == [".###..", "..##..", "...#..", "......", "......", "......"]


def test_golden_polygons(op_case):
    meta, cases = op_case("ops_rle")
    params, masks = meta["cases"]["polygons"]["params"], cases["polygons"]["masks"]
    height, width = params["size"]
    assert masks.shape == (height, width, len(params["polygons"]))
    for index, polygon in enumerate(params["polygons"]):
        mask = polygons_to_bitmask([array(*polygon)], height, width)
        assert np.array_equal(mask, masks[..., index].astype(bool))


def test_parts_are_joined():
    square, other = array(1, 1, 3, 1, 3, 3, 1, 3), array(2, 2, 5, 2, 5, 5, 2, 5)
    both = polygons_to_bitmask([square, other], 6, 6)
    apart = [polygons_to_bitmask([part], 6, 6) for part in (square, other)]
    assert np.array_equal(both, apart[0] | apart[1])


def test_area_within_a_box_counts_parts_apart_on_whole_pixels():
    square = array(2, 2, 8, 2, 8, 8, 2, 8)
    assert rasterized_area([square], array(0, 0, 10, 10)) == 36
    assert rasterized_area([square], array(5, 2, 8, 8)) == 18
    assert rasterized_area([square, square], array(0, 0, 10, 10)) == 72
    assert rasterized_area([square], array(2, 2, 4.9, 4.9)) == 4  # two whole pixels a side
    for box in (array(2, 2, 2.9, 8), array(20, 20, 30, 30), array(8, 8, 2, 2)):
        assert rasterized_area([square], box) == 0
    assert rasterized_area([], array(0, 0, 10, 10)) == 0


def test_nothing_to_draw():
    square = array(1, 1, 3, 1, 3, 3, 1, 3)
    assert not polygons_to_bitmask([], 4, 5).any()
    assert polygons_to_bitmask([], 4, 5).shape == (4, 5)
    assert polygons_to_bitmask([square], 0, 5).shape == (0, 5)
    assert not polygons_to_bitmask([square + 100], 4, 5).any()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-40, 80), min_size=3, max_size=8), st.integers(0, 9))
def test_is_pycocotools(numbers, seed):
    height, width = 23, 31
    polygon = np.repeat(array(*numbers), 2) + np.random.default_rng(seed).normal(
        0, 9, 2 * len(numbers)
    )
    rle = mask_util.merge(mask_util.frPyObjects([polygon.tolist()], height, width))
    golden = mask_util.decode(rle).astype(bool)
    assert np.array_equal(polygons_to_bitmask([polygon], height, width), golden)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_refuses_what_would_crash_pycocotools(bad):
    with pytest.raises(ValueError, match=rf"point 2 of a polygon is \(3.0, {bad}\)"):
        polygons_to_bitmask([array(5, 1, 3, 1, 3, bad)], 8, 8)


@pytest.mark.parametrize("numbers", [(), (1, 2), (1, 2, 3, 4), (1, 2, 3, 4, 5, 6, 7)])
def test_refuses_less_than_a_polygon(numbers):
    with pytest.raises(ValueError, match="at least 3 points"):
        polygons_to_bitmask([array(*numbers)], 8, 8)


@pytest.mark.parametrize("far", [1e6, 1e8, 1e12, 1e300, np.finfo(np.float64).max])
def test_vast_polygons_are_cut_to_the_canvas(far):
    # a half plane left of x = 6, one point very far away
    mask = polygons_to_bitmask([array(6, -far, 6, far, -far, 0)], 9, 12)
    assert mask[:, :6].all() and not mask[:, 6:].any()
    everything = array(-far, -far, far, -far, far, far, -far, far)
    assert polygons_to_bitmask([everything], 9, 12).all()
    elsewhere = array(far / 2, far / 2, far, far / 2, far, far)
    assert not polygons_to_bitmask([elsewhere], 9, 12).any()


def test_cutting_a_vast_polygon_keeps_its_shape():
    star = array(-3e6, 20, 15, 12, 20, -4e6, 25, 14, 5e6, 22, 24, 26, 18, 4e6, 14, 24)
    mask = polygons_to_bitmask([star], 40, 40)
    shape = ShapelyPolygon(star.reshape(-1, 2)).intersection(shapely_box(-50, -50, 90, 90))
    prepare(shape)
    x, y = np.meshgrid(np.arange(40) + 0.5, np.arange(40) + 0.5)
    wrong = mask != contains_xy(shape, x, y)
    near = np.array([[shape.boundary.distance(p) < 1 for p in row] for row in points(x, y)])
    assert not (wrong & ~near).any() and mask.any() and not mask.all()


def test_target_inside_a_box():
    # Mask R-CNN's polygon targets fill the corners that bit mask targets round off
    square = array(2, 2, 8, 2, 8, 8, 2, 8)
    target = rasterize_polygons_within_box([square], np.array([0, 0, 10, 10], np.float32), 7)
    assert target.dtype == torch.bool
    assert rows(target) == [".......", *[".#####."] * 5, "......."]


def test_target_of_a_point_box():
    square = array(2, 2, 8, 2, 8, 8, 2, 8)
    inside = rasterize_polygons_within_box([square], np.array([5.0, 5, 5, 5]), 14)
    outside = rasterize_polygons_within_box([square], np.array([9.0, 9, 9, 9]), 14)
    assert inside.all() and not outside.any()


def test_target_leaves_the_polygon_alone():
    square = array(2, 2, 8, 2, 8, 8, 2, 8)
    rasterize_polygons_within_box([square], np.array([1.0, 1, 9, 9]), 7)
    assert square.tolist() == [2, 2, 8, 2, 8, 8, 2, 8]


def test_area_by_hand():
    assert polygon_area(array(0, 0, 4, 0, 4, 3, 0, 3)) == 12
    assert polygon_area(array(0, 0, 0, 3, 4, 0)) == 6  # either sense of rotation
    assert polygon_area(array(1, 1, 2, 2, 3, 3)) == 0
    assert signed_polygon_area(array(0, 0, 4, 0, 4, 3, 0, 3)) == 12  # y points down
    assert signed_polygon_area(array(0, 0, 0, 3, 4, 0)) == -6
