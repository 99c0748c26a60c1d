import pytest
import torch
import torch.nn.functional as F

from segdet.modeling import mask_voting
from segdet.modeling.mask_voting import MaskVoting, ScoredRegions, draw, scaled

SIZE = (40, 60)
SETTINGS = {
    "score_thresh": 0.1, "nms_thresh": 0.3, "vote_thresh": 0.5, "mask_thresh": 0.4,
    "detections_per_image": 5, "min_size": 2,
}  # fmt: skip


def regions(boxes, scores, masks=None) -> ScoredRegions:
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    if masks is None:
        masks = torch.full((len(boxes), 7, 7), 0.9)
    scores = torch.as_tensor(scores, dtype=torch.float32)
    return ScoredRegions(image_size=SIZE, boxes=boxes, scores=scores, masks=masks)


def voted(given: ScoredRegions, size=SIZE, **settings):
    return MaskVoting(**{**SETTINGS, **settings})(given, size)


def test_a_lone_region_keeps_box_score_and_mask():
    masks = torch.zeros(1, 7, 7)
    masks[0, :, :4] = 1  # the left 4 of 7 cells, of 2 pixels each
    found = voted(regions([[10, 20, 24, 34]], [[0.2, 0.7]], masks))
    assert found.scores.tolist() == pytest.approx([0.7, 0.2])
    assert found.pred_classes.tolist() == [1, 0] and found.image_size == SIZE
    # Linear between the middles of cells, 4 and 5: at least 0.4 on the first 8 pixels.
    assert found.pred_boxes.tensor.tolist() == [[10, 20, 18, 34]] * 2
    assert found.pred_masks.shape == (2, *SIZE) and found.pred_masks.dtype == torch.bool
    expected = torch.zeros(SIZE, dtype=torch.bool)
    expected[20:34, 10:18] = True
    assert (found.pred_masks == expected).all()


def test_regions_around_vote_with_their_scores_for_the_class():
    masks = torch.zeros(3, 7, 7)
    masks[0], masks[1, :4] = 1, 1
    boxes = [[10, 10, 24, 24], [10, 10, 24, 24], [40, 10, 54, 24]]
    # The second region and the third, which is elsewhere, are of another class.
    for second, bottom in ((0.5, 24), (0.95, 18)):
        scores = [[0.6, 0], [second, 0.9], [0.0, 0.95]]
        found = voted(regions(boxes, scores, masks))
        mine = found[found.pred_classes == 0]
        best = max(0.6, second)
        assert mine.scores.tolist() == pytest.approx([best])
        assert mine.pred_boxes.tensor.tolist() == [[10, 10, 24, bottom]]


def test_small_steps_change_nothing(monkeypatch):
    torch.manual_seed(0)
    masks = torch.rand(5, 7, 7)
    boxes = [
        [10, 10, 24, 24],
        [12, 10, 26, 24],
        [10, 12, 24, 26],
        [40, 11, 54, 25],
        [41, 9, 52, 26],
    ]
    given = regions(boxes, torch.rand(5, 3), masks)
    expected = voted(given, score_thresh=0.0)
    monkeypatch.setattr(mask_voting, "VOTES", 200)
    monkeypatch.setattr(mask_voting, "BLOCK", 200)
    found = voted(given, score_thresh=0.0)
    assert len(found) > 2 and torch.equal(found.pred_masks, expected.pred_masks)
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)


def test_half_precision_around_it_changes_nothing():
    torch.manual_seed(0)
    boxes = [[10, 10, 24, 24], [12, 10, 26, 24], [10, 12, 24, 26]]
    given = regions(boxes, torch.rand(3, 3), torch.rand(3, 7, 7))
    expected = voted(given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = voted(given)
    assert torch.equal(found.pred_masks, expected.pred_masks)
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)


def test_masks_are_cut_before_they_are_averaged():
    """0.45 counts as a whole pixel: averaged as it is, the sum would stay below 0.4."""
    masks = torch.stack((torch.full((7, 7), 0.45), torch.zeros(7, 7)))
    found = voted(regions([[10, 10, 24, 24]] * 2, [[0.6], [0.6]], masks))
    assert found.pred_boxes.tensor.tolist() == [[10, 10, 24, 24]]


