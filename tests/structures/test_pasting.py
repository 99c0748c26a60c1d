import math

import numpy as np
import pytest
import torch
from torch import Tensor

from segdet.structures import Boxes, pasting
from segdet.structures.pasting import paste_masks_in_image


def value_by_definition(mask: Tensor, box: list[float], x: float, y: float) -> float:
    """Bilinear value of an (M, M) mask stretched over a box at a point of the image."""
    side = len(mask)
    u = (x - box[0]) / (box[2] - box[0]) * side - 0.5
    v = (y - box[1]) / (box[3] - box[1]) * side - 0.5
    value = 0.0
    for row in (math.floor(v), math.floor(v) + 1):
        for column in (math.floor(u), math.floor(u) + 1):
            if 0 <= row < side and 0 <= column < side:
                share = (1 - abs(u - column)) * (1 - abs(v - row))
                value += share * mask[row, column].item()
    return value


def soft_by_definition(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    values = [
        [[value_by_definition(m, b, x + 0.5, y + 0.5) for x in range(width)] for y in range(height)]
        for m, b in zip(masks, boxes.tolist(), strict=True)
    ]
    return torch.tensor(values, dtype=torch.float64)


BOXES = torch.tensor(
    [
        [3.3, 2.1, 11.8, 9.9],
        [-4.0, -3.5, 6.2, 30.0],  # over three borders
        [0.0, 0.0, 16.0, 12.0],
        [5.2, 4.1, 5.9, 4.7],  # less than a pixel
        [-20.0, 2.0, -3.0, 9.0],  # left of the image
        [30.0, 20.0, 40.0, 29.0],  # beyond it
    ]
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", [0.5, 0.25, 0.02])
def test_matches_definition(dtype, threshold, device):
    masks = torch.rand(len(BOXES), 5, 5)
    soft = soft_by_definition(masks.double(), BOXES.double(), 12, 16)
    pasted = paste_masks_in_image(
        masks.to(device, dtype), BOXES.to(device, dtype), (12, 16), threshold
    )
    assert pasted.dtype == torch.bool and pasted.shape == (6, 12, 16)
    sure = (soft - threshold).abs() > 1e-5
    assert torch.equal(pasted.cpu()[sure], (soft >= threshold)[sure])
    as_bytes = paste_masks_in_image(masks.to(device, dtype), BOXES.to(device, dtype), (12, 16), -1)
    assert as_bytes.dtype == torch.uint8
    assert (as_bytes.cpu() - soft * 255).abs().max() <= 1


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


def test_a_value_of_exactly_the_threshold_counts():
    # pooling outside of a feature map gives logit 0 all over, which is probability 1/2
    pasted = paste_masks_in_image(
        torch.full((1, 28, 28), 0.5), torch.tensor([[0.3, 0, 40, 40]]), (40, 40)
    )
    assert pasted[0, 1:-1, 2:-1].all()


@pytest.mark.parametrize("box", [[5.5, 2, 5.5, 8], [2, 5.5, 8, 5.5], [5.5] * 4, [8, 8, 2, 2]])
def test_a_box_without_extent_draws_nothing(box, device):
    boxes = torch.tensor([box], dtype=torch.float32, device=device)
    pasted = paste_masks_in_image(torch.ones(1, 3, 3, device=device), boxes, (10, 10))
    assert not pasted.any()


@pytest.mark.parametrize("threshold, dtype", [(0.5, torch.bool), (-1, torch.uint8)])
def test_no_masks(threshold, dtype, device):
    masks, boxes = torch.zeros(0, 28, 28, device=device), torch.zeros(0, 4, device=device)
    pasted = paste_masks_in_image(masks, boxes, (7, 9), threshold)
    assert pasted.shape == (0, 7, 9) and pasted.dtype == dtype


def test_half_precision_is_widened(device):
    masks = torch.rand(2, 4, 4, device=device)
    boxes = BOXES[:2].to(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        pasted = paste_masks_in_image(masks.half(), boxes, (12, 16))
    assert torch.equal(pasted, paste_masks_in_image(masks.half().float(), boxes, (12, 16)))


def test_takes_boxes_of_either_kind():
    masks = torch.rand(6, 4, 4)
    pasted = paste_masks_in_image(masks, Boxes(BOXES), (12, 16))
    assert torch.equal(pasted, paste_masks_in_image(masks, BOXES, (12, 16)))


@pytest.mark.parametrize("threshold", [0.5, 0.1, -1])
@pytest.mark.parametrize("chunk_bytes", [1, 2 * 12 * 16 * 4, 1 << 30])
def test_windows_and_whole_images_agree(threshold, chunk_bytes, monkeypatch):
    monkeypatch.setattr(pasting, "_CHUNK_BYTES", chunk_bytes)
    masks = torch.rand(len(BOXES), 5, 5)
    windows = pasting._paste_windows(masks, BOXES, (12, 16), threshold)
    whole = pasting._paste_whole(masks, BOXES, (12, 16), threshold)
    assert windows.dtype == whole.dtype
    assert (windows.int() - whole.int()).abs().max() <= (threshold < 0)
    nothing = pasting._paste_whole(masks[:0], BOXES[:0], (12, 16), threshold)
    assert nothing.shape == (0, 12, 16) and nothing.dtype == whole.dtype


def test_result_can_be_written_to():
    pasted = paste_masks_in_image(torch.ones(1, 2, 2), BOXES[:1], (12, 16))
    pasted |= True
    assert pasted.all()


def test_refuses():
    with pytest.raises(ValueError, match=r"masks must be \(N, M, M\)"):
        paste_masks_in_image(torch.ones(1, 1, 4, 4), BOXES[:1], (12, 16))
    with pytest.raises(ValueError, match="2 masks need as many boxes"):
        paste_masks_in_image(torch.ones(2, 4, 4), BOXES[:1], (12, 16))
    with pytest.raises(ValueError, match="infinite or NaN"):
        paste_masks_in_image(torch.ones(1, 4, 4), BOXES[:1] * math.nan, (12, 16))
