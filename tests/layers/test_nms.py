import torch

from segdet.layers import batched_nms, nms

BOXES = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [0, 0, 10, 10]])
SCORES = torch.tensor([0.5, 0.9, 0.1, 0.7])


def test_keeps_the_best_of_a_heap():
    assert nms(BOXES, SCORES, 0.5).tolist() == [1, 2]
    assert nms(BOXES, SCORES, 0.9).tolist() == [1, 3, 2]  # 0.9 is not more than 0.9


def test_groups_never_meet():
    groups = torch.tensor([0, 1, 0, 0])
    assert batched_nms(BOXES, SCORES, groups, 0.5).tolist() == [1, 3, 2]


def test_half_precision_is_widened():
    # areas of 1e6 square pixels overflow float16
    boxes = (BOXES * 100).half()
    assert nms(boxes, SCORES.half(), 0.5).tolist() == [1, 2]
    assert batched_nms(boxes, SCORES.half(), torch.zeros(4).long(), 0.5).tolist() == [1, 2]


def test_double_precision_decides():
    # IoU 0.5 + 1e-10, which float32 cannot tell from the threshold
    close = torch.tensor([[0, 0, 2, 1], [0, 0, 1 + 1e-9, 1]], dtype=torch.float64)
    scores = torch.tensor([0.9, 0.8], dtype=torch.float64)
    assert nms(close, scores, 0.5).tolist() == [0]
    assert nms(close.float(), scores.float(), 0.5).tolist() == [0, 1]


def test_no_boxes():
    nothing, groups = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
    assert nms(nothing, torch.zeros(0), 0.5).tolist() == []
    assert batched_nms(nothing, torch.zeros(0), groups, 0.5).tolist() == []
