import importlib
import math

import pytest
import torch
from torch import Tensor

from segdet.ops import paste_masks
from tests.ops.threads import check_same_bits


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
        for m, b in zip(masks.double(), boxes.tolist(), strict=True)
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
@pytest.mark.parametrize("threshold", [0.5, 0.25, 0.02, -1])
def test_matches_definition(implementation, device, dtype, threshold):
    masks, boxes = torch.rand(6, 5, 5).to(dtype), BOXES.to(dtype)
    soft = soft_by_definition(masks, boxes, 12, 16)
    pasted = paste_masks(masks.to(device), boxes.to(device), (12, 16), threshold).cpu()
    if threshold < 0:
        assert pasted.dtype == torch.uint8
        sure = (soft * 255).frac().sub(0.5).abs().lt(0.499) | (soft == 0)
        assert torch.equal(pasted[sure], (soft * 255).to(torch.uint8)[sure])
    else:
        assert pasted.dtype == torch.bool
        sure = (soft - threshold).abs() > 1e-5
        assert torch.equal(pasted[sure], (soft >= threshold)[sure])
    assert sure.float().mean() > 0.95 and pasted.any()


def test_a_value_of_exactly_the_threshold_counts(implementation, device):
    # pooling outside of a feature map gives logit 0 all over, which is probability 1/2
    masks = torch.full((1, 28, 28), 0.5, device=device)
    pasted = paste_masks(masks, torch.tensor([[0.3, 0, 40, 40]], device=device), (40, 40))
    assert pasted[0, 1:-1, 2:-1].all()


@pytest.mark.parametrize("threshold", [0.0, -1])
def test_what_no_mask_reaches_stays_empty(implementation, device, threshold):
    masks, boxes = torch.ones(1, 4, 4, device=device), torch.tensor([[4.0, 3, 8, 7]], device=device)
    pasted = paste_masks(masks, boxes, (10, 12), threshold)[0]
    assert pasted[3:7, 4:8].all()
    pasted[3:7, 4:8] = 0
    assert not pasted.any()


@pytest.mark.parametrize(
    "box",
    [
        [5.5, 2, 5.5, 8],
        [2, 5.5, 8, 5.5],
        [8, 8, 2, 2],
        [math.nan, 2, 8, 8],
        [2, 2, 8, math.nan],
        [-math.inf, 2, 8, 8],
        [2, 2, math.inf, math.inf],
        [-math.inf, -math.inf, math.inf, math.inf],
        [1e30, 1e30, 2e30, 2e30],
        [-3e38, -3e38, 3e38, 3e38],
    ],
)
def test_a_box_that_is_none_draws_nothing(implementation, device, box):
    boxes = torch.tensor([box, [2.0, 2, 8, 8]], device=device)
    pasted = paste_masks(torch.ones(2, 3, 3, device=device), boxes, (10, 10))
    assert pasted.sum((1, 2)).tolist() == [0, 36]


def test_a_box_much_larger_than_the_image(implementation, device):
    boxes = torch.tensor([[-1e7, -1e7, 1e7, 1e7]], device=device)
    assert paste_masks(torch.ones(1, 3, 3, device=device), boxes, (10, 10)).all()


def test_masks_that_are_no_probabilities(compiled):
    masks = torch.tensor([-2.0, 3.0, math.nan, math.inf], device=compiled)[:, None, None]
    boxes = torch.tensor([[0.0, 0, 2, 2]] * 4, device=compiled)
    as_bytes = paste_masks(masks.expand(4, 2, 2), boxes, (2, 2), -1)
    assert as_bytes[:3].amax((1, 2)).tolist() == [0, 255, 0]


