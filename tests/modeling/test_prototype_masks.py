import pytest
import torch

from segdet.modeling.prototype_masks import (
    combine_prototypes,
    crop,
    mask_ious,
    mask_loss,
    paint,
    semantic_loss,
    shrink_masks,
)
from segdet.structures import BitMasks, PolygonMasks


def test_the_crop_is_the_originals():
    box = torch.tensor([[100.0, 200, 300, 420]]) / 550
    inside = crop(torch.ones(1, 138, 138), box)[0]
    columns, rows = inside.any(0).nonzero()[:, 0], inside.any(1).nonzero()[:, 0]
    assert (columns[0], columns[-1]) == (25, 76) and (rows[0], rows[-1]) == (50, 106)
    assert inside.sum() == len(columns) * len(rows)


def test_corners_may_be_swapped_and_off_the_image():
    box = torch.tensor([[1.5, 0.75, -0.5, 0.25]])
    inside = crop(torch.ones(1, 8, 8), box)[0]
    assert inside.any(0).all() and inside.any(1).nonzero()[:, 0].tolist() == [1, 2, 3, 4, 5, 6]


def test_masks_are_sigmoids_of_weighed_prototypes():
    torch.manual_seed(0)
    prototypes, coefficients = torch.rand(3, 4, 5), torch.randn(2, 3)
    masks = combine_prototypes(
        prototypes, coefficients, torch.tensor([[0.0, 0, 1, 1]]).expand(2, 4)
    )
    expected = torch.einsum("chw,nc->nhw", prototypes, coefficients).sigmoid()
    torch.testing.assert_close(masks, expected)
    assert combine_prototypes(prototypes, coefficients[:0], torch.zeros(0, 4)).shape == (0, 4, 5)


def test_the_loss_is_divided_by_the_boxs_area_and_ends_at_100():
    masks = torch.tensor([[[0.5, 0.5], [0.0, 0.0]]])
    gt_masks = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])  # a cell lies outside of the crop
    loss = mask_loss(masks, gt_masks, torch.tensor([[0.0, 0, 1, 0.5]]))
    assert loss.tolist() == pytest.approx([(2 * 0.693147 + 100) / 2])


def test_ious_are_of_masks_cut_at_one_half():
    masks = torch.tensor([[[0.9, 0.6], [0.4, 0.0]]]).requires_grad_()
    ious = mask_ious(masks, torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]))
    assert ious.tolist() == pytest.approx([1 / 3]) and not ious.requires_grad


def test_class_maps_are_the_union_of_their_objects():
    masks = torch.zeros(2, 2, 2)
    masks[0, 0, 0] = masks[1, 0, 0] = masks[1, 1, 1] = 1
    logits = torch.full((3, 2, 2), -20.0)
    logits[1, 0, 0] = logits[1, 1, 1] = 20.0
    assert semantic_loss(logits, masks, torch.tensor([1, 1])) < 1e-6
    assert semantic_loss(torch.zeros(3, 2, 2), masks, torch.tensor([1, 1])) == pytest.approx(
        3 * 0.693147
    ), "a mean over cells, a sum over classes"


def test_shrinking_rounds_down_at_one_half():
    masks = torch.tensor([[[1.0, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]])
    assert shrink_masks(masks, (2, 2)).tolist() == [[[1, 0], [1, 0]]]
    assert shrink_masks(masks[:0], (2, 2)).shape == (0, 2, 2)
    masks = torch.tensor([[[1.0, 0], [1, 0]]])
    assert shrink_masks(masks, (1, 1)).item() == 0


def test_both_kinds_of_masks_are_painted_on_the_padded_input():
    polygons = PolygonMasks([[[0.0, 0, 2, 0, 2, 1, 0, 1]]])
    bits = BitMasks.from_polygon_masks(polygons, 2, 3)
    like = torch.zeros(0, dtype=torch.float64)
    expected = torch.zeros(1, 4, 5, dtype=torch.float64)
    expected[0, 0, :2] = 1
    for masks in (polygons, bits):
        torch.testing.assert_close(paint(masks, (4, 5), like), expected)
