from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageOps

from segdet.data import transforms as T
from segdet.structures import polygons_to_bitmask

IMAGE = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)  # H 12, W 17
POINTS = np.array([[0.0, 0.0], [17.0, 12.0], [4.5, 3.25]])
TRANSFORMS = [
    T.NoOpTransform(),
    T.HFlipTransform(17),
    T.VFlipTransform(12),
    T.ResizeTransform(12, 17, 30, 23),
    T.CropTransform(3, 2, 8, 7, 17, 12),
    T.PadTransform(1, 2, 3, 4, 17, 12),
    T.BlendTransform(128.0, 0.25, 0.75),
]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: type(t).__name__)
def test_inverse_brings_coordinates_back(transform):
    there = transform.apply_coords(POINTS.copy())
    np.testing.assert_allclose(transform.inverse().apply_coords(there), POINTS, atol=1e-9)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: type(t).__name__)
def test_labels_move_as_pixels_do_and_stay_labels(transform):
    labels = IMAGE[:, :, 0] // 64
    moved = transform.apply_segmentation(labels)
    assert moved.shape == transform.apply_image(IMAGE).shape[:2]
    assert set(np.unique(moved)) <= {0, 1, 2, 3}


@pytest.mark.parametrize("transform", TRANSFORMS[:5], ids=lambda t: type(t).__name__)
def test_a_mask_follows_its_polygon(transform):
    """Pixel edges are at whole coordinates: a rectangle of pixels is a rectangle of points."""
    mask = np.zeros((12, 17), np.uint8)
    mask[4:9, 5:11] = 1
    polygon = np.array([[5.0, 4.0], [11.0, 4.0], [11.0, 9.0], [5.0, 9.0]])
    moved = transform.apply_segmentation(mask)
    (points,) = transform.apply_polygons([polygon])
    x, y = np.meshgrid(np.arange(moved.shape[1]) + 0.5, np.arange(moved.shape[0]) + 0.5)
    (x0, y0), (x1, y1) = points.min(0), points.max(0)
    inside = (x > x0) & (x < x1) & (y > y0) & (y < y1)
    assert (moved.astype(bool) == inside).all()


def test_flip_values():
    assert (T.HFlipTransform(17).apply_image(IMAGE) == IMAGE[:, ::-1]).all()
    assert (T.VFlipTransform(12).apply_image(IMAGE) == IMAGE[::-1]).all()
    assert T.HFlipTransform(17).apply_coords(POINTS.copy())[2].tolist() == [12.5, 3.25]
    assert T.VFlipTransform(12).apply_coords(POINTS.copy())[2].tolist() == [4.5, 8.75]


def test_box_stays_upright():
    box = np.array([[2.0, 3.0, 5.0, 7.0]])
    assert T.HFlipTransform(17).apply_box(box).tolist() == [[12.0, 3.0, 15.0, 7.0]]
    assert T.NoOpTransform().apply_box([2, 3, 5, 7]).tolist() == [[2, 3, 5, 7]]
    assert T.VFlipTransform(12).apply_box(np.zeros((0, 4))).shape == (0, 4)


@pytest.mark.parametrize("channels", [None, 1, 3, 5])
def test_uint8_resize_is_pillows_antialiased_one(channels):
    image = IMAGE[:, :, 0] if channels is None else np.resize(IMAGE, (12, 17, channels))
    out = T.ResizeTransform(12, 17, 5, 9).apply_image(image)
    assert out.dtype == np.uint8 and out.shape == (5, 9, *image.shape[2:])
    for c in range(channels or 1):
        plane, got = (image, out) if channels is None else (image[:, :, c], out[:, :, c])
        expected = Image.fromarray(np.ascontiguousarray(plane)).resize((9, 5), Image.BILINEAR)
        assert (got == np.asarray(expected)).all()


def test_float_resize_interpolates_between_pixel_centres():
    ramp = np.arange(4, dtype=np.float32)[None].repeat(3, 0)
    out = T.ResizeTransform(3, 4, 3, 8).apply_image(ramp)
    np.testing.assert_allclose(out[0], [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3], atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, bool])
@pytest.mark.parametrize("size", [(5, 9), (30, 40), (1, 1), (24, 17), (13, 34)])
def test_nearest_resize_is_pillows_for_every_type(dtype, size):
    labels = (IMAGE[:, :, 0] % 2).astype(dtype)
    out = T.ResizeTransform(12, 17, *size).apply_segmentation(labels)
    expected = Image.fromarray(labels.astype(np.uint8)).resize(size[::-1], Image.NEAREST)
    assert out.dtype == dtype and (out == np.asarray(expected)).all()


def test_resize_refuses_another_image_and_empty_sizes():
    with pytest.raises(ValueError, match=r"for images of \(10, 10\) .* this is \(12, 17\)"):
        T.ResizeTransform(10, 10, 5, 5).apply_image(IMAGE)
    with pytest.raises(ValueError, match="cannot resize to height 0"):
        T.ResizeTransform(10, 10, 0, 5)


def area(polygons: list[np.ndarray]) -> int:
    return int(polygons_to_bitmask([p.reshape(-1) for p in polygons], 100, 100).sum())


def test_crop_cuts_polygons_at_its_border():
    crop = T.CropTransform(10, 20, 30, 40)
    inside = np.array([[12.0, 22.0], [30.0, 22.0], [30.0, 50.0]])
    half = np.array([[0.0, 30.0], [20.0, 30.0], [20.0, 40.0], [0.0, 40.0]])
    outside = np.array([[60.0, 70.0], [70.0, 70.0], [70.0, 80.0]])
    assert (crop.apply_polygons([inside.copy()])[0] == inside - [10, 20]).all()
    (cut,) = crop.apply_polygons([half])
    assert sorted(map(tuple, cut)) == [(0, 10), (0, 20), (10, 10), (10, 20)]
    assert crop.apply_polygons([outside]) == []


