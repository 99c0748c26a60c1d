"""Plug-ins as detectron2's users write them."""

import pytest
import torch
from torch import nn

from segdet.config import CfgNode, configurable, get_cfg
from segdet.errors import ConfigError, DataError
from segdet.layers import Losses, ShapeSpec
from segdet.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    FPN,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_KEYPOINT_HEAD_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    RPN_HEAD_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    SYSTEMS,
    Backbone,
    GeneralizedRCNN,
    StandardROIHeads,
    build_anchor_generator,
    build_backbone,
    build_box_head,
    build_model,
    build_proposal_generator,
    build_resnet_backbone,
    build_roi_heads,
)
from segdet.modeling.backbones import BackboneConfig, BackboneSections
from segdet.modeling.keypoint_head import KRCNNConvDeconvUpsampleHead
from segdet.modeling.meta_arch import OFFICIAL_NAMES
from segdet.structures import BitMasks, Boxes, ImageList, Instances
from segdet.utils.registry import TableRegistry

REGISTRIES = (
    *(ANCHOR_GENERATOR_REGISTRY, BACKBONE_REGISTRY, META_ARCH_REGISTRY, RPN_HEAD_REGISTRY),
    *(PROPOSAL_GENERATOR_REGISTRY, ROI_BOX_HEAD_REGISTRY, ROI_HEADS_REGISTRY),
    *(ROI_KEYPOINT_HEAD_REGISTRY, ROI_MASK_HEAD_REGISTRY, SEM_SEG_HEADS_REGISTRY),
)


