import math

import numpy as np
import pytest
import torch

from segdet.structures import Boxes
from segdet.structures.pasting import paste_masks_in_image

BOXES = torch.tensor([[3.3, 2.1, 11.8, 9.9], [-4.0, -3.5, 6.2, 30.0], [5.2, 4.1, 5.9, 4.7]])


def test_golden_box():
    pasted = paste_masks_in_image(torch.ones(1, 4, 4), torch.tensor([[1.2, 1.7, 3.4, 4.6]]), (6, 6))
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[2:5, 1:3] = True
    assert torch.equal(pasted[0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden(op_case, dtype):
    meta, cases = op_case("ops_paste_masks")
    for name, arrays in cases.items():
        params = meta["cases"][name]["params"]
        height, width = params["image"]
        masks, boxes = (torch.from_numpy(arrays[key]).to(dtype) for key in ("masks", "boxes"))
        pasted = paste_masks_in_image(masks, boxes, (height, width), params["threshold"])
        if "out" in arrays:
            golden, near = (
                np.unpackbits(arrays[key])[: pasted.numel()].reshape(pasted.shape).astype(bool)
                for key in ("out", "near")
            )
            assert not ((pasted.numpy() != golden) & ~near).any(), name
        if "painted" in arrays:
            assert pasted.sum((1, 2)).tolist() == arrays["painted"].tolist(), name
        if "out_shape" in arrays:
            assert list(pasted.shape) == arrays["out_shape"].tolist(), name


@pytest.mark.parametrize("box", [[5.5, 2, 5.5, 8], [2, 5.5, 8, 5.5], [5.5] * 4, [8, 8, 2, 2]])
def test_a_box_without_extent_draws_nothing(box, device):
    boxes = torch.tensor([box], dtype=torch.float32, device=device)
    pasted = paste_masks_in_image(torch.ones(1, 3, 3, device=device), boxes, (10, 10))
    assert not pasted.any()


def test_takes_boxes_of_either_kind():
    masks = torch.rand(3, 4, 4)
    pasted = paste_masks_in_image(masks, Boxes(BOXES), (12, 16))
    assert torch.equal(pasted, paste_masks_in_image(masks, BOXES, (12, 16)))


def test_takes_masks_of_any_type():
    masks = torch.rand(3, 4, 4) > 0.5
    expected = paste_masks_in_image(masks.float(), BOXES, (12, 16))
    assert torch.equal(paste_masks_in_image(masks, BOXES, (12, 16)), expected)
    assert torch.equal(
        paste_masks_in_image(masks.byte(), BOXES.half().double(), (12, 16)),
        paste_masks_in_image(masks.double(), BOXES.half(), (12, 16)),
    )


def test_refuses():
    with pytest.raises(ValueError, match=r"masks must be \(N, M, M\)"):
        paste_masks_in_image(torch.ones(1, 1, 4, 4), BOXES[:1], (12, 16))
    with pytest.raises(ValueError, match="2 masks need as many boxes"):
        paste_masks_in_image(torch.ones(2, 4, 4), BOXES[:1], (12, 16))
    with pytest.raises(ValueError, match="infinite or NaN"):
        paste_masks_in_image(torch.ones(1, 4, 4), BOXES[:1] * math.nan, (12, 16))