@pytest.mark.parametrize("n, size", [(0, (7, 9)), (2, (0, 9)), (2, (7, 0))])
@pytest.mark.parametrize("threshold, dtype", [(0.5, torch.bool), (-1, torch.uint8)])
def test_nothing_to_paste(implementation, device, n, size, threshold, dtype):
    masks, boxes = torch.ones(n, 3, 3, device=device), torch.ones(n, 4, device=device)
    pasted = paste_masks(masks, boxes, size, threshold)
    assert pasted.shape == (n, *size) and pasted.dtype == dtype and not pasted.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(implementation, device, dtype):
    masks, boxes = torch.rand(6, 4, 4, device=device).to(dtype), BOXES.to(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        pasted = paste_masks(masks, boxes, (12, 16))
    assert torch.equal(pasted, paste_masks(masks.float(), boxes, (12, 16)))
    torch.testing.assert_close(
        paste_masks(masks, boxes.to(dtype), (12, 16), -1),
        paste_masks(masks.float(), boxes.to(dtype).float(), (12, 16), -1),
    )


def test_any_memory_layout(implementation, device):
    masks, boxes = torch.rand(6, 4, 4, device=device), BOXES.to(device)
    expected = paste_masks(masks, boxes, (12, 16))
    assert torch.equal(paste_masks(masks.mT.contiguous().mT, boxes, (12, 16)), expected)
    assert torch.equal(paste_masks(masks, boxes.T.contiguous().T, (12, 16)), expected)


def test_result_can_be_written_to(implementation):
    pasted = paste_masks(torch.ones(6, 2, 2), BOXES, (12, 16))
    pasted |= True
    assert pasted.all()


def test_same_bits_for_any_number_of_threads():
    masks, boxes = torch.rand(40, 28, 28), torch.rand(40, 4) * 200
    boxes[:, 2:] += boxes[:, :2]
    check_same_bits(lambda: paste_masks(masks, boxes, (300, 301), -1))


@pytest.mark.parametrize("chunk_bytes", [1, 2 * 12 * 16 * 4, 1 << 30])
def test_windows_and_whole_images_agree(chunk_bytes, monkeypatch):
    plain = importlib.import_module("segdet.ops.paste_masks")
    monkeypatch.setattr(plain, "_CHUNK_BYTES", chunk_bytes)
    masks = torch.rand(6, 5, 5)
    for threshold in (0.5, 0.1, -1):
        windows = plain._paste_windows(masks, BOXES, (12, 16), threshold)
        whole = plain._paste_whole(masks, BOXES, (12, 16), threshold)
        assert windows.dtype == whole.dtype
        assert (windows.int() - whole.int()).abs().max() <= (threshold < 0)
        nothing = plain._paste_whole(masks[:0], BOXES[:0], (12, 16), threshold)
        assert nothing.shape == (0, 12, 16) and nothing.dtype == whole.dtype


@pytest.mark.parametrize(
    "masks, boxes, message",
    [
        ((2, 4, 5), (2, 4), r"masks must be \(N, M, M\), has"),
        ((1, 2, 4, 4), (1, 4), r"masks must be \(N, M, M\), has"),
        ((2, 4, 4), (3, 4), r"boxes must be \(N, 4\) with N = 2, has"),
        ((2, 4, 4), (2, 5), r"boxes must be \(N, 4\) with N = 2, has"),
    ],
)
def test_rejects_wrong_shapes(implementation, device, masks, boxes, message):
    with pytest.raises(RuntimeError, match=message):
        paste_masks(torch.ones(masks, device=device), torch.ones(boxes, device=device), (5, 5))


def test_rejects_what_it_cannot_compute(compiled):
    masks, boxes = torch.ones(2, 4, 4, device=compiled), torch.ones(2, 4, device=compiled)
    with pytest.raises(RuntimeError, match="masks must be floating point, is Bool"):
        paste_masks(masks.bool(), boxes, (5, 5))
    with pytest.raises(RuntimeError, match="boxes must be floating point, is Long"):
        paste_masks(masks, boxes.long(), (5, 5))
    with pytest.raises(RuntimeError, match=r"image_shape must not be negative, is \(-1, 5\)"):
        paste_masks(masks, boxes, (-1, 5))


def test_is_a_well_formed_op(compiled):
    masks, boxes = torch.rand(6, 4, 4, device=compiled), BOXES.to(compiled)
    for threshold in (0.5, -1.0):
        torch.library.opcheck(torch.ops.segdet.paste_masks, (masks, boxes, 12, 16, threshold))


class Paster(torch.nn.Module):
    def forward(self, masks: Tensor, boxes: Tensor) -> Tensor:
        return paste_masks(masks.sigmoid(), boxes * 2, (24, 32)).flatten(1).sum(1)


def test_compiles_and_exports_without_a_break(compiled):
    masks, boxes = torch.randn(6, 4, 4, device=compiled), BOXES.to(compiled)
    expected = Paster()(masks, boxes)
    for module in (
        torch.compile(Paster(), fullgraph=True, backend="aot_eager"),
        torch.export.export(Paster(), (masks, boxes)).module(),
    ):
        assert torch.equal(module(masks, boxes), expected)
