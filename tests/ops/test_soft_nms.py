import math

import pytest
import torch
from torch import Tensor

from segdet.ops import plain_nms, soft_nms


def soft_nms_by_definition(
    boxes: Tensor, scores: Tensor, idxs: Tensor, threshold: float, sigma: float | None, least: float
) -> list[tuple[int, float]]:
    """Take the best, lower the rest, again; `sigma` None means linear."""
    iou = plain_nms.pairwise_iou(boxes.double(), boxes.double()).nan_to_num().tolist()
    classes = idxs.tolist()
    left = {i: score for i, score in enumerate(scores.double().tolist()) if score > least}
    taken: list[tuple[int, float]] = []
    while left:
        best = max(left, key=lambda i: (left[i], -i))
        taken.append((best, left.pop(best)))
        for i in left:
            if classes[i] != classes[best]:
                continue
            if sigma is not None:
                left[i] *= math.exp(-(iou[best][i] ** 2) / sigma)
            elif iou[best][i] > threshold:
                left[i] *= 1 - iou[best][i]
        left = {i: score for i, score in left.items() if score > least}
    return taken


def crowd(n: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Boxes in heaps of about ten; distinct scores."""
    centre = torch.rand(n // 10 + 1, 2).mul(100).repeat_interleave(10, dim=0)[:n]
    centre += torch.randn(n, 2) * 3
    side = torch.rand(n, 2) * 12 + 4
    boxes = torch.cat([centre - side / 2, centre + side / 2], dim=1)
    return boxes.to(device), ((torch.randperm(n) + 0.5) / n).to(device)


def check(kept: tuple[Tensor, Tensor], expected: list[tuple[int, float]], atol: float) -> None:
    index, lowered = kept
    assert index.dtype == torch.int64
    assert index.tolist() == [i for i, _ in expected]
    assert lowered.tolist() == pytest.approx([score for _, score in expected], abs=atol)


@pytest.mark.parametrize("n", [0, 1, 17, 150])
@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_matches_definition(implementation, device, n, method):
    boxes, scores = (x.double() for x in crowd(n, device))
    sigma = 0.5 if method == "gaussian" else None
    expected = soft_nms_by_definition(boxes, scores, torch.zeros(n), 0.31, sigma, 0.05)
    check(soft_nms(boxes, scores, 0.31, method=method, min_score=0.05), expected, 1e-12)


def test_classes_do_not_meet(implementation, device):
    boxes, scores = (x.double() for x in crowd(150, device))
    idxs = torch.randint(-2, 3, (150,), device=device)
    expected = soft_nms_by_definition(boxes, scores, idxs, 0.31, None, 0.05)
    check(soft_nms(boxes, scores, 0.31, idxs=idxs, min_score=0.05), expected, 1e-12)


def test_linear_lowers_only_above_the_threshold(implementation, device):
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5]], device=device)
    scores = torch.tensor([1.0, 0.5], device=device)
    assert soft_nms(boxes, scores, 0.5)[1].tolist() == [1.0, 0.5]
    assert soft_nms(boxes, scores, 0.4999)[1].tolist() == [1.0, 0.25]


def test_the_threshold_is_not_rounded(implementation, device):
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, 3, 1]], device=device)
    scores = torch.tensor([1.0, 0.5], device=device)
    lowered = soft_nms(boxes, scores, 0.3)[1].tolist()  # 3 / 10 is above 0.3 in float32
    assert lowered == pytest.approx([1, 0.35])


def test_of_equal_scores_the_first_is_taken(implementation, device):
    boxes = torch.tensor([[0.0, 0, 10, 10]] * 40 + [[50.0, 50, 60, 60]] * 40, device=device)
    index, lowered = soft_nms(boxes, torch.ones(80, device=device), 0.5)
    assert index.tolist() == [0, 40]
    assert lowered.tolist() == [1, 1]


def test_only_scores_above_the_least_come_out(implementation, device):
    boxes = torch.arange(4.0, device=device)[:, None] * 20 + torch.tensor(
        [0.0, 0, 9, 9], device=device
    )
    scores = torch.tensor([0.5, 0.25, math.nan, 0.75], device=device)
    assert soft_nms(boxes, scores, min_score=0.25)[0].tolist() == [3, 0]


def test_boxes_that_are_not_finite_or_empty_do_no_harm(implementation, device):
    boxes, scores = crowd(60, device)
    boxes[::3, 1] = math.nan
    boxes[1::3] = torch.tensor([-math.inf, -math.inf, math.inf, math.inf])
    boxes[2::3, 2:] = boxes[2::3, :2]
    for method in ("linear", "gaussian"):
        index, lowered = soft_nms(boxes, scores, method=method)
        assert torch.equal(index, scores.argsort(descending=True))
        assert torch.equal(lowered, scores[index])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_other_types(implementation, device, dtype):
    boxes, scores = crowd(64, device)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    expected = soft_nms_by_definition(boxes, scores, torch.zeros(64), 0.31, None, 0.01)
    index, lowered = soft_nms(boxes, scores, 0.31, min_score=0.01)
    assert lowered.dtype == dtype
    check((index, lowered), expected, 1e-6 if dtype == torch.float32 else 4e-3)


def test_scores_are_detached(implementation, device):
    boxes, scores = crowd(10, device)
    assert not soft_nms(boxes, scores.requires_grad_())[1].requires_grad


def test_refusals(implementation, device):
    boxes, scores = crowd(3, device)
    with pytest.raises(RuntimeError, match=r"soft_nms: boxes must be \(N, 4\), has"):
        soft_nms(boxes[:, :3], scores)
    with pytest.raises(RuntimeError, match=r"soft_nms: scores must be \(N,\) with N = 3, has"):
        soft_nms(boxes, scores[:2])
    with pytest.raises(RuntimeError, match="soft_nms: scores must be floating point"):
        soft_nms(boxes, scores.long())
    with pytest.raises(RuntimeError, match="soft_nms: idxs must be whole numbers"):
        soft_nms(boxes, scores, idxs=scores)
    with pytest.raises(RuntimeError, match="sigma must be > 0, is 0"):
        soft_nms(boxes, scores, method="gaussian", sigma=0.0)
    with pytest.raises(ValueError, match='must be "linear" or "gaussian", is'):
        soft_nms(boxes, scores, method="hard")


def test_is_a_well_formed_op(compiled):
    boxes, scores = crowd(20, compiled)
    idxs = torch.randint(3, (20,), device=compiled)
    op = torch.ops.segdet.soft_nms
    torch.library.opcheck(op, (boxes, scores, None, 0.3, False, 0.5, 0.01))
    torch.library.opcheck(op, (boxes, scores, idxs, 0.3, True, 0.5, 0.01))


class Lowered(torch.nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor) -> Tensor:
        index, lowered = soft_nms(boxes, scores)
        return (boxes[index] * lowered[:, None]).sum(0)


@pytest.mark.slow
def test_compile_and_export_without_graph_breaks(compiled):
    args = crowd(50, compiled)
    whole = torch.compile(Lowered(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(whole(*args), Lowered()(*args))
    torch.testing.assert_close(torch.export.export(Lowered(), args).module()(*args), whole(*args))
