from dataclasses import replace
from pathlib import Path

import pytest
import torch

from segdet.errors import ConfigError
from segdet.modeling import build_model
from segdet.structures import Boxes, Proposals

ROOT = Path(__file__).resolve().parents[3]
NAME = "FCIS"


@pytest.fixture
def cfg(tiny_cfg):
    return tiny_cfg(NAME)


@pytest.mark.parametrize(
    "settings, said",
    [
        (["MODEL.ROI_HEADS.IN_FEATURES", ["res4", "res5"]], "works on one map; ROI_HEADS.IN_FEAT"),
        (["MODEL.PROPOSAL_GENERATOR.NAME", "RRPN"], "needs PROPOSAL_GENERATOR.NAME RPN, is RRPN"),
        (["MODEL.MASK_ON", False], "FCIS needs MASK_ON: True"),
        (["MODEL.ROI_HEADS.IN_FEATURES", ["p3"]], "ROI_HEADS.IN_FEATURES: no feature 'p3'"),
    ],
)
def test_what_it_cannot_work_with_is_refused(cfg, settings, said):
    cfg.merge_from_list(settings)
    with pytest.raises(ConfigError, match=said):
        build_model(cfg)


def some_proposals(*boxes: tuple[float, ...], size=(64, 80)) -> Proposals:
    return Proposals(
        size,
        proposal_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)),
        objectness_logits=torch.zeros(len(boxes)),
    )


def spread(number: int) -> list[tuple[float, ...]]:
    return [(k % 30, k % 20, k % 30 + 20.0 + k % 7, k % 20 + 25.0) for k in range(number)]


@pytest.mark.parametrize("ohem", [True, False])
@pytest.mark.parametrize("proposals, kept", [(50, 8), (3, 5)])
def test_so_many_regions_are_trained_on(cfg, image, monkeypatch, ohem, proposals, kept):
    cfg.merge_from_list(["MODEL.FCIS.OHEM", ohem, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 8])
    model, seen = build_model(cfg), []
    regions = model.head.regions

    def counted(maps, boxes, classes=None):
        seen.append((torch.is_grad_enabled(), [len(b) for b in boxes]))
        return regions(maps, boxes, classes)

    monkeypatch.setattr(model.head, "regions", counted)
    batch = [image((5, 5, 40, 50), (20, 10, 60, 30))] * 2
    maps = model.head(torch.rand(2, 256, 4, 5))
    model.region_losses(maps, [some_proposals(*spread(proposals))] * 2, model.read_targets(batch))
    with_gradient = [counts for grad, counts in seen if grad]
    without = [counts for grad, counts in seen if not grad]
    assert with_gradient == [[kept, kept]]  # of all, the objects' own boxes among them
    assert without == ([[proposals + 2]] * 2 if ohem else [])


def test_the_regions_kept_are_the_hardest(cfg, image):
    """Their losses are those of all regions, cut to the largest."""
    cfg.merge_from_list(["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 8])
    model = build_model(cfg).double()
    targets = model.read_targets([image((5, 5, 40, 50))])
    maps = model.head(torch.randn(1, 256, 4, 5).double())
    proposals = some_proposals(*spread(40))
    proposals.proposal_boxes = Boxes(proposals.proposal_boxes.tensor.double())
    cut = model.region_losses(maps, [proposals], targets)
    (sampled,), _ = model.sampler([proposals], targets)
    wanted = model.loss.targets(sampled, targets[0], 3)
    scores = model.head.regions(maps, [wanted.boxes], wanted.classes)
    cls, mask, box = model.loss._of_each(scores, wanted)
    top = (cls + mask + box).topk(8).indices
    assert cut["loss_cls"].item() == pytest.approx(cls[top].mean().item())
    assert cut["loss_mask"].item() == pytest.approx(mask[top].sum().item() / 8)


@torch.no_grad()
def test_refined_boxes_are_scored_again_and_not_refined_again(cfg):
    model = build_model(cfg)
    torch.nn.init.normal_(model.head.fcis_bbox.weight)
    maps = model.head(torch.rand(1, 256, 4, 5))
    proposals = some_proposals(*spread(6))
    (found,) = model.score(maps, [proposals])
    given = proposals.proposal_boxes.tensor
    assert torch.equal(found.boxes[:6], given) and len(found.boxes) == len(found.scores) == 12
    deltas = model.head.regions(maps, [given]).deltas
    moved = Boxes(model.loss.box_transform.apply_deltas(deltas, given))
    moved.clip((64, 80))
    assert torch.equal(found.boxes[6:], moved.tensor) and not torch.equal(moved.tensor, given)
    again = model.head.regions(maps, [moved.tensor])
    torch.testing.assert_close(found.scores[6:], again.class_logits.softmax(1)[:, :3])
    torch.testing.assert_close(found.masks[6:], again.mask_logits.sigmoid())


@torch.no_grad()
def test_results_are_those_of_voting_at_the_asked_size(cfg, image):
    model, one = build_model(cfg).eval(), image()
    found = model([one])[0]["instances"]
    (regions,) = model.predict(model.preprocess_image([one]))
    expected = model.voting(regions, (128, 100))
    assert len(found) > 0 and torch.equal(found.pred_masks, expected.pred_masks)
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    alone = model.voting(replace(regions, scores=regions.scores * 0), (128, 100))
    assert len(alone) == 0


@pytest.mark.parametrize("ohem", [True, False])
@pytest.mark.parametrize("boxes", [(), ((5, 5, 40, 50),)])
def test_no_proposals_train(cfg, image, boxes, ohem):
    cfg.merge_from_list(["MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", False, "MODEL.FCIS.OHEM", ohem])
    model = build_model(cfg)
    maps = model.head(torch.rand(1, 256, 4, 5))
    losses = model.region_losses(maps, [some_proposals()], model.read_targets([image(*boxes)]))
    losses.total().backward()
    assert losses.total() == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.head.parameters())
    (found,) = model.eval().score(maps, [some_proposals()])
    assert len(model.voting(found, (64, 80))) == 0
