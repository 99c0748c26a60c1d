import pytest
import torch

from segdet.errors import ConfigError
from segdet.modeling import matching
from segdet.modeling.matching import Matcher
from segdet.structures import box_iou


def test_intervals_are_closed_below_and_open_above():
    matcher = Matcher([0.3, 0.7], [0, -1, 1])
    iou = torch.tensor([[0.29, 0.3, 0.69, 0.7, 1.0]])
    matches, labels = matcher(iou)
    assert labels.tolist() == [0, -1, -1, 1, 1]
    assert matches.tolist() == [0] * 5


def test_low_quality_matches_rescue_a_ground_truth_and_keep_their_own_match():
    iou = torch.tensor([[0.2, 0.1, 0.2], [0.0, 0.25, 0.25]])
    matches, labels = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True)(iou)
    assert labels.tolist() == [1, 1, 1]  # every candidate tied for a ground truth's best
    assert matches.tolist() == [0, 1, 1]  # the third is rescued by both and keeps its best


def test_a_ground_truth_that_overlaps_nothing_rescues_nothing():
    _, labels = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True)(torch.zeros(1, 4))
    assert labels.tolist() == [0] * 4


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_nothing_to_match(shape):
    matches, labels = Matcher([0.5], [0, 1])(torch.zeros(shape))
    assert matches.tolist() == labels.tolist() == [0] * shape[1]


@pytest.mark.parametrize(
    "thresholds, labels, message",
    [([0.7, 0.3], [0, -1, 1], "ascending"), ([0.5], [0, 1, 1], "IOU_LABELS must be 2 values")],
)
def test_rejects_bad_settings(thresholds, labels, message):
    with pytest.raises(ConfigError, match=message):
        Matcher(thresholds, labels)


def test_candidates_in_parts_are_matched_as_at_once(monkeypatch):
    torch.manual_seed(0)
    corner = torch.randint(0, 40, (60, 2)).float()  # whole numbers, so that overlaps tie
    boxes = torch.cat((corner, corner + torch.randint(4, 20, (60, 2))), dim=1)
    gt_boxes = torch.cat((boxes[:6] + 2, torch.tensor([[900.0, 900, 910, 910]])))
    matcher = Matcher([0.5, 0.9], [0, -1, 1], allow_low_quality_matches=True)
    matches, labels = matcher(box_iou(gt_boxes, boxes))
    monkeypatch.setattr(matching, "_PAIRS_AT_ONCE", 4 * len(gt_boxes))
    for found, expected in zip(
        matcher.match(gt_boxes, boxes, box_iou), (matches, labels), strict=True
    ):
        assert torch.equal(found, expected)
    assert set(labels.tolist()) == {0, -1, 1}
