import numpy as np
import pytest
import torch

from segdet.errors import DataError
from segdet.evaluation.label_maps import (
    best_labels,
    boundary_of,
    boundary_width,
    count_pairs,
    mean_of_known,
)


def test_pairs_are_counted():
    rows, columns = np.array([[0, 1, 1]], np.uint8), np.array([[2, 1, 1]])
    assert count_pairs(rows, columns, 3).tolist() == [[0, 0, 1], [0, 2, 0], [0, 0, 0]]


def test_many_labels_of_few_bits_do_not_overflow():
    label = np.full((1, 1), 250, np.uint8)
    assert count_pairs(label, label, 255)[250, 250] == 1


def test_the_best_label_wins_and_sizes_must_agree():
    scores = torch.tensor([[[0.1, 3.0]], [[0.2, -1.0]]])  # (2, 1, 2)
    assert best_labels(scores, np.zeros((1, 2)), "a.png").tolist() == [[1, 0]]
    with pytest.raises(DataError, match=r"a.png: the predicted map is \(1, 2\), .* is \(2, 2\)"):
        best_labels(scores, np.zeros((2, 2)), "a.png")


def test_the_edge_of_a_mask_is_two_percent_of_the_diagonal_wide():
    mask = np.zeros((60, 80), np.uint8)
    mask[10:30, 20:60] = 1
    expected = mask.copy()
    expected[12:28, 22:58] = 0
    assert boundary_width(60, 80) == 2 and boundary_width(3, 4) == 1
    np.testing.assert_array_equal(boundary_of(mask, boundary_width(60, 80)), expected)


def test_the_border_of_the_image_is_an_edge():
    expected = np.ones((4, 5), np.uint8)
    expected[1:3, 1:4] = 0
    np.testing.assert_array_equal(boundary_of(np.ones((4, 5), np.uint8), 1), expected)


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (97, 64), (240, 320)])
def test_edges_are_those_of_opencv(shape):
    cv2 = pytest.importorskip("cv2", reason="the reference is OpenCV's erosion")
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 256, (9, 9)), np.ones((27, 36)))[: shape[0], : shape[1]]
    labels = np.resize(labels, shape).astype(np.uint8)
    reach = boundary_width(*shape)
    padded = cv2.copyMakeBorder(labels, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=reach)[1:-1, 1:-1]
    np.testing.assert_array_equal(boundary_of(labels, reach), labels - eroded)


def test_means_pass_over_nan():
    assert mean_of_known([1.0, float("nan"), 3.0]) == 2
    assert np.isnan(mean_of_known([float("nan")])) and np.isnan(mean_of_known([]))
