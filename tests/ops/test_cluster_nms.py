import pytest
import torch

from segdet.ops import cluster_nms, fast_nms, nms


@pytest.mark.parametrize("n", [0, 1, 17, 300])
def test_between_fast_and_greedy(device, n):
    centre = torch.rand(n, 2) * 40
    side = torch.rand(n, 2) * 12 + 4
    boxes = torch.cat([centre - side / 2, centre + side / 2], 1).to(device)
    scores = torch.randperm(n).float().to(device)
    assert torch.equal(
        cluster_nms(boxes, scores, 0.3, 1), fast_nms(boxes, scores[None], 0.3, n, n)[0]
    )
    assert torch.equal(cluster_nms(boxes, scores, 0.3, n + 1), nms(boxes, scores, 0.3))


def test_each_iteration_lets_dropped_boxes_drop_no_more(device):
    chain = torch.tensor([[0.0, 0, 4, 4], [1, 0, 5, 4], [2, 0, 6, 4], [3, 0, 7, 4]], device=device)
    scores = torch.tensor([4.0, 3, 2, 1], device=device)
    assert cluster_nms(chain, scores, 0.5, 1).tolist() == [0]
    assert cluster_nms(chain, scores, 0.5, 2).tolist() == [0, 2, 3]
    assert cluster_nms(chain, scores, 0.5, 3).tolist() == [0, 2]
    assert cluster_nms(chain.half(), scores, 0.5, 9).tolist() == [0, 2]


def test_the_threshold_is_not_rounded(device):
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, 3, 1]], device=device)
    scores = torch.tensor([1.0, 0.5], device=device)
    kept = cluster_nms(boxes, scores, 0.3, 2)  # 3 / 10 is above 0.3 in float32
    assert kept.tolist() == nms(boxes, scores, 0.3).tolist() == [0]