def test_the_mask_is_resampled_with_what_lies_around_its_box():
    given = regions([[10, 10, 13, 13], [10, 10, 14, 13]], [[0.9], [0.4]])
    voting = MaskVoting(**SETTINGS)
    found, masks = voting.vote(given, SIZE)
    assert found.pred_boxes.tensor.tolist() == [[10, 10, 13, 13]]
    share = 0.4 / 1.3  # of the votes for the column right of the box
    places = (torch.arange(7) + 0.5) * 3 / 7 - 0.5
    expected = 1 - (places - 2).clamp(min=0) * (1 - share)
    expected *= 1 - (-places).clamp(min=0)  # and none for those left of it
    torch.testing.assert_close(masks[0, 3], expected)


def test_nms_is_of_each_class_by_itself_and_the_best_stay():
    boxes = [[0, 0, 20, 20], [1, 1, 21, 21], [30, 0, 50, 20], [0, 22, 20, 40]]
    scores = [[0.9, 0.3], [0.8, 0.4], [0.7, 0.05], [0.1, 0.2]]
    found = voted(regions(boxes, scores))
    assert found.scores.tolist() == pytest.approx([0.9, 0.7, 0.4, 0.2])  # neither 0.1 nor 0.05
    assert found.pred_classes.tolist() == [0, 0, 1, 1]
    assert voted(regions(boxes, scores), detections_per_image=2).scores.tolist() == pytest.approx(
        [0.9, 0.7]
    )


def test_small_regions_take_no_part():
    given = regions([[10, 10, 11.5, 30], [0, 0, 20, 20]], [[0.9], [0.5]])
    assert voted(given).scores.tolist() == [0.5]
    assert len(voted(given, min_size=30)) == 0
    without_extent = regions([[10, 10, 10, 30], [0, 0, 20, 20]], [[0.9], [0.5]])
    assert voted(without_extent, min_size=0, size=(80, 120)).scores.tolist() == [0.5]


def test_results_have_the_asked_size():
    masks = torch.full((1, 7, 7), 0.9)
    found = voted(regions([[10, 20, 30, 40]], [[0.9]], masks), size=(80, 120))
    # Last pixels are scaled, not borders: 29 and 39 become 58 and 78.
    assert found.pred_boxes.tensor.tolist() == [[20, 40, 59, 79]]
    assert found.pred_masks.shape == (1, 80, 120) and found.pred_masks.sum() == 39 * 39
    assert scaled(torch.tensor([[-3.0, 0, 80, 50]]), SIZE, SIZE).tolist() == [[0, 0, 60, 40]]


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_masks_of_a_pixel_or_without_any_are_dropped(fill):
    masks = torch.zeros(1, 9, 9)
    masks[0, 4, 4] = fill
    found = voted(regions([[10, 10, 19, 19]], [[0.9]], masks))
    assert len(found) == 0 and found.pred_masks.shape == (0, *SIZE)
    assert found.pred_boxes.tensor.shape == (0, 4) and found.pred_classes.dtype == torch.int64


def test_no_regions():
    found = voted(regions([], torch.zeros(0, 3)))
    assert len(found) == 0 and found.pred_masks.shape == (0, *SIZE)


@pytest.mark.parametrize("box", [(3, 4, 30, 20), (5, 5, 5, 5), (0, 0, 2, 39)])
def test_drawing_is_bilinear_with_repeated_borders(box):
    masks = torch.rand(2, 7, 7, dtype=torch.float64)
    x0, y0, x1, y1 = box
    expected = torch.zeros(2, 40, 60, dtype=torch.float64)
    size = (y1 - y0 + 1, x1 - x0 + 1)
    stretched = F.interpolate(masks[None], size=size, mode="bilinear")[0]
    expected[:, y0 : y1 + 1, x0 : x1 + 1] = stretched
    corners = torch.tensor([box, box], dtype=torch.float64)
    torch.testing.assert_close(draw(masks, corners, slice(0, 40), 60), expected)
    torch.testing.assert_close(draw(masks, corners, slice(4, 9), 60), expected[:, 4:9])