def test_crop_of_a_concave_polygon_gives_all_its_pieces():
    comb = [[0, 0], [50, 0], [50, 30], [40, 30], [40, 10], [10, 10], [10, 30], [0, 30]]
    pieces = T.CropTransform(0, 15, 100, 85).apply_polygons([np.array(comb, float)])
    assert len(pieces) == 2 and area(pieces) == 2 * 10 * 15


def test_crop_of_a_bow_tie_keeps_both_sides():
    bow = np.array([[10.0, 10.0], [50.0, 50.0], [50.0, 10.0], [10.0, 50.0]])
    pieces = T.CropTransform(5, 11, 90, 38).apply_polygons([bow])
    assert sum(piece[:, 0].min() > 20 for piece in pieces) == 1 and len(pieces) == 2


def test_crop_that_touches_in_a_line_or_point_gives_nothing():
    square = np.array([[0.0, 0.0], [10.0, 0.0], [10.0, 10.0], [0.0, 10.0]])
    assert T.CropTransform(10, 0, 5, 5).apply_polygons([square.copy()]) == []
    assert T.CropTransform(10, 10, 5, 5).apply_polygons([square.copy()]) == []


def test_cropped_mask_and_cropped_polygon_agree():
    rng = np.random.default_rng(0)
    for _ in range(50):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 12))
        points = np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(10, 45, (12, 1)) + 50
        mask = polygons_to_bitmask([points.reshape(-1)], 100, 100)
        x0, y0 = rng.integers(0, 50, 2)
        crop = T.CropTransform(int(x0), int(y0), 40, 40)
        cut = crop.apply_polygons([points.copy()])
        got = polygons_to_bitmask([p.reshape(-1) for p in cut], 40, 40)
        # COCO's rasteriser rounds vertices, so new ones on the border may move edges by a pixel.
        assert (got != crop.apply_segmentation(mask)).sum() <= 12


def test_pad_values():
    pad = T.PadTransform(1, 2, 3, 4, pad_value=128.0, seg_pad_value=255)
    image, labels = pad.apply_image(IMAGE), pad.apply_segmentation(IMAGE[:, :, 0])
    assert image.shape == (18, 21, 3) and image.dtype == np.uint8
    assert (image[2:14, 1:18] == IMAGE).all() and (image[:2] == 128).all()
    assert (labels[14:] == 255).all()


def test_blend_clips_and_truncates():
    image = np.array([[0, 100, 201]], np.uint8)
    assert T.BlendTransform(0, 0.0, 1.5).apply_image(image).tolist() == [[0, 150, 255]]
    assert T.BlendTransform(255, 0.5, 0.5).apply_image(image).tolist() == [[127, 177, 228]]


def test_colour_functions_move_nothing():
    half = T.ColorTransform(lambda image: image // 2)
    negative = T.PILColorTransform(ImageOps.invert)
    assert (half.apply_image(IMAGE) == IMAGE // 2).all()
    assert (negative.apply_image(IMAGE) == 255 - IMAGE).all()
    for transform in (half, negative):
        assert (transform.apply_segmentation(IMAGE[:, :, 0]) == IMAGE[:, :, 0]).all()
        assert (transform.apply_coords(POINTS.copy()) == POINTS).all()
    with pytest.raises(TypeError, match="must be a function"):
        T.ColorTransform(3)


def test_list_flattens_applies_in_order_and_inverts():
    both = T.HFlipTransform(17) + T.CropTransform(3, 2, 8, 7, 17, 12)
    chain = T.TransformList([both, T.TransformList([T.NoOpTransform()])])
    assert [type(t).__name__ for t in chain.transforms] == [
        "HFlipTransform",
        "CropTransform",
        "NoOpTransform",
    ]
    assert len(chain) == 3
    assert (chain.apply_image(IMAGE) == IMAGE[:, ::-1][2:9, 3:11]).all()
    there = chain.apply_coords(POINTS.copy())
    np.testing.assert_allclose(chain.inverse().apply_coords(there), POINTS)
    assert isinstance(T.NoOpTransform() + chain, T.TransformList)
    with pytest.raises(TypeError, match="holds transforms, got 5"):
        T.TransformList([5])


def test_users_can_add_data_types(monkeypatch):
    monkeypatch.setattr(T.HFlipTransform, "apply_side", None, raising=False)
    T.HFlipTransform.register_type("side", lambda t, side: {"l": "r", "r": "l"}[side])

    @T.NoOpTransform.register_type("side")
    def keep(transform, side):
        return side

    chain = T.TransformList([T.HFlipTransform(5), T.NoOpTransform(), T.HFlipTransform(5)])
    assert T.HFlipTransform(5).apply_side("l") == "r" and chain.apply_side("l") == "l"
    with pytest.raises(AttributeError, match="apply_side"):
        T.TransformList([T.VFlipTransform(5)]).apply_side("l")
    del T.NoOpTransform.apply_side


def test_users_subclass_as_for_detectron2():
    class Invert(T.Transform):
        def __init__(self, top=255):
            super().__init__()
            self._set_attributes(locals())

        def apply_image(self, img):
            return self.top - img

        def apply_coords(self, coords):
            return coords

    out, transforms = T.apply_transform_gens([Invert(), T.RandomFlip(1.0)], IMAGE)
    assert (out == 255 - IMAGE[:, ::-1]).all()
    assert transforms.apply_box(np.array([[0, 0, 1, 1]])).tolist() == [[16, 0, 17, 1]]
