from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from segdet.data import transforms as T
from segdet.structures import BoxMode, RotatedBoxes


@pytest.fixture(autouse=True)
def _seeded_numpy():
    np.random.seed(0)


def checkerboard(h: int, w: int) -> np.ndarray:
    y, x = np.mgrid[:h, :w]
    return (127 + 60 * np.sin(x / 7) + 60 * np.cos(y / 5)).astype(np.uint8)


@pytest.mark.parametrize("quarter", [0, 1, 2, 3, 4, -1])
def test_quarter_turns_are_exact(quarter: int):
    image = np.random.randint(0, 255, (7, 10, 3), dtype=np.uint8)
    turn = T.RotationTransform(7, 10, 90 * quarter)
    np.testing.assert_array_equal(turn.apply_image(image), np.rot90(image, quarter))
    labels = np.random.randint(0, 2**20, (7, 10))
    turned = turn.apply_segmentation(labels)
    np.testing.assert_array_equal(turned, np.rot90(labels, quarter))
    assert turned.dtype == labels.dtype


@pytest.mark.parametrize("expand", [True, False])
def test_points_stay_on_what_they_show(expand: bool):
    h, w = 60, 90
    turn = T.RotationTransform(h, w, 33.0, expand, center=None if expand else (30, 20))
    point = np.array([[40.0, 25.0]])
    image = np.zeros((h, w), np.uint8)
    image[23:27, 38:42] = 200
    out = turn.apply_image(image)
    assert out.shape == ((turn.bound_h, turn.bound_w) if expand else (h, w))
    y, x = np.nonzero(out > 100)
    assert np.array([x.mean() + 0.5, y.mean() + 0.5]) == pytest.approx(
        turn.apply_coords(point.copy())[0], abs=0.2
    )


def test_expansion_keeps_all_and_the_inverse_brings_it_back():
    h, w = 50, 81
    turn = T.RotationTransform(h, w, 20)
    cos, sin = math.cos(math.radians(20)), math.sin(math.radians(20))
    assert (turn.bound_h, turn.bound_w) == (round(w * sin + h * cos), round(w * cos + h * sin))
    corners = np.array([[0, 0], [w, 0], [0, h], [w, h]], float)
    moved = turn.apply_coords(corners.copy())
    assert moved.min() > -1 and (moved.max(0) < np.array([turn.bound_w, turn.bound_h]) + 1).all()
    back = turn.inverse()
    assert back.apply_coords(moved) == pytest.approx(corners, abs=1)
    image = checkerboard(h, w)
    again = back.apply_image(turn.apply_image(image))
    assert again.shape == image.shape
    assert abs(again[5:-5, 5:-5].astype(int) - image[5:-5, 5:-5]).mean() < 8
    with pytest.raises(NotImplementedError, match="expand=False"):
        T.RotationTransform(h, w, 20, expand=False).inverse()
    with pytest.raises(ValueError, match=r"for images of \(50, 81\)"):
        turn.apply_image(image.T)


@pytest.mark.parametrize("expand", [True, False])
def test_rotation_agrees_with_opencv(expand: bool):
    cv2 = pytest.importorskip("cv2")
    image = np.dstack([checkerboard(64, 100)] * 3)
    turn = T.RotationTransform(64, 100, -27.0, expand)
    matrix = turn.matrix.copy()
    matrix[:, 2] += matrix[:, :2].sum(1) / 2 - 0.5  # OpenCV counts from the middle of pixels
    size = turn.output_size[::-1]
    expected = cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR)
    assert abs(turn.apply_image(image).astype(int) - expected).max() <= 6  # its steps: 1/32 pixel


def test_random_rotation_draws_angles_and_centres():
    image = np.zeros((40, 60), np.uint8)
    angles = [T.RandomRotation([-10, 10]).get_transform(image).angle for _ in range(50)]
    assert min(angles) < -5 and max(angles) > 5 and all(-10 <= a <= 10 for a in angles)
    turn = T.RandomRotation([0, 90], sample_style="choice")
    kinds = {getattr(turn.get_transform(image), "angle", 0) for _ in range(30)}
    assert kinds == {0, 90}
    turn = T.RandomRotation(30, expand=False, center=[[0.5, 0.5], [0.5, 0.5]]).get_transform(image)
    assert turn.angle == 30 and turn.center.tolist() == [30, 20]
    turn = T.RandomRotation([30], False, [[0, 1]], sample_style="choice").get_transform(image)
    assert turn.center.tolist() == [0, 40]
    with pytest.raises(ValueError, match="sample_style"):
        T.RandomRotation(30, sample_style="any")
    with pytest.raises(ValueError, match="a low and a high end"):
        T.RandomRotation([1, 2, 3])


