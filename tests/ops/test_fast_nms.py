import math

import pytest
import torch
from torch import Tensor

from segdet.ops import cross_class_fast_nms, fast_nms, plain_nms
from tests.ops.threads import check_same_bits


def fast_nms_by_definition(
    boxes: Tensor, scores: Tensor, threshold: float, top_k: int, most: int
) -> list[tuple[int, int]]:
    """(class, box) of those that overlap none of the better ones of their class."""
    iou = plain_nms.pairwise_iou(boxes.double(), boxes.double()).nan_to_num().tolist()
    found: list[tuple[float, int, int, int]] = []
    for of_class, row in enumerate(scores.double().tolist()):
        best = sorted(range(len(row)), key=lambda i: (-row[i], i))[:top_k]
        for rank, i in enumerate(best):
            if all(iou[j][i] <= threshold for j in best[:rank]):
                found.append((-row[i], of_class, rank, i))
    return [(of_class, i) for _, of_class, _, i in sorted(found)[:most]]


def crowd(n: int, classes: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Boxes in heaps of about ten, whose corners are multiples of 1/4; some equal scores."""
    centre = torch.rand(n // 10 + 1, 2).mul(100).repeat_interleave(10, dim=0)[:n]
    centre += torch.randn(n, 2) * 3
    side = torch.rand(n, 2) * 12 + 4
    boxes = torch.cat([centre - side / 2, centre + side / 2], dim=1).mul(4).round().div(4)
    return boxes.to(device), torch.randint(1000, (classes, n)).div(1000).to(device)


@pytest.mark.parametrize("n, classes", [(0, 3), (1, 1), (40, 0), (17, 4), (200, 9)])
@pytest.mark.parametrize("top_k, most", [(200, 100), (50, 1000), (0, 100), (30, 0)])
def test_matches_definition(implementation, device, n, classes, top_k, most):
    boxes, scores = crowd(n, classes, device)
    expected = fast_nms_by_definition(boxes, scores, 0.31, top_k, most)
    index, of_class, kept_scores = fast_nms(boxes, scores, 0.31, top_k, most)
    assert list(zip(of_class.tolist(), index.tolist(), strict=True)) == expected
    assert torch.equal(kept_scores, scores[of_class, index])


@pytest.mark.parametrize("n", [0, 1, 150])
def test_cross_class_takes_each_box_in_its_best_class(implementation, device, n):
    boxes, scores = crowd(n, 5, device)
    best, classes = scores.max(0)
    expected = fast_nms_by_definition(boxes, best[None], 0.31, 100, 100)
    index, of_class, kept_scores = cross_class_fast_nms(boxes, scores, 0.31, 100)
    assert index.tolist() == [i for _, i in expected]
    assert torch.equal(of_class, classes[index])
    assert torch.equal(kept_scores, best[index])


def test_dropped_boxes_still_drop_others(implementation, device):
    boxes = torch.tensor([[0, 0, 0.4, 0.4], [0.12, 0, 0.52, 0.4], [0.24, 0, 0.64, 0.4]])
    scores = torch.tensor([[0.9, 0.8, 0.7]])
    assert fast_nms(boxes.to(device), scores.to(device), 0.5)[0].tolist() == [0]


def test_overlap_at_the_threshold_stays_and_empty_boxes_drop_nothing(implementation, device):
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [3, 3, 3, 3], [3, 3, 3, 3]])
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6]])
    assert fast_nms(boxes.to(device), scores.to(device), 0.5)[0].tolist() == [0, 1, 2, 3]


def test_the_threshold_is_not_rounded(implementation, device):
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, 3, 1]], device=device)
    scores = torch.tensor([[1.0, 0.5]], device=device)
    assert fast_nms(boxes, scores, 0.3)[0].tolist() == [0]  # 3 / 10 is above 0.3 in float32


def test_what_is_not_finite_does_no_harm(compiled):
    boxes, scores = crowd(60, 3, compiled)
    boxes[::3, 1] = math.nan
    boxes[1::3] = torch.tensor([-math.inf, -math.inf, math.inf, math.inf])
    scores[0, ::7] = math.nan
    index, of_class, kept = fast_nms(boxes, scores, 0.5, 60, 1000)
    bad = (torch.arange(60, device=compiled) % 3 != 2).nonzero()[:, 0]
    for c in range(3):
        assert set(bad.tolist()) <= set(index[of_class == c].tolist())
    assert kept[: len(scores[0, ::7])].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(implementation, device, dtype):
    boxes, scores = crowd(60, 3, device)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    index, of_class, kept = fast_nms(boxes, scores, 0.31, 60, 100)
    assert kept.dtype == dtype
    expected = fast_nms_by_definition(boxes, scores, 0.31, 60, 100)
    assert list(zip(of_class.tolist(), index.tolist(), strict=True)) == expected


def test_strided_inputs_and_gradients_of_scores(implementation, device):
    boxes, scores = crowd(40, 4, device)
    leaf = scores.T.contiguous().requires_grad_()  # (N, K), as a network gives them
    index, of_class, kept = fast_nms(boxes.T.contiguous().T, leaf.T, 0.31)
    assert torch.equal(index, fast_nms(boxes, scores, 0.31)[0])
    (grad,) = torch.autograd.grad(kept.sum(), leaf)
    assert grad.sum() == len(kept)
    assert (grad[index, of_class] == 1).all()


def test_any_number_of_threads_gives_the_same(compiled):
    args = crowd(300, 40, compiled)
    check_same_bits(lambda: fast_nms(*args, 0.5))


def test_refusals(implementation, device):
    boxes, scores = crowd(3, 2, device)
    with pytest.raises(RuntimeError, match=r"fast_nms: boxes must be \(N, 4\), has"):
        fast_nms(boxes[:, :3], scores, 0.5)
    with pytest.raises(RuntimeError, match=r"fast_nms: scores must be \(K, N\) with N = 3, has"):
        fast_nms(boxes, scores[:, :2], 0.5)
    with pytest.raises(RuntimeError, match="must be >= 0, are -1 and 5"):
        fast_nms(boxes, scores, 0.5, -1, 5)


def test_is_a_well_formed_op(compiled):
    boxes, scores = crowd(20, 3, compiled)
    torch.library.opcheck(torch.ops.segdet.fast_nms, (boxes, scores, 0.5, 10, 8))


class Detections(torch.nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor) -> Tensor:
        index, classes, kept = fast_nms(boxes, scores, 0.5)
        across = cross_class_fast_nms(boxes, scores, 0.5)[2]
        return (boxes[index] * (kept + classes)[:, None]).sum(0) + across.sum()


@pytest.mark.slow
def test_compile_and_export_without_graph_breaks(compiled):
    args = crowd(50, 4, compiled)
    whole = torch.compile(Detections(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(whole(*args), Detections()(*args))
    exported = torch.export.export(Detections(), args).module()
    torch.testing.assert_close(exported(*args), whole(*args))
