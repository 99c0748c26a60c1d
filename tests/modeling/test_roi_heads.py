import torch

from segdet.modeling.roi_heads import ROIHeadsConfig, select_foreground
from segdet.structures import Boxes, Proposals, Targets

K = 3


def sample(proposal_boxes, gt_boxes, gt_classes, **settings):
    proposals = Proposals(
        (100, 100),
        proposal_boxes=Boxes(torch.tensor(proposal_boxes).reshape(-1, 4)),
        objectness_logits=torch.zeros(len(proposal_boxes)),
    )
    target = Targets(
        (100, 100),
        gt_boxes=Boxes(torch.tensor(gt_boxes).reshape(-1, 4)),
        gt_classes=torch.tensor(gt_classes, dtype=torch.int64),
    )
    sampler = ROIHeadsConfig(num_classes=K, **settings).build_sampler()
    sampled, metrics = sampler([proposals], [target])
    return sampled[0], metrics


def test_ground_truth_joins_and_classes_follow_the_overlap():
    p, metrics = sample(
        [[0.0, 0, 10, 10], [0, 0, 10, 4], [50, 50, 60, 60]],
        [[0.0, 0, 10, 10], [70, 70, 90, 90]],
        [2, 0],
    )
    assert metrics == {"roi_head/num_fg_samples": 3, "roi_head/num_bg_samples": 2}
    for box, cls, gt, index in zip(
        p.proposal_boxes, p.gt_classes.tolist(), p.gt_boxes, p.gt_index.tolist(), strict=True
    ):
        if box.tolist() in ([0, 0, 10, 10],):
            assert cls == 2 and index == 0 and gt.tolist() == [0, 0, 10, 10]
        elif box.tolist() == [70, 70, 90, 90]:
            assert cls == 0 and index == 1
        else:
            assert cls == K
    assert (p.objectness_logits > 23).sum() == 2


def test_without_objects_everything_is_background():
    p, metrics = sample([[0.0, 0, 10, 10]], [], [])
    assert p.gt_classes.tolist() == [K] and not p.has("gt_boxes")
    assert metrics["roi_head/num_fg_samples"] == 0


def test_no_proposals_and_no_objects():
    p, _ = sample([], [], [])
    assert len(p) == 0 and p.gt_classes.dtype == torch.int64


def test_share_of_foreground_is_capped():
    boxes = [[0.0, 0, 10, 10]] * 20 + [[50.0, 50, 60, 60]] * 20
    p, metrics = sample(boxes, [[0.0, 0, 10, 10]], [1], batch_size_per_image=16)
    assert metrics == {"roi_head/num_fg_samples": 4, "roi_head/num_bg_samples": 12}
    assert len(select_foreground([p], K)[0]) == 4


def test_ground_truth_can_stay_out():
    p, _ = sample([[50.0, 50, 60, 60]], [[0.0, 0, 10, 10]], [1], proposal_append_gt=False)
    assert p.gt_classes.tolist() == [K]