def test_extent_of_a_window_that_leaves_the_image():
    image = np.arange(24, dtype=np.uint8).reshape(4, 6)
    window = T.ExtentTransform((-2, 0, 4, 4), (4, 6), fill=9)
    out = window.apply_image(image)
    np.testing.assert_array_equal(out[:, 2:], image[:, :4])
    assert (out[:, :2] == 9).all()
    assert window.apply_coords(np.array([[1.0, 2.0]])).tolist() == [[3, 2]]
    for labels, outside in ((image, 255), (image.astype(np.int64), 255), (image > 0, 0)):
        moved = window.apply_segmentation(labels)
        assert moved.dtype == labels.dtype and (moved[:, :2] == outside).all()
        np.testing.assert_array_equal(moved[:, 2:], labels[:, :4])
    turn = T.RotationTransform(4, 6, 45, expand=True)
    assert turn.apply_segmentation(image)[0, 0] == 255 and turn.apply_image(image)[0, 0] == 0
    double = T.ExtentTransform((1, 1, 3, 2), (2, 4))
    assert double.apply_segmentation(image).tolist() == [[7, 7, 8, 8]] * 2
    assert double.apply_box(np.array([[1, 1, 3, 2]])).tolist() == [[0, 0, 4, 2]]
    with pytest.raises(ValueError, match="cannot stretch the window"):
        T.ExtentTransform((1, 1, 1, 2), (2, 4))


def test_random_extent_stays_in_its_ranges():
    image = np.zeros((40, 60, 3), np.uint8)
    for _ in range(50):
        window = T.RandomExtent((0.5, 1.5), (0.2, 0.4)).get_transform(image)
        x0, y0, x1, y1 = window.src_rect
        assert 30 <= x1 - x0 <= 90 and (x1 - x0) / (y1 - y0) == pytest.approx(1.5)
        assert abs((x0 + x1) / 2 - 30) <= 6 and abs((y0 + y1) / 2 - 20) <= 8
        assert window.output_size == (int(y1 - y0), int(x1 - x0))
        assert window.apply_image(image).shape == (*window.output_size, 3)


@pytest.mark.parametrize(
    "transform",
    [
        T.HFlipTransform(90),
        T.VFlipTransform(60),
        T.RotationTransform(60, 90, 25),
        T.CropTransform(5, 7, 60, 40),
        T.PadTransform(3, 4, 5, 6),
        T.ResizeTransform(60, 90, 120, 180),
        T.NoOpTransform(),
    ],
)
@pytest.mark.parametrize("angle", [0.0, 30.0, -100.0])
def test_rotated_boxes_have_the_corners_that_points_have(transform, angle):
    box = np.array([[40.0, 30, 20, 10, angle]])
    moved = transform.apply_rotated_box(box.copy())
    expected = transform.apply_coords(corners_of(box[0]))
    actual = corners_of(moved[0])
    distances = np.linalg.norm(actual[:, None] - expected, axis=2)
    assert distances.min(1).max() < 1e-9  # in any order: a mirrored box runs the other way


def corners_of(box: np.ndarray) -> np.ndarray:
    x, y, w, h, angle = box
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    signs = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) / 2
    return np.array(
        [[x + h * b * sin + w * a * cos, y + h * b * cos - w * a * sin] for a, b in signs]
    )


def test_lists_pass_rotated_boxes_on_and_others_refuse():
    moves = T.TransformList([T.HFlipTransform(90), T.RotationTransform(60, 90, 90)])
    assert moves.apply_rotated_box(np.array([[10.0, 20, 4, 2, 30]])).tolist() == [
        pytest.approx([20, 10, 4, 2, 60])
    ]
    with pytest.raises(NotImplementedError, match="ExtentTransform does not move rotated boxes"):
        T.ExtentTransform((0, 0, 2, 2), (2, 2)).apply_rotated_box(np.zeros((1, 5)))


def test_resizing_unequally_is_what_rotated_boxes_do():
    box = torch.tensor([[40.0, 30, 20, 10, 25]], dtype=torch.float64)
    expected = RotatedBoxes(box.clone())
    expected.scale(2, 0.5)
    moved = T.ResizeTransform(60, 90, 30, 180).apply_rotated_box(box.numpy())
    torch.testing.assert_close(torch.from_numpy(moved), expected.tensor)
    assert BoxMode.XYWHA_ABS == 4
