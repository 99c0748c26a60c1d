import pytest
import torch

from segdet.modeling.meta_arch.yolact import YolactHeadConfig
from segdet.modeling.prior_boxes import IGNORED, corners, decode, encode, match_priors, prior_boxes

CELLS = [(69, 69), (35, 35), (18, 18), (9, 9), (5, 5)]  # of 550 pixels
PLUS = tuple(tuple(s * 2 ** (k / 3) for k in range(3)) for s in (24, 48, 96, 192, 384))


def priors_of(section: YolactHeadConfig) -> torch.Tensor:
    like = torch.zeros(0, dtype=torch.float64)
    return prior_boxes(CELLS, section.prior_sizes(), (550, 550), like)


def test_the_first_release_has_square_priors():
    priors = priors_of(YolactHeadConfig()) * 550
    assert priors.shape == (19248, 4)
    sides = torch.tensor([24, 16.97056, 33.94113], dtype=torch.float64)
    torch.testing.assert_close(priors[:3, 2:], sides[:, None].expand(3, 2), atol=1e-4, rtol=0)
    assert priors[0, :2].tolist() == pytest.approx([3.98551, 3.98551], abs=1e-5)
    assert priors[3, :2].tolist() == pytest.approx([3 * 3.98551, 3.98551], abs=1e-4), "along x"
    assert priors[-1].tolist() == pytest.approx([495, 495, 543.0580, 543.0580], abs=1e-3)


def test_the_second_release_has_nine_priors_of_true_ratios():
    priors = priors_of(YolactHeadConfig(anchor_scales=PLUS, square_anchors=False)) * 550
    assert priors.shape == (57744, 4)
    sizes = [[24, 24], [16.97056, 33.94113], [33.94113, 16.97056]]
    expected = torch.tensor(sizes, dtype=torch.float64)
    torch.testing.assert_close(priors[:3, 2:], expected, atol=1e-4, rtol=0)
    assert priors[3, 2:].tolist() == pytest.approx([24 * 2 ** (1 / 3)] * 2), "scales, then ratios"


def test_pixels_of_an_oblong_image_keep_their_shape():
    like = torch.zeros(0)
    priors = prior_boxes([(1, 2)], [[(10.0, 10.0)]], (50, 100), like)
    torch.testing.assert_close(priors[:, 2:] * torch.tensor([100.0, 50]), torch.full((2, 2), 10.0))
    assert priors[:, :2].tolist() == [[0.25, 0.5], [0.75, 0.5]]


def test_decoding_is_the_originals():
    prior = torch.tensor([[0.5, 0.5, 0.2, 0.4]])
    box = decode(torch.tensor([[1.0, -2, 0.5, -1]]), prior)
    assert box[0].tolist() == pytest.approx([0.409483, 0.256254, 0.630517, 0.583746], abs=1e-6)
    torch.testing.assert_close(encode(box, prior), torch.tensor([[1.0, -2, 0.5, -1]]))


def matched(priors, boxes, classes, crowds=()):
    return match_priors(
        torch.tensor(priors),
        torch.tensor(boxes).reshape(-1, 4),
        torch.tensor(classes, dtype=torch.int64),
        torch.tensor(crowds).reshape(-1, 4),
        iou_thresholds=(0.4, 0.5),
        crowd_threshold=0.7,
    )


def test_labels_follow_the_thresholds():
    # Boxes in the object of IoU 1, 0.5, 0.45 and 0.3.
    priors = [[0.5, 0.5, 0.4, w] for w in (0.4, 0.2, 0.18, 0.12)]
    labels, objects = matched(priors, [[0.3, 0.3, 0.7, 0.7]], [6])
    assert labels.tolist() == [7, 7, IGNORED, 0] or labels.tolist() == [7, IGNORED, IGNORED, 0]
    assert objects.tolist() == [0] * 4


def test_every_object_gets_a_prior_of_its_own():
    # Both objects overlap the first prior most; the closer one takes it, the other the next best.
    priors = [[0.5, 0.5, 0.2, 0.2], [0.9, 0.9, 0.1, 0.1], [0.52, 0.5, 0.05, 0.05]]
    boxes = [[0.4, 0.4, 0.65, 0.6], [0.4, 0.4, 0.6, 0.6], [0.0, 0.0, 0.1, 0.1]]
    labels, objects = matched(priors, boxes, [0, 1, 2])
    assert labels.tolist() == [2, 3, 1], "the last object overlaps none, and gets what is left"
    assert objects.tolist() == [1, 2, 0]


def test_crowds_make_the_rest_neutral():
    priors = [[0.5, 0.5, 0.2, 0.2], [0.2, 0.2, 0.2, 0.2], [0.8, 0.8, 0.2, 0.2]]
    crowd = [0.0, 0.0, 0.65, 0.65]
    labels, _ = matched(priors, [[0.4, 0.4, 0.6, 0.6]], [0], [crowd])
    assert labels.tolist() == [1, IGNORED, 0]
    labels, _ = matched(priors, [], [], [crowd])
    assert labels.tolist() == [IGNORED, IGNORED, 0]


def test_without_objects_all_is_background():
    labels, objects = matched([[0.5, 0.5, 0.2, 0.2]], [], [])
    assert labels.tolist() == [0] and objects.tolist() == [0]


def test_corners():
    assert corners(torch.tensor([[0.5, 0.25, 0.5, 0.25]])).tolist() == [[0.25, 0.125, 0.75, 0.375]]
