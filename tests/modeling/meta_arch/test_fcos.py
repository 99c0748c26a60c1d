from pathlib import Path

import pytest
import torch

from segdet.errors import ConfigError
from segdet.modeling import build_model
from segdet.modeling.fcos import FCOS
from segdet.modeling.meta_arch import OneStageDetector

ROOT = Path(__file__).resolve().parents[3]
LOSSES = {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"}


def tiny(tiny_cfg, *opts):
    cfg = tiny_cfg("FCOS")
    cfg.merge_from_list(list(opts))
    torch.manual_seed(0)
    return build_model(cfg)


def test_the_official_name_and_ours_build_it(tiny_cfg):
    for name in ("OneStageDetector", "FCOS"):
        model = tiny(tiny_cfg, "MODEL.META_ARCHITECTURE", name)
        assert isinstance(model, OneStageDetector)
        assert isinstance(model.proposal_generator, FCOS)


def test_it_takes_no_other_proposal_generator(tiny_cfg):
    with pytest.raises(ConfigError, match=r"PROPOSAL_GENERATOR.NAME FCOS, which is 'RPN'"):
        tiny(tiny_cfg, "MODEL.PROPOSAL_GENERATOR.NAME", "RPN")


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("MASK_ON", True, "MASK_ON is True, but FCOS finds no masks"),
        ("KEYPOINT_ON", True, "KEYPOINT_ON is True, but FCOS finds no keypoints"),
        ("FCOS.SIZES_OF_INTEREST", [64, 32], "SIZES_OF_INTEREST must be ascending"),
        ("FCOS.POS_RADIUS", 0.0, "POS_RADIUS must be > 0, is 0"),
    ],
)
def test_settings_that_it_cannot_follow_are_refused(tiny_cfg, key, value, message):
    with pytest.raises(ConfigError, match=message):
        tiny(tiny_cfg, f"MODEL.{key}", value)


def test_a_box_head_and_a_proposal_network_refuse_its_detections(tiny_cfg):
    for system, message in (("MaskRCNN", "a box head"), ("ProposalNetwork", "a ProposalNetwork")):
        cfg = tiny_cfg(system)
        fcos = tiny_cfg("FCOS").MODEL
        cfg.MODEL.PROPOSAL_GENERATOR.NAME = "FCOS"
        cfg.MODEL.BACKBONE.NAME, cfg.MODEL.FCOS = fcos.BACKBONE.NAME, fcos.FCOS
        with pytest.raises(ConfigError, match=f"FCOS finds detections, which {message}"):
            build_model(cfg)


@pytest.mark.parametrize("top_levels, levels", [(0, 3), (1, 4), (2, 5)])
def test_levels_above_p5(tiny_cfg, image, top_levels, levels):
    model = tiny(
        tiny_cfg,
        *("MODEL.FCOS.TOP_LEVELS", top_levels),
        *("MODEL.FCOS.IN_FEATURES", [f"p{k}" for k in range(3, 3 + levels)]),
        *("MODEL.FCOS.FPN_STRIDES", [2**k for k in range(3, 3 + levels)]),
        *("MODEL.FCOS.SIZES_OF_INTEREST", [2**k for k in range(6, 5 + levels)]),
    )
    tops = {n.split(".")[2] for n in model.state_dict() if n.startswith("backbone.top_block.")}
    assert tops == {f"p{k}" for k in range(6, 3 + levels)}
    assert set(model.train()([image((5, 5, 40, 50))])) == LOSSES
    with pytest.raises(ConfigError, match="TOP_LEVELS must be 0, 1 or 2, is 3"):
        tiny(tiny_cfg, "MODEL.FCOS.TOP_LEVELS", 3)


@pytest.mark.parametrize("body", ["build_fcos_mobilenetv2_fpn_backbone", "MOBILENET"])
def test_a_mobilenet_body(tiny_cfg, image, body):
    opts = ["MODEL.MOBILENET", True] if body == "MOBILENET" else ["MODEL.BACKBONE.NAME", body]
    model = tiny(tiny_cfg, *opts)
    assert any(name.startswith("backbone.bottom_up.features.") for name in model.state_dict())
    assert model.eval()([image()])[0]["instances"].image_size == (128, 100)


def test_batch_norms_of_the_towers_train_and_predict(tiny_cfg, image):
    model = tiny(tiny_cfg, "MODEL.FCOS.NORM", "BN")
    batch = [image((5, 5, 40, 50)), image((0, 0, 30, 30))]
    model.train()(batch).total().backward()
    norm = model.proposal_generator.fcos_head.cls_tower[1]
    assert [int(level.num_batches_tracked) for level in norm] == [1] * 5
    names = {f"proposal_generator.fcos_head.cls_tower.1.{k}.running_var" for k in range(5)}
    assert names <= set(model.state_dict())
    assert len(model.eval()(batch)) == 2


def test_the_metrics_say_what_the_quality_loss_cannot_go_below(tiny_cfg, image):
    losses = tiny(tiny_cfg).train()([image((5, 5, 40, 50))])
    assert losses.metrics["fcos/num_pos_locations"] > 0
    assert 0 < losses.metrics["fcos/ctr_floor"] < losses["loss_fcos_ctr"]
