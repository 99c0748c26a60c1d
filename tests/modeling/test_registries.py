"""Plug-ins as detectron2's users write them."""

import pytest
import torch
from torch import nn

from segdet.config import CfgNode, configurable, get_cfg
from segdet.errors import ConfigError
from segdet.layers import Losses, ShapeSpec
from segdet.modeling import (
    BACKBONE_REGISTRY,
    FPN,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    RPN_HEAD_REGISTRY,
    SYSTEMS,
    Backbone,
    build_backbone,
    build_model,
)
from segdet.modeling.backbones import BACKBONES, BackboneConfig, BackboneSections
from segdet.modeling.meta_arch import OFFICIAL_NAMES
from segdet.modeling.roi_heads import StandardROIHeads
from segdet.structures import BitMasks, Boxes, ImageList, Instances

REGISTRIES = (
    *(BACKBONE_REGISTRY, META_ARCH_REGISTRY, PROPOSAL_GENERATOR_REGISTRY, ROI_BOX_HEAD_REGISTRY),
    *(ROI_HEADS_REGISTRY, ROI_MASK_HEAD_REGISTRY, RPN_HEAD_REGISTRY),
)


@pytest.fixture(autouse=True)
def _tables_as_before():
    tables = [BACKBONES, SYSTEMS, *(one._objects for one in REGISTRIES)]
    before, rows = [dict(table) for table in tables], list(OFFICIAL_NAMES)
    yield
    OFFICIAL_NAMES[:] = rows
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)


class ToyBackbone(Backbone):
    def __init__(self, cfg, input_shape: ShapeSpec):
        super().__init__()
        self.conv1 = nn.Conv2d(input_shape.channels, cfg.TOY.WIDTH, 7, stride=16, padding=3)
        self._out_features = ["toy"]
        self._out_feature_channels = {"toy": cfg.TOY.WIDTH}
        self._out_feature_strides = {"toy": 16}

    def forward(self, image):
        return {"toy": self.conv1(image)}


