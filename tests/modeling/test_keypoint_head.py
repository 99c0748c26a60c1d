import pytest
import torch
import torch.nn.functional as F

from segdet.errors import ConfigError
from segdet.modeling.keypoint_head import (
    KeypointHeadConfig,
    heatmaps_to_keypoints,
    keypoint_loss,
    keypoint_targets,
    with_visible_keypoints,
)
from segdet.structures import Boxes, Keypoints, Proposals, Targets

BOX = torch.tensor([[10.0, 20, 30, 60]])


def a_head(**settings):
    section = KeypointHeadConfig(conv_dims=(8, 6), num_keypoints=3, **settings)
    return section.build(4, nominal_regions=10)


def test_names_and_shapes():
    head = a_head()
    assert {n: list(p.shape) for n, p in head.named_parameters()} == {
        "conv_fcn1.weight": [8, 4, 3, 3],
        "conv_fcn1.bias": [8],
        "conv_fcn2.weight": [6, 8, 3, 3],
        "conv_fcn2.bias": [6],
        "score_lowres.weight": [6, 3, 4, 4],
        "score_lowres.bias": [3],
    }
    assert head(torch.rand(5, 4, 14, 14)).shape == (5, 3, 56, 56)
    assert head(torch.rand(0, 4, 14, 14)).shape == (0, 3, 56, 56)


def test_targets_are_cells_of_the_box():
    points = torch.tensor(
        [
            [
                [10.0, 20, 2],  # the first cell
                [30, 60, 1],  # on the far edges: the last cell
                [19.9, 40, 2],
                [30.1, 40, 2],  # outside
                [15, 40, 0],  # not labelled
            ]
        ]
    )
    cells, visible = keypoint_targets(points, BOX, 10)
    assert visible.tolist() == [[True, True, True, False, False]]
    assert cells.tolist() == [[0, 99, 5 * 10 + 4, 0, 0]]


def test_loss_matches_definition():
    logits = torch.randn(2, 3, 4, 4)
    cells = torch.tensor([[3, 0, 15], [7, 2, 1]])
    visible = torch.tensor([[True, False, True], [False, True, False]])
    picked = [(0, 0, 3), (0, 2, 15), (1, 1, 2)]
    expected = -sum(F.log_softmax(logits[r, k].flatten(), 0)[cell] for r, k, cell in picked)
    torch.testing.assert_close(keypoint_loss(logits, cells, visible), expected / 3)
    torch.testing.assert_close(keypoint_loss(logits, cells, visible, 8), expected / 8)


def test_nothing_visible_is_zero_and_connected():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    nowhere = torch.zeros(2, 3, dtype=torch.bool)
    loss = keypoint_loss(logits, nowhere.long(), nowhere)
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None


def objects(*points):
    keypoints = torch.tensor(points).reshape(-1, 1, 3)
    target = Targets((64, 64), gt_keypoints=Keypoints(keypoints))
    rows = torch.arange(len(points))
    boxes = Boxes(BOX.repeat(len(points), 1))
    proposals = Proposals((64, 64), proposal_boxes=boxes, gt_index=rows, gt_classes=rows * 0)
    return [proposals], [target]


def test_proposals_need_a_visible_keypoint_inside():
    kept = with_visible_keypoints(
        *objects([15.0, 30, 2], [30, 60, 1], [15, 30, 0], [5, 30, 2])  # edges are inside
    )
    assert kept[0].gt_index.tolist() == [0, 1]


def test_a_fixed_normalizer_counts_images_not_keypoints():
    head, (proposals, targets) = a_head(), objects([15.0, 30, 2])
    logits = torch.randn(1, 1, 4, 4)
    by_visible = head.losses(logits, proposals, targets)["loss_keypoint"]
    head = a_head(normalize_loss_by_visible_keypoints=False, loss_weight=2.0)
    fixed = head.losses(logits, proposals, targets)["loss_keypoint"]
    torch.testing.assert_close(fixed, by_visible * 2 / (3 * 10))


def test_a_peak_is_found_where_it_is():
    maps = torch.full((1, 2, 56, 56), -5.0)
    maps[0, 0, 28, 14] = 5.0  # row 28, column 14
    maps[0, 1, 0, 55] = 5.0
    found = heatmaps_to_keypoints(maps, torch.tensor([[10.0, 20, 66, 76]]))  # 56 pixels a side
    assert found[0, :, :2].tolist() == [[10 + 14.5, 20 + 28.5], [10 + 55.5, 20 + 0.5]]
    share = torch.softmax(maps[0].flatten(1), dim=1).max(dim=1).values
    torch.testing.assert_close(found[0, :, 3], share)
    torch.testing.assert_close(found[0, :, 2], torch.tensor([5.0, 5.0]))


def test_a_box_without_extent_gives_its_corner():
    found = heatmaps_to_keypoints(torch.randn(1, 1, 8, 8), torch.tensor([[10.0, 20, 10, 20]]))
    assert found[0, 0, :2].tolist() == [10.5, 20.5]


def test_no_boxes():
    assert heatmaps_to_keypoints(torch.zeros(0, 17, 56, 56), torch.zeros(0, 4)).shape == (0, 17, 4)


def test_rejects_an_unknown_head():
    with pytest.raises(ConfigError, match="NAME 'X' is unknown; known: KRCNN"):
        KeypointHeadConfig(name="X")
