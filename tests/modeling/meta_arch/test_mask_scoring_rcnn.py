from pathlib import Path

import pytest
import torch

from segdet.errors import ConfigError
from segdet.modeling import build_model
from segdet.modeling.maskiou_head import maskiou_loss
from segdet.structures import Boxes, PolygonMasks, Proposals, Targets

ROOT = Path(__file__).resolve().parents[3]
NAME = "MaskScoringRCNN"


@pytest.fixture
def cfg(tiny_cfg):
    return tiny_cfg(NAME)


@pytest.mark.parametrize("key", ["MASK_ON", "MASKIOU_ON"])
def test_what_it_is_about_cannot_be_off(cfg, key):
    cfg.MODEL.META_ARCHITECTURE = NAME
    cfg.MODEL[key] = False
    with pytest.raises(ConfigError, match="needs MASK_ON and MASKIOU_ON: True"):
        build_model(cfg)


@torch.no_grad()
def test_only_mask_scores_are_added_to_mask_rcnns_results(cfg, tiny_cfg, image):
    scoring, plain = build_model(cfg).eval(), build_model(tiny_cfg("MaskRCNN")).eval()
    weights = scoring.state_dict()
    names = plain.state_dict().keys()
    extra = [name for name in weights if name not in names]
    assert extra and all(name.startswith("roi_heads.maskiou_head.") for name in extra)
    plain.load_state_dict({name: weights[name] for name in names})
    batch = [image(), image(size=(50, 70))]
    for one, other in zip(scoring(batch), plain(batch), strict=True):
        ours, theirs = one["instances"].get_fields(), other["instances"].get_fields()
        scores = ours.pop("mask_scores")
        assert len(scores) == len(ours["scores"]) > 0 and scores.isfinite().all()
        assert torch.equal(ours.pop("pred_boxes").tensor, theirs.pop("pred_boxes").tensor)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@torch.no_grad()
def test_mask_scores_follow_the_head(cfg, image):
    model = build_model(cfg).eval()
    last = model.roi_heads.maskiou_head.maskiou
    last.weight.zero_()
    last.bias.copy_(torch.tensor([0.5, -1.0, 2.0]))
    found = model([image()])[0]["instances"]
    torch.testing.assert_close(found.mask_scores, found.scores * last.bias[found.pred_classes])


@torch.no_grad()
def test_nothing_found_has_no_mask_scores_either(cfg, image):
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 2.0
    for result in build_model(cfg).eval()([image(), image()]):
        assert result["instances"].mask_scores.shape == (0,)


def test_the_loss_reaches_masks_and_backbone_through_the_head(cfg, image):
    """As in the official code, masks are not detached."""
    model = build_model(cfg)
    torch.nn.init.normal_(model.roi_heads.maskiou_head.maskiou.weight)
    model([image((5, 5, 40, 50))])["loss_maskiou"].backward()
    for part in (model.roi_heads.mask_head, model.backbone):
        grads = [p.grad for p in part.parameters() if p.grad is not None]
        assert grads and any(grad.any() for grad in grads)
    assert all(p.grad is None for p in model.proposal_generator.parameters())


def test_the_loss_has_its_weight(cfg, image):
    one, losses = image((5, 5, 40, 50)), []
    for weight in (1.0, 3.0):
        cfg.MODEL.MASKIOU_LOSS_WEIGHT = weight
        torch.manual_seed(0)
        losses.append(build_model(cfg)([one])["loss_maskiou"].item())
    assert losses[1] == pytest.approx(3 * losses[0]) and losses[0] > 0


def test_targets_see_the_whole_object(cfg, monkeypatch):
    """A region that shows half of its object cannot reach an IoU above a half."""
    seen = []

    def spy(ious, target_ious, *others):
        seen.append(target_ious)
        return maskiou_loss(ious, target_ious, *others)

    module = "segdet.modeling.maskiou_head"
    monkeypatch.setattr(f"{module}.maskiou_loss", spy)
    monkeypatch.setattr(f"{module}.own_masks", lambda _, x, c: torch.ones(len(x), 1, 28, 28))
    heads = build_model(cfg).roi_heads
    polygon = [[0.0, 0, 40, 0, 40, 20, 0, 20]]
    p = Proposals((64, 80), proposal_boxes=Boxes(torch.tensor([[0.0, 0, 20, 20], [0, 0, 40, 20]])))
    p.gt_index, p.gt_classes = torch.zeros(2).long(), torch.zeros(2).long()
    maps = [torch.zeros(1, 16, 64 // s, 80 // s) for s in (4, 8, 16, 32)]
    heads._mask_losses(maps, [p], [Targets((64, 80), gt_masks=PolygonMasks([polygon]))])
    assert seen[0].tolist() == pytest.approx([0.5, 1.0])


def test_masks_of_all_classes_in_one_channel_are_graded(cfg, image):
    cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = True
    model = build_model(cfg)
    one = image((5, 5, 40, 50))
    assert model([one])["loss_maskiou"] > 0
    found = model.eval()([one])[0]["instances"]
    assert found.mask_scores.isfinite().all() and len(found) > 0
