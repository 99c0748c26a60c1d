import pytest
import torch

from segdet.errors import ConfigError
from segdet.modeling import build_model


@torch.no_grad()
def test_results_are_the_rpns_proposals_at_the_asked_size(tiny_cfg, image):
    model = build_model(tiny_cfg("ProposalNetwork")).eval()
    inputs = [image()]
    images = model.preprocess_image(inputs)
    expected = model.proposal_generator.predict(images, model.backbone(images.tensor))[0]
    found = model(inputs)[0]["proposals"]
    scale = torch.tensor([100 / 80, 128 / 64] * 2)
    torch.testing.assert_close(found.proposal_boxes.tensor, expected.proposal_boxes.tensor * scale)
    assert found.objectness_logits.tolist() == expected.objectness_logits.tolist()


def test_precomputed_proposals_are_refused(tiny_cfg):
    cfg = tiny_cfg("ProposalNetwork")
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"
    with pytest.raises(ConfigError, match="leaves a ProposalNetwork no work"):
        build_model(cfg)