@pytest.fixture(autouse=True)
def _tables_as_before():
    tables = [SYSTEMS, *(one._objects for one in REGISTRIES)]
    tables += [one._table for one in REGISTRIES if isinstance(one, TableRegistry)]
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
        bottom_up = build_resnet_backbone(cfg, input_shape)
        return FPN(
            bottom_up=bottom_up, in_features=["res4"], out_channels=4, norm="", top_block=None
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


def test_roi_heads_that_add_a_part(cfg):
    @ROI_HEADS_REGISTRY.register()
    class WiderHeads(StandardROIHeads):
        def __init__(self, cfg, input_shape):
            super().__init__(cfg, input_shape)
            self.extra = nn.Linear(input_shape["toy"].channels, 1)

        def forward(self, images, features, proposals, targets=None):
            found, losses = super().forward(images, features, proposals, targets)
            if self.training:
                losses["loss_extra"] = self.extra(features["toy"].mean((2, 3))).mean()
            return found, losses

    cfg.MODEL.ROI_HEADS.NAME = "WiderHeads"
    model = build_model(cfg)
    losses, found = train_and_predict(model)
    assert {"loss_extra", "loss_cls"} <= set(losses) and len(found) > 0
    assert model.roi_heads.extra.weight.grad is not None


def test_configurable_roi_heads(cfg):
    @ROI_HEADS_REGISTRY.register()
    class ScaledHeads(StandardROIHeads):
        @configurable
        def __init__(self, *, scale, **kwargs):
            super().__init__(**kwargs)
            self.scale = scale
            self._init_weights()

        @classmethod
        def from_config(cls, cfg, input_shape):
            return {**super().from_config(cfg, input_shape), "scale": cfg.TOY.WIDTH}

        def _init_weights(self):
            nn.init.zeros_(self.box_predictor.cls_score.weight)

    cfg.MODEL.ROI_HEADS.NAME = "ScaledHeads"
    heads = build_model(cfg).roi_heads
    assert heads.scale == 8 and not heads.box_predictor.cls_score.weight.any()
    with pytest.raises(TypeError, match=r"takes \(cfg, input_shape\)"):
        StandardROIHeads()


def test_roi_heads_in_panoptic_fpn(cfg):
    ROI_HEADS_REGISTRY.register(ToyHeads)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS.NAME = "PanopticFPN", "ToyHeads"
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES, cfg.MODEL.SEM_SEG_HEAD.COMMON_STRIDE = ["toy"], 16
    assert isinstance(build_model(cfg).roi_heads, ToyHeads)


def test_roi_heads_with_a_method_that_is_never_called_are_refused(cfg):
    @ROI_HEADS_REGISTRY.register()
    class OldHeads(StandardROIHeads):
        def _forward_mask(self, features, instances):
            return {}

    cfg.MODEL.ROI_HEADS.NAME = "OldHeads"
    with pytest.raises(ConfigError, match=r"OldHeads\._forward_mask is never called"):
        build_model(cfg)


def test_a_whole_rcnn(cfg):
    @META_ARCH_REGISTRY.register()
    class MyRCNN(GeneralizedRCNN):
        def inference(self, batched_inputs, detected_instances=None, do_postprocess=True):
            assert detected_instances is None
            self.found = super().inference(batched_inputs, do_postprocess=False)
            return super().inference(batched_inputs, self.found, do_postprocess)

    cfg.MODEL.META_ARCHITECTURE = "MyRCNN"
    model = build_model(cfg)
    assert isinstance(model, MyRCNN) and model.input_format == "BGR"
    losses, found = train_and_predict(model)
    assert "loss_cls" in losses and len(found) > 0
    torch.testing.assert_close(found.scores, model.found[0].scores)


def test_the_steps_of_an_rcnn(cfg):
    model = build_model(cfg).eval()
    images = model.preprocess_image(batch())
    features = model.backbone(images.tensor)
    proposals, no_losses = model.proposal_generator(images, features)
    found, _ = model.roi_heads(images, features, proposals)
    assert not no_losses and len(found[0]) > 0
    rpn = build_proposal_generator(cfg, model.backbone.output_shape())
    assert rpn.state_dict().keys() == model.proposal_generator.state_dict().keys()
    heads = build_roi_heads(cfg, model.backbone.output_shape())
    assert heads.state_dict().keys() == model.roi_heads.state_dict().keys()


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
    model = build_model(cfg)
    train_and_predict(model)
    assert model.roi_heads.box_predictor.cls_score.in_features == 12
    assert model.roi_heads.box_head.fc.weight.grad is not None
    assert isinstance(build_box_head(cfg, ShapeSpec(channels=8)), ToyBoxHead)

    cfg.MODEL.ROI_HEADS.NAME = "CascadeROIHeads"
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    cfg.freeze()
    cascade = build_model(cfg)
    assert all(isinstance(head, ToyBoxHead) for head in cascade.roi_heads.box_head)
    assert "loss_cls_stage2" in train_and_predict(cascade)[0]


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


def test_shapes_that_are_not_known_are_refused(cfg):
    with pytest.raises(ConfigError, match="the stride of the input must be known"):
        build_anchor_generator(cfg, [ShapeSpec(channels=8)])
    with pytest.raises(ConfigError, match="the channels of the input must be known"):
        build_box_head(cfg, ShapeSpec(stride=8))
    assert build_anchor_generator(cfg, [ShapeSpec(stride=8)]).strides == (8,)


def test_an_anchor_generator(cfg):
    @ANCHOR_GENERATOR_REGISTRY.register()
    class OneSquare(nn.Module):
        box_dim, anchors_per_cell = 4, 1

        def __init__(self, cfg, input_shape: list[ShapeSpec]):
            super().__init__()
            self.strides = [one.stride for one in input_shape]

        def forward(self, features):
            assert self.strides == [16]
            cells = features[0].shape[-2:].numel()
            return [torch.tensor([[0.0, 0, 32, 32]]).repeat(cells, 1)]

    cfg.MODEL.ANCHOR_GENERATOR.NAME = "OneSquare"
    losses, _ = train_and_predict(build_model(cfg))
    assert "loss_rpn_loc" in losses


def test_a_keypoint_head(cfg):
    @ROI_KEYPOINT_HEAD_REGISTRY.register()
    class ToyKeypointHead(KRCNNConvDeconvUpsampleHead):
        def __init__(self, cfg, input_shape: ShapeSpec):
            super().__init__(input_shape.channels, 0, num_keypoints=2, conv_dims=[4])

    cfg.MODEL.KEYPOINT_ON, cfg.MODEL.ROI_KEYPOINT_HEAD.NAME = True, "ToyKeypointHead"
    model = build_model(cfg).eval()
    with torch.no_grad():
        assert model(batch())[0]["instances"].pred_keypoints.shape[1:] == (2, 3)


def test_a_mask_head_with_a_submodule_called_layers_keeps_its_forward(cfg):
    @ROI_MASK_HEAD_REGISTRY.register()
    class Layered(nn.Module):
        def __init__(self, cfg, input_shape: ShapeSpec):
            super().__init__()
            self.layers = nn.Conv2d(input_shape.channels, cfg.MODEL.ROI_HEADS.NUM_CLASSES, 1)

        def forward(self, x):
            return self.layers(x) + 100  # all masks are certain

    cfg.MODEL.MASK_ON, cfg.MODEL.ROI_MASK_HEAD.NAME = True, "Layered"
    model = build_model(cfg).eval()
    pooled = torch.zeros(1, 8, 2, 2)
    with torch.no_grad():
        assert (model.roi_heads.mask_head(pooled) > 50).all()


def test_a_semantic_head(cfg):
    @SEM_SEG_HEADS_REGISTRY.register()
    class ToySemSegHead(nn.Module):
        def __init__(self, cfg, input_shape: dict[str, ShapeSpec]):
            super().__init__()
            self.score = nn.Conv2d(input_shape["toy"].channels, 4, 1)

        def forward(self, features, targets):
            logits = nn.functional.interpolate(self.score(features["toy"]), scale_factor=16)
            if self.training:
                return None, {"loss_toy": nn.functional.cross_entropy(logits, targets)}
            return logits, {}

    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.SEM_SEG_HEAD.NAME, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = "ToySemSegHead", 4
    model = build_model(cfg)
    labelled = [{**batch()[0], "sem_seg": torch.randint(0, 4, (64, 80))}]
    assert set(model.train()(labelled)) == {"loss_toy"}
    with torch.no_grad():
        assert model.eval()(labelled)[0]["sem_seg"].shape == (4, 64, 80)
    labelled[0]["sem_seg"][0, 0] = 4
    with pytest.raises(DataError, match="NUM_CLASSES"):
        model.train()(labelled)


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
