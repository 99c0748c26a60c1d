import math

import pytest
import torch
from torch import Tensor

from segdet.ops import batched_nms, nms, plain_nms


def nms_by_definition(boxes: Tensor, scores: Tensor, idxs: Tensor, threshold: float) -> list[int]:
    """Walk down the scores; keep what overlaps nothing kept of its class."""
    kept: list[int] = []
    coordinates, classes = boxes.double().tolist(), idxs.tolist()
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i].item(), i)):
        x1, y1, x2, y2 = coordinates[i]
        for k in kept:
            if classes[k] != classes[i]:
                continue
            u1, v1, u2, v2 = coordinates[k]
            inter = max(min(x2, u2) - max(x1, u1), 0) * max(min(y2, v2) - max(y1, v1), 0)
            union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - inter
            if union != 0 and inter / union > threshold:
                break
        else:
            kept.append(i)
    return kept


def crowd(n: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Boxes in heaps of about ten, whose corners are multiples of 1/4; distinct scores."""
    centre = torch.rand(n // 10 + 1, 2).mul(100).repeat_interleave(10, dim=0)[:n]
    centre += torch.randn(n, 2) * 3
    side = torch.rand(n, 2) * 12 + 4
    boxes = torch.cat([centre - side / 2, centre + side / 2], dim=1)
    return boxes.mul(4).round().div(4).to(device), torch.randperm(n).float().to(device)


@pytest.mark.parametrize("n", [0, 1, 17, 300])
@pytest.mark.parametrize("threshold", [0.0, 0.31, 0.71, 1.0])
def test_matches_definition(implementation, device, n, threshold):
    boxes, scores = crowd(n, device)
    expected = nms_by_definition(boxes, scores, torch.zeros(n), threshold)
    kept = nms(boxes, scores, threshold)
    assert kept.dtype == torch.int64
    assert kept.tolist() == expected


@pytest.mark.parametrize("n", [0, 1, 17, 300])
def test_batched_matches_definition(implementation, device, n):
    boxes, scores = crowd(n, device)
    idxs = torch.randint(-2, 5, (n,), device=device)
    kept = batched_nms(boxes, scores, idxs, 0.31)
    assert kept.tolist() == nms_by_definition(boxes, scores, idxs, 0.31)


def test_many_boxes(compiled):
    boxes, scores = crowd(5000, compiled)  # more than CUDA compares at once
    idxs = torch.randint(2, (5000,), device=compiled)
    assert torch.equal(nms(boxes, scores, 0.5), plain_nms.greedy(boxes, scores, 0.5))
    expected = plain_nms.class_by_class(
        lambda boxes, scores: plain_nms.greedy(boxes, scores, 0.5), boxes, scores, idxs
    )
    assert torch.equal(batched_nms(boxes, scores, idxs, 0.5), expected)


def test_overlap_at_the_threshold_stays(implementation, device):
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5]], device=device)
    scores = torch.tensor([1.0, 0.5], device=device)
    assert nms(boxes, scores, 0.5).tolist() == [0, 1]
    assert nms(boxes, scores, 0.4999).tolist() == [0]


def test_the_threshold_is_not_rounded(implementation, device):
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, 3, 1]], device=device)
    scores = torch.tensor([1.0, 0.5], device=device)
    assert nms(boxes, scores, 0.3).tolist() == [0]  # 3 / 10 is above 0.3 in float32
    assert nms(boxes, scores, 0.30000002).tolist() == [0, 1]


def test_of_equal_scores_the_first_wins(implementation, device):
    boxes = torch.tensor([[0.0, 0, 10, 10]] * 40 + [[50.0, 50, 60, 60]] * 40, device=device)
    assert nms(boxes, torch.ones(80, device=device), 0.5).tolist() == [0, 40]


def test_scores_that_only_float64_tells_apart(implementation, device):
    boxes = torch.tensor([[0.0, 0, 10, 10]] * 2, device=device)
    scores = torch.tensor([1, 1 + 1e-12], dtype=torch.float64, device=device)
    assert nms(boxes, scores, 0.5).tolist() == [1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_many_scores_of_all_kinds_sort_as_in_torch(compiled, dtype):
    scores = torch.randn(6000, device=compiled)
    odd = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-45, -1e-45, 1.0]
    scores[::5] = torch.tensor(odd, device=compiled).repeat(150)
    scores = scores.to(dtype)
    apart = torch.arange(6000.0, device=compiled)[:, None] * 2 + torch.tensor(
        [0.0, 0, 1, 1], device=compiled
    )
    expected = scores.argsort(descending=True, stable=True)
    assert torch.equal(nms(apart, scores, 0.5), expected)


def test_touching_boxes_do_not_overlap(implementation, device):
    boxes = torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10]], device=device)
    assert nms(boxes, torch.tensor([1.0, 0.5], device=device), 0.0).tolist() == [0, 1]


def test_negative_threshold_drops_boxes_that_do_not_meet(implementation, device):
    boxes = torch.arange(40.0, device=device)[:, None] * 20 + torch.tensor(
        [0.0, 0, 10, 10], device=device
    )
    assert nms(boxes, torch.arange(40.0, device=device), -0.1).tolist() == [39]


def test_empty_boxes_drop_nothing(implementation, device):
    point = torch.tensor([[5.0, 5, 5, 5]] * 3, device=device)
    assert nms(point, torch.tensor([1.0, 3, 2], device=device), 0.0).tolist() == [1, 2, 0]


def test_boxes_that_are_not_finite_do_no_harm(compiled):
    boxes, scores = crowd(60, compiled)
    boxes[::3, 1] = math.nan
    boxes[1::3] = torch.tensor([-math.inf, -math.inf, math.inf, math.inf])
    expected = set(range(0, 60, 3)) | set(range(1, 60, 3))  # they overlap nothing that counts
    assert expected <= set(nms(boxes, scores, 0.5).tolist())


def test_classes_with_negative_coordinates_do_not_mix(implementation, device):
    # Moving classes apart by the largest coordinate plus one, 11, puts the second on the first.
    boxes = torch.tensor([[0.0, 0, 10, 10], [-11, -11, -1, -1]], device=device)
    scores, idxs = torch.tensor([1.0, 0.5], device=device), torch.tensor([0, 1], device=device)
    assert batched_nms(boxes, scores, idxs, 0.5).tolist() == [0, 1]


def test_large_class_numbers_cost_no_precision(implementation, device):
    boxes = torch.tensor([[0.0, 0, 1, 1], [0.2, 0, 1.2, 1]], device=device)  # IoU 2 / 3
    scores, idxs = torch.tensor([1.0, 0.5], device=device), torch.full((2,), 2**40, device=device)
    assert batched_nms(boxes, scores, idxs, 0.66).tolist() == [0]
    assert batched_nms(boxes, scores, idxs, 0.67).tolist() == [0, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(implementation, device, dtype):
    boxes, scores = crowd(100, device)
    boxes, idxs = boxes.to(dtype) * 8, torch.zeros(100, dtype=torch.int32, device=device)
    expected = nms_by_definition(boxes, scores, idxs, 0.51)
    assert nms(boxes, scores.to(dtype), 0.51).tolist() == expected
    assert batched_nms(boxes, scores, idxs, 0.51).tolist() == expected


@pytest.mark.parametrize(
    "boxes, scores, message",
    [
        ((3, 5), (3,), r"boxes must be \(N, 4\), has"),
        ((4,), (1,), r"boxes must be \(N, 4\), has"),
        ((3, 4), (2,), r"scores must be \(N,\) with N = 3, has"),
        ((3, 4), (3, 1), r"scores must be \(N,\) with N = 3, has"),
    ],
)
def test_rejects_wrong_shapes(implementation, device, boxes, scores, message):
    with pytest.raises(RuntimeError, match=message):
        nms(torch.zeros(boxes, device=device), torch.zeros(scores, device=device), 0.5)


def test_rejects_classes_it_cannot_tell_apart(implementation, device):
    boxes, scores = crowd(3, device)
    with pytest.raises(RuntimeError, match=r"idxs must be \(N,\) with N = 3, has"):
        batched_nms(boxes, scores, torch.zeros(2, dtype=torch.int64, device=device), 0.5)
    with pytest.raises(RuntimeError, match="idxs must be whole numbers, is"):
        batched_nms(boxes, scores, torch.zeros(3, device=device), 0.5)


def test_are_well_formed_ops(compiled):
    boxes, scores = crowd(20, compiled)
    idxs = torch.randint(3, (20,), device=compiled)
    torch.library.opcheck(torch.ops.segdet.nms, (boxes, scores, 0.5))
    torch.library.opcheck(torch.ops.segdet.batched_nms, (boxes, scores, idxs, 0.5))


class BestBoxes(torch.nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor, idxs: Tensor) -> Tensor:
        return boxes[nms(boxes, scores, 0.5)].sum(0) + boxes[batched_nms(boxes, scores, idxs, 0.5)]


@pytest.mark.slow
def test_compile_and_export_without_graph_breaks(compiled):
    boxes, scores = crowd(50, compiled)
    args = (boxes, scores, torch.randint(3, (50,), device=compiled))
    expected = BestBoxes()(*args)
    whole = torch.compile(BestBoxes(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(whole(*args), expected)
    torch.testing.assert_close(torch.export.export(BestBoxes(), args).module()(*args), expected)
