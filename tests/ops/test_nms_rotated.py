import math

import pytest
import torch
from torch import Tensor

from segdet.ops import batched_nms, batched_nms_rotated, box_iou_rotated, nms, nms_rotated


def nms_by_definition(boxes: Tensor, scores: Tensor, idxs: Tensor, threshold: float) -> list[int]:
    """Walk down the scores; keep what overlaps nothing kept of its class."""
    kept: list[int] = []
    ious = box_iou_rotated(boxes, boxes).tolist()
    classes = idxs.tolist()
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i].item(), i)):
        if all(classes[k] != classes[i] or ious[k][i] <= threshold for k in kept):
            kept.append(i)
    return kept


def crowd(n: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Tilted boxes in heaps of about ten; distinct scores."""
    centre = torch.rand(n // 10 + 1, 2).mul(100).repeat_interleave(10, dim=0)[:n]
    centre += torch.randn(n, 2) * 3
    rest = torch.rand(n, 3) * torch.tensor([12.0, 12, 900]) + torch.tensor([4.0, 4, -450])
    return torch.cat([centre, rest], 1).to(device), torch.randperm(n).float().to(device)


@pytest.mark.parametrize("n", [0, 1, 17, 120])
@pytest.mark.parametrize("threshold", [0.0, 0.31, 1.0])
def test_matches_definition(implementation, device, n, threshold):
    boxes, scores = crowd(n, device)
    kept = nms_rotated(boxes, scores, threshold)
    assert kept.dtype == torch.int64
    assert kept.tolist() == nms_by_definition(boxes, scores, torch.zeros(n), threshold)


@pytest.mark.parametrize("n", [0, 1, 120])
def test_batched_matches_definition(implementation, device, n):
    boxes, scores = crowd(n, device)
    idxs = torch.randint(-2, 5, (n,), device=device)
    kept = batched_nms_rotated(boxes, scores, idxs, 0.21)
    assert kept.tolist() == nms_by_definition(boxes, scores, idxs, 0.21)


def test_upright_boxes_are_judged_as_by_nms(implementation, device):
    rotated, scores = crowd(120, device)
    rotated[:, :4] = rotated[:, :4].mul(4).round() / 4
    rotated[:, 4] = 0
    centre, size = rotated[:, :2], rotated[:, 2:4]
    upright = torch.cat([centre - size / 2, centre + size / 2], 1)
    idxs = torch.randint(3, (120,), device=device)
    assert torch.equal(nms_rotated(rotated, scores, 0.3), nms(upright, scores, 0.3))
    assert torch.equal(
        batched_nms_rotated(rotated, scores, idxs, 0.3), batched_nms(upright, scores, idxs, 0.3)
    )


@pytest.mark.parametrize("angle", [0.0, 90.0, 30.0])
def test_overlap_at_the_threshold_stays(implementation, device, angle):
    boxes = torch.tensor([[5.0, 5, 10, 10, angle], [5, 5, 10, 5, angle]], device=device)
    scores = torch.tensor([1.0, 0.5], device=device)
    assert nms_rotated(boxes, scores, 0.5).tolist() == [0, 1]
    assert nms_rotated(boxes, scores, 0.4999).tolist() == [0]


def test_of_equal_scores_the_first_wins(implementation, device):
    boxes = torch.tensor([[0.0, 0, 10, 10, 20]] * 40 + [[50.0, 50, 6, 6, 20]] * 40, device=device)
    assert nms_rotated(boxes, torch.ones(80, device=device), 0.5).tolist() == [0, 40]


def test_boxes_that_are_not_finite_do_no_harm(implementation, device):
    boxes, scores = crowd(60, device)
    boxes[::3, 1] = math.nan
    boxes[1::3, 2:4] = math.inf
    expected = {i for i in range(60) if i % 3 != 2}  # they overlap nothing
    assert expected <= set(nms_rotated(boxes, scores, 0.0).tolist())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(implementation, device, dtype):
    boxes, scores = crowd(60, device)
    boxes, idxs = boxes.to(dtype), torch.zeros(60, dtype=torch.int32, device=device)
    wide = boxes.double() if dtype == torch.float64 else boxes.float()
    expected = nms_by_definition(wide, scores, idxs, 0.31)
    assert nms_rotated(boxes, scores.to(dtype), 0.31).tolist() == expected
    assert batched_nms_rotated(boxes, scores, idxs, 0.31).tolist() == expected


def test_rejects_wrong_shapes(implementation, device):
    boxes, scores = crowd(3, device)
    with pytest.raises(RuntimeError, match=r"nms_rotated: boxes must be \(N, 5\), has"):
        nms_rotated(boxes[:, :4], scores, 0.5)
    with pytest.raises(RuntimeError, match=r"nms_rotated: scores must be \(N,\) with N = 3, has"):
        nms_rotated(boxes, scores[:2], 0.5)
    with pytest.raises(RuntimeError, match="idxs must be whole numbers, is"):
        batched_nms_rotated(boxes, scores, scores, 0.5)


def test_are_well_formed_ops(compiled):
    boxes, scores = crowd(20, compiled)
    idxs = torch.randint(3, (20,), device=compiled)
    torch.library.opcheck(torch.ops.segdet.nms_rotated, (boxes, scores, 0.5))
    torch.library.opcheck(torch.ops.segdet.batched_nms_rotated, (boxes, scores, idxs, 0.5))


class BestBoxes(torch.nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor, idxs: Tensor) -> Tensor:
        kept = boxes[nms_rotated(boxes, scores, 0.5)]
        return box_iou_rotated(kept, boxes[batched_nms_rotated(boxes, scores, idxs, 0.5)])


@pytest.mark.slow
def test_compile_and_export_without_graph_breaks(compiled):
    boxes, scores = crowd(50, compiled)
    args = (boxes, scores, torch.randint(3, (50,), device=compiled))
    expected = BestBoxes()(*args)
    whole = torch.compile(BestBoxes(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(whole(*args), expected)
    torch.testing.assert_close(torch.export.export(BestBoxes(), args).module()(*args), expected)