class ToyHeads(nn.Module):
    """One box a proposal, by detectron2's calls."""

    @configurable
    def __init__(self, *, width: int, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self.score = nn.Linear(width, num_classes)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        return {
            "width": input_shape["toy"].channels,
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        }

    def forward(self, images, features, proposals, targets=None):
        del images
        logits = self.score(features["toy"].mean((2, 3)))
        if self.training:
            assert targets is not None
            return proposals, {"loss_toy": logits.square().mean()}
        found = []
        for p, row in zip(proposals, logits, strict=True):
            one = Instances(p.image_size)
            one.pred_boxes = p.proposal_boxes[:2]
            one.scores, one.pred_classes = row[:2].sigmoid(), torch.arange(2)
            found.append(one)
        return found, {}


@pytest.fixture
def cfg():
    cfg = get_cfg()
    cfg.TOY = CfgNode({"WIDTH": 8})
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "ToyBackbone"
    cfg.MODEL.RPN.IN_FEATURES = ["toy"]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["toy"]
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 1, 16
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 2
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    BACKBONE_REGISTRY.register()(ToyBackbone)
    return cfg


def batch():
    targets = Instances((64, 80))
    targets.gt_boxes = Boxes(torch.tensor([[5.0, 5, 40, 50]]))
    targets.gt_classes = torch.tensor([1])
    targets.gt_masks = BitMasks(torch.ones(1, 64, 80, dtype=torch.bool))
    return [{"image": torch.randint(0, 256, (3, 64, 80)), "instances": targets}]


def train_and_predict(model):
    losses = model.train()(batch())
    sum(losses.values()).backward()
    model.eval()
    with torch.no_grad():
        return losses, model(batch())[0]["instances"]


def test_a_backbone_class(cfg):
    assert isinstance(build_backbone(cfg), ToyBackbone)
    assert build_backbone(cfg, ShapeSpec(channels=1)).conv1.in_channels == 1
    model = build_model(cfg)
    losses, found = train_and_predict(model)
    assert "loss_rpn_cls" in losses and len(found) > 0
    assert model.backbone.conv1.weight.grad is not None


def test_a_backbone_function(cfg):
    @BACKBONE_REGISTRY.register()
    def build_toy_fpn_backbone(cfg, input_shape):
        bottom_up = ToyBackbone(cfg, input_shape)
        return FPN(
            bottom_up=bottom_up, in_features=["toy"], out_channels=4, norm="", top_block=None
        )

    cfg.MODEL.BACKBONE.NAME = "build_toy_fpn_backbone"
    assert list(build_backbone(cfg).output_shape()) == ["p4"]


def test_a_whole_model(cfg):
    @META_ARCH_REGISTRY.register()
    class ToyModel(nn.Module):
        @configurable
        def __init__(self, *, backbone, scale):
            super().__init__()
            self.backbone, self.scale = backbone, scale

        @classmethod
        def from_config(cls, cfg):
            return {"backbone": build_backbone(cfg), "scale": cfg.TOY.WIDTH}

        def forward(self, batched_inputs):
            images = ImageList.from_tensors([x["image"].float() for x in batched_inputs])
            return {"loss": self.backbone(images.tensor)["toy"].mean() * self.scale}

    cfg.MODEL.META_ARCHITECTURE = "ToyModel"
    model = build_model(cfg)
    assert isinstance(model, ToyModel) and model.scale == 8
    model(batch())["loss"].backward()
    assert "ToyModel" in META_ARCH_REGISTRY and META_ARCH_REGISTRY.get("ToyModel") is ToyModel
    get_cfg()  # which gathers the sections of all systems


def test_roi_heads(cfg):
    ROI_HEADS_REGISTRY.register(ToyHeads)
    cfg.MODEL.ROI_HEADS.NAME = "ToyHeads"
    model = build_model(cfg)
    assert isinstance(model.roi_heads, ToyHeads)
    losses, found = train_and_predict(model)
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc", "loss_toy"}
    assert len(found) == 2
    assert "roi_heads.score.weight" in model.state_dict()
    get_cfg()


def test_roi_heads_that_change_a_method_of_ours(cfg):
    @ROI_HEADS_REGISTRY.register()
    class HalvedHeads(StandardROIHeads):
        def losses(self, features, proposals, targets):
            losses = super().losses(features, proposals, targets)
            return Losses({name: value / 2 for name, value in losses.items()})

    cfg.MODEL.ROI_HEADS.NAME = "HalvedHeads"
    model = build_model(cfg)
    assert isinstance(model.roi_heads, HalvedHeads)
    losses, found = train_and_predict(model)
    assert "loss_box_reg" in losses and len(found) > 0


def test_a_box_head(cfg):
    @ROI_BOX_HEAD_REGISTRY.register()
    class ToyBoxHead(nn.Module):
        def __init__(self, cfg, input_shape: ShapeSpec):
            super().__init__()
            assert (input_shape.channels, input_shape.height, input_shape.width) == (8, 2, 2)
            self.fc = nn.Linear(8 * 4, 12)

        @property
        def output_shape(self):
            return ShapeSpec(channels=12)

        def forward(self, x):
            return self.fc(x.flatten(1))

    cfg.MODEL.ROI_BOX_HEAD.NAME, cfg.MODEL.ROI_BOX_HEAD.NUM_FC = "ToyBoxHead", 0
    cfg.freeze()
    model = build_model(cfg)
    train_and_predict(model)
    assert model.roi_heads.box_predictor.cls_score.in_features == 12
    assert model.roi_heads.box_head.fc.weight.grad is not None


def test_a_mask_head(cfg):
    @ROI_MASK_HEAD_REGISTRY.register()
    class ToyMaskHead(nn.Module):
        def __init__(self, cfg, input_shape: ShapeSpec):
            super().__init__()
            self.conv = nn.Conv2d(input_shape.channels, cfg.MODEL.ROI_HEADS.NUM_CLASSES, 1)

        def layers(self, x):
            return self.conv(x)

        def forward(self, x, instances):
            raise AssertionError("detectron2's own call")

    cfg.MODEL.MASK_ON, cfg.MODEL.ROI_MASK_HEAD.NAME = True, "ToyMaskHead"
    losses, found = train_and_predict(build_model(cfg))
    assert "loss_mask" in losses and found.pred_masks.shape[1:] == (64, 80)


def test_an_rpn_head(cfg):
    @RPN_HEAD_REGISTRY.register()
    class ToyRPNHead(nn.Module):
        def __init__(self, cfg, input_shape: list[ShapeSpec]):
            super().__init__()
            self.logits = nn.Conv2d(input_shape[0].channels, 15, 1)
            self.deltas = nn.Conv2d(input_shape[0].channels, 60, 1)

        def forward(self, features):
            return [self.logits(x) for x in features], [self.deltas(x) for x in features]

    cfg.MODEL.RPN.HEAD_NAME = "ToyRPNHead"
    model = build_model(cfg)
    train_and_predict(model)
    assert model.proposal_generator.rpn_head.logits.weight.grad is not None


def test_a_proposal_generator(cfg):
    @PROPOSAL_GENERATOR_REGISTRY.register()
    class WholeImage(nn.Module):
        def __init__(self, cfg, input_shape: dict[str, ShapeSpec]):
            super().__init__()

        def forward(self, images, features, gt_instances=None):
            proposals = []
            for height, width in images.image_sizes:
                one = Instances((height, width))
                one.proposal_boxes = Boxes(torch.tensor([[0.0, 0, width, height]]))
                one.objectness_logits = torch.zeros(1)
                proposals.append(one)
            return proposals, {}

    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "WholeImage"
    losses, found = train_and_predict(build_model(cfg))
    assert set(losses) == {"loss_cls", "loss_box_reg"} and len(found) > 0


@pytest.mark.parametrize(
    "registry, taken",
    [
        (BACKBONE_REGISTRY, "build_resnet_fpn_backbone"),
        (META_ARCH_REGISTRY, "MaskRCNN"),
        (ROI_HEADS_REGISTRY, "StandardROIHeads"),
    ],
)
def test_a_name_of_ours_is_taken(registry, taken):
    with pytest.raises(ConfigError, match=f"has '{taken}' already"):
        registry.register(type(taken, (), {}))


def test_a_name_is_taken_once_registered(cfg):
    with pytest.raises(ConfigError, match="BACKBONE has 'ToyBackbone' already"):
        BACKBONE_REGISTRY.register(ToyBackbone)


def test_nothing_of_ours_is_registered():
    assert all(not list(registry) for registry in REGISTRIES)


def test_an_unknown_name_gets_the_nearest(cfg):
    cfg.MODEL.BACKBONE.NAME = "ToyBackbon"
    with pytest.raises(ConfigError, match="did you mean ToyBackbone"):
        build_backbone(cfg)


def test_a_section_made_by_hand_has_no_config_for_plugins(cfg):
    with pytest.raises(ConfigError, match="BackboneSections was not read from a config"):
        BackboneSections(backbone=BackboneConfig(name="ToyBackbone")).build_backbone()
