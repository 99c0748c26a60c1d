import math

import pytest
import torch
from torch import Tensor

from segdet.ops import matrix_nms
from tests.ops.threads import check_same_bits


def matrix_nms_by_definition(
    masks: Tensor, scores: Tensor, classes: Tensor, sigma: float | None
) -> list[float]:
    """SOLOv2, equation 5, pair by pair; `sigma` None means linear."""

    def iou(i: int, j: int) -> float:
        union = (masks[i] | masks[j]).sum().item()
        return (masks[i] & masks[j]).sum().item() / union if union else 0.0

    def decay(overlap: float) -> float:
        return 1 - overlap if sigma is None else math.exp(-sigma * overlap**2)

    order = sorted(range(len(scores)), key=lambda i: (-scores[i].item(), i))
    above = {j: [i for i in order[:r] if classes[i] == classes[j]] for r, j in enumerate(order)}
    most = {j: max((iou(i, j) for i in above[j]), default=0.0) for j in order}
    left = {
        j: min((decay(iou(i, j)) / decay(most[i]) for i in above[j] if most[i] < 1), default=1.0)
        for j in order
    }
    return [scores[i].item() * min(left[i], 1) for i in range(len(scores))]


def blobs(n: int, device: str = "cpu", h: int = 19, w: int = 23) -> tuple[Tensor, Tensor, Tensor]:
    """Overlapping discs, scores in any order, three classes."""
    y, x = torch.arange(h)[:, None, None], torch.arange(w)[:, None]
    centre, radius = torch.rand(n, 2) * 12 + 4, torch.rand(n) * 4 + 2
    inside = (x - centre[:, 0]) ** 2 + (y - centre[:, 1]) ** 2 < radius**2  # (h, w, n)
    masks = inside.permute(2, 0, 1).contiguous()
    return masks.to(device), torch.rand(n).to(device), torch.randint(3, (n,)).to(device)


@pytest.mark.parametrize("n", [0, 1, 2, 40])
@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_matches_definition(implementation, device, n, kernel):
    masks, scores, classes = blobs(n, device)
    scores = scores.double()
    expected = matrix_nms_by_definition(
        masks, scores, classes, 2.0 if kernel == "gaussian" else None
    )
    lowered = matrix_nms(masks, scores, classes, kernel=kernel)
    assert lowered.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("size", [(0, 5), (1, 1), (8, 8), (3, 64), (7, 37)])
@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_any_size_of_mask(implementation, device, size, kernel):
    masks, scores, classes = torch.rand(9, *size) < 0.4, torch.rand(9), torch.arange(9) % 2
    expected = matrix_nms_by_definition(
        masks, scores, classes, 2.0 if kernel == "gaussian" else None
    )
    lowered = matrix_nms(masks.to(device), scores.to(device), classes.to(device), kernel=kernel)
    assert lowered.tolist() == pytest.approx(expected, abs=1e-6)


def test_copies_and_empty_masks(implementation, device):
    masks = torch.zeros(5, 4, 4, dtype=torch.bool, device=device)
    masks[:3, 1:3] = True
    scores = torch.tensor([0.5, 0.9, 0.7, 0.6, 0.4], device=device)
    classes = torch.zeros(5, dtype=torch.int64, device=device)
    linear = matrix_nms(masks, scores, classes, kernel="linear")
    torch.testing.assert_close(linear, torch.tensor([0, 0.9, 0, 0.6, 0.4], device=device))
    gaussian = matrix_nms(masks, scores, classes, sigma=1.0)
    torch.testing.assert_close(gaussian[[0, 2]], scores[[0, 2]] * math.exp(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_other_types(implementation, device, dtype):
    masks, scores, classes = blobs(20, device)
    scores = scores.to(dtype)
    lowered = matrix_nms(masks, scores, classes.int())
    assert lowered.dtype == dtype
    expected = matrix_nms_by_definition(masks, scores, classes, 2.0)
    assert lowered.tolist() == pytest.approx(expected, abs=1e-6 if dtype == torch.float32 else 4e-3)


def test_autocast_costs_no_digits(implementation, device):
    masks, scores, classes = blobs(20, device)
    masks = masks.repeat(1, 9, 9)  # more pixels than bfloat16 can count
    expected = matrix_nms(masks, scores, classes)
    with torch.autocast(device, torch.bfloat16):
        lowered = matrix_nms(masks, scores, classes)
    assert torch.equal(lowered, expected)


def test_strided_masks_and_detached_scores(implementation, device):
    masks, scores, classes = blobs(20, device)
    strided = masks.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    before = scores.clone()
    lowered = matrix_nms(strided, scores.requires_grad_(), classes)
    assert torch.equal(lowered, matrix_nms(masks, before, classes))
    assert not lowered.requires_grad
    assert torch.equal(scores, before)


def test_any_number_of_threads_gives_the_same_bits(compiled):
    args = blobs(150, compiled)
    check_same_bits(lambda: matrix_nms(*args))


def test_refusals(implementation, device):
    masks, scores, classes = blobs(3, device)
    with pytest.raises(RuntimeError, match=r"masks must be \(N, H, W\) bool"):
        matrix_nms(masks.float(), scores, classes)
    with pytest.raises(RuntimeError, match=r"scores must be \(N,\) with N = 3, has"):
        matrix_nms(masks, scores[:2], classes)
    with pytest.raises(RuntimeError, match=r"classes must be \(N,\) with N = 3, has"):
        matrix_nms(masks, scores, classes[:2])
    with pytest.raises(RuntimeError, match="scores must be floating point"):
        matrix_nms(masks, classes, classes)
    with pytest.raises(RuntimeError, match="classes must be whole numbers"):
        matrix_nms(masks, scores, scores)
    with pytest.raises(RuntimeError, match="sigma must be > 0, is -1"):
        matrix_nms(masks, scores, classes, sigma=-1.0)
    with pytest.raises(ValueError, match='kernel must be "gaussian" or "linear", is'):
        matrix_nms(masks, scores, classes, kernel="cubic")


def test_is_a_well_formed_op(compiled):
    args = blobs(6, compiled)
    torch.library.opcheck(torch.ops.segdet.matrix_nms, (*args, True, 2.0))


class Lowered(torch.nn.Module):
    def forward(self, masks: Tensor, scores: Tensor, classes: Tensor) -> Tensor:
        return matrix_nms(masks, scores, classes) + 1


@pytest.mark.slow
def test_compile_and_export_without_graph_breaks(compiled):
    args = blobs(9, compiled)
    whole = torch.compile(Lowered(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(whole(*args), Lowered()(*args))
    torch.testing.assert_close(torch.export.export(Lowered(), args).module()(*args), whole(*args))
