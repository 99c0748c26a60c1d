"""detectron2's classes and functions that take a config, for plug-ins that build on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from segdet.config.configurable import configurable
from segdet.config.node import CfgNode
from segdet.config.reader import read_section
from segdet.errors import ConfigError
from segdet.layers import Losses, ShapeSpec
from segdet.modeling import roi_heads
from segdet.modeling.anchors import AnchorGeneratorConfig
from segdet.modeling.backbones import BACKBONES, Backbone, BackboneSections
from segdet.modeling.box_head import BoxHeadConfig
from segdet.modeling.build import build_backbone
from segdet.modeling.keypoint_head import KeypointHeadConfig
from segdet.modeling.mask_head import MaskHeadConfig
from segdet.modeling.meta_arch import (
    META,
    SYSTEMS,
    CascadeRCNNConfig,
    MaskRCNN,
    MaskRCNNC4Config,
    MaskRCNNConfig,
    cascade_rcnn,
    mask_rcnn_c4,
    system_name,
)
from segdet.modeling.sem_seg_head import SemSegHead, SemSegHeadConfig

Shapes = dict[str, ShapeSpec]


class _Maps:
    """Stands for a backbone whose maps are known."""

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes

    def output_shape(self) -> Shapes:
        return self._shapes


def build_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """A ResNet for images of `input_shape.channels` channels."""
    return _backbone(cfg, input_shape, "build_resnet_backbone")


def build_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """A ResNet with a feature pyramid, p2 to p6."""
    return _backbone(cfg, input_shape, "build_resnet_fpn_backbone")


def build_retinanet_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """A ResNet with a feature pyramid, p3 to p7."""
    return _backbone(cfg, input_shape, "build_retinanet_resnet_fpn_backbone")


def _backbone(cfg: CfgNode, shape: ShapeSpec, name: str) -> Backbone:
    return BACKBONES[name](read_section(BackboneSections, cfg, at="MODEL"), _channels(shape))


def build_proposal_generator(cfg: CfgNode, input_shape: Shapes) -> Any:
    """What MODEL.PROPOSAL_GENERATOR.NAME names, on maps of these shapes."""
    return _rcnn(cfg).build_proposal_generator(_Maps(input_shape))


def build_roi_heads(cfg: CfgNode, input_shape: Shapes) -> Any:
    """What MODEL.ROI_HEADS.NAME names, on maps of these shapes."""
    return _rcnn(cfg).build_roi_heads(_Maps(input_shape))


def _rcnn(cfg: CfgNode) -> Any:
    """The section of the R-CNN that has the config's heads, whatever its META_ARCHITECTURE."""
    keys = {path: value for path, value, _ in cfg.leaves()}
    name = system_name({**keys, META: "GeneralizedRCNN"})
    return read_section(SYSTEMS[name], cfg, at="MODEL")


def build_anchor_generator(cfg: CfgNode, input_shape: Sequence[ShapeSpec]) -> Any:
    """What MODEL.ANCHOR_GENERATOR.NAME names, for levels of these shapes."""
    section = read_section(AnchorGeneratorConfig, cfg, at="MODEL.ANCHOR_GENERATOR")
    return section.build([_known(shape, "stride") for shape in input_shape])


def build_box_head(cfg: CfgNode, input_shape: ShapeSpec) -> Any:
    """What MODEL.ROI_BOX_HEAD.NAME names, for pooled maps of this shape."""
    section = read_section(BoxHeadConfig, cfg, at="MODEL.ROI_BOX_HEAD")
    return section.build(_channels(input_shape))


def build_mask_head(cfg: CfgNode, input_shape: ShapeSpec) -> Any:
    """What MODEL.ROI_MASK_HEAD.NAME names, for pooled maps of this shape."""
    section = read_section(MaskHeadConfig, cfg, at="MODEL.ROI_MASK_HEAD")
    return section.build(_channels(input_shape), cfg.MODEL.ROI_HEADS.NUM_CLASSES)


def build_keypoint_head(cfg: CfgNode, input_shape: ShapeSpec) -> Any:
    """What MODEL.ROI_KEYPOINT_HEAD.NAME names, for pooled maps of this shape."""
    section = read_section(KeypointHeadConfig, cfg, at="MODEL.ROI_KEYPOINT_HEAD")
    heads = read_section(roi_heads.ROIHeadsConfig, cfg, at="MODEL.ROI_HEADS")
    return section.build(_channels(input_shape), heads.nominal_foreground)


def build_sem_seg_head(cfg: CfgNode, input_shape: Shapes) -> SemSegHead:
    """What MODEL.SEM_SEG_HEAD.NAME names, on maps of these shapes."""
    return read_section(SemSegHeadConfig, cfg, at="MODEL.SEM_SEG_HEAD").build(input_shape)


def _channels(shape: ShapeSpec) -> int:
    return _known(shape, "channels")


def _known(shape: ShapeSpec, what: str) -> int:
    value = getattr(shape, what)
    if value is None:
        raise ConfigError(f"the {what} of the input must be known, {shape} has none")
    return value


class _TakesConfig:
    """A constructor `(cfg, shapes of the backbone's maps)`, as detectron2's ROI heads have."""

    _section: ClassVar[type[MaskRCNNConfig]]

    def __init__(
        self, cfg: CfgNode | None = None, input_shape: Shapes | None = None, *, heads: Any = None
    ) -> None:
        """Make the heads, or take over those that `from_config` made."""
        if heads is None:
            if cfg is None or input_shape is None:
                raise TypeError(f"{type(self).__name__} takes (cfg, input_shape)")
            heads = self.from_config(cfg, input_shape)["heads"]
        self.__dict__.update(heads.__dict__)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Shapes) -> dict[str, Any]:
        """{"heads": ...}, which subclasses with `@configurable` may add their arguments to."""
        _refuse_overridden_steps(cls)
        maps: Any = _Maps(input_shape)
        return {"heads": read_section(cls._section, cfg, at="MODEL").build_roi_heads(maps)}

    def forward(self, images: Any, features: Any, proposals: Any, targets: Any = None) -> Any:
        """As of `ROIHeads`; for subclasses whose `forward` calls it, which `losses` would call."""
        steps: Any = super()
        if self.training:  # type: ignore[attr-defined]
            return proposals, steps.losses(features, proposals, targets)
        return steps.predict(features, proposals), Losses()


class StandardROIHeads(_TakesConfig, roi_heads.StandardROIHeads):
    """Mask R-CNN's heads; subclasses override `losses` and `predict`, or `forward`."""

    _section = MaskRCNNConfig


class Res5ROIHeads(_TakesConfig, mask_rcnn_c4.Res5ROIHeads):
    """The C4 variant's heads; subclasses override `losses` and `predict`, or `forward`."""

    _section = MaskRCNNC4Config


class CascadeROIHeads(_TakesConfig, cascade_rcnn.CascadeROIHeads):
    """Cascade R-CNN's heads; subclasses override `losses` and `predict`, or `forward`."""

    _section = CascadeRCNNConfig


# Steps of detectron2's heads that are not steps of ours.
NEVER_CALLED = (
    *("_init_box_head", "_init_mask_head", "_init_keypoint_head"),
    *("_forward_box", "_forward_mask", "_forward_keypoint", "_shared_roi_transform"),
    *("_match_and_label_boxes", "_create_proposals_from_boxes", "label_and_sample_proposals"),
)


def _refuse_overridden_steps(kind: type) -> None:
    """detectron2 calls more methods of its heads than segdet does; those would never run."""
    for name in NEVER_CALLED:
        if hasattr(kind, name):
            raise ConfigError(
                f"{kind.__name__}.{name} is never called here: override `losses`, `predict` or "
                "`forward`, or assign the part that it makes after super().__init__"
            )


class GeneralizedRCNN(MaskRCNN):
    """`GeneralizedRCNN(cfg)`, or its parts as keywords; a base for a registered META_ARCHITECTURE.

    Args:
        backbone: images to feature maps.
        proposal_generator: feature maps to proposals.
        roi_heads: proposals to detections.
        pixel_mean: one value a channel.
        pixel_std: one value a channel.
        input_format: of the images, such as "BGR"; a note for users.
        vis_period: no effect.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Any,
        proposal_generator: Any,
        roi_heads: Any,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str | None = None,
        vis_period: int = 0,
    ) -> None:
        super().__init__(
            backbone,
            proposal_generator=proposal_generator,
            roi_heads=roi_heads,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
        )
        self.input_format = input_format
        self.vis_period = vis_period

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The constructor's arguments; subclasses may change the dict."""
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        return {
            "backbone": backbone,
            "proposal_generator": build_proposal_generator(cfg, shapes),
            "roi_heads": build_roi_heads(cfg, shapes),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
            "vis_period": cfg.VIS_PERIOD,
        }

    def forward(self, batched_inputs: list[dict]) -> Any:
        """Losses when training, else what `inference` gives, which subclasses may override."""
        return super().forward(batched_inputs) if self.training else self.inference(batched_inputs)

    def inference(
        self,
        batched_inputs: list[dict],
        detected_instances: list[Any] | None = None,
        do_postprocess: bool = True,
    ) -> list[Any]:
        """Results without looking at `.training`.

        Args:
            batched_inputs: as of the call.
            detected_instances: detections in input pixels to add masks to, instead of finding any.
            do_postprocess: scale to the sizes asked for; else detections in input pixels.
        """
        images = self.preprocess_image(batched_inputs)
        if detected_instances is None:
            found: Any = self.find(images)
        else:
            features = self.backbone(images.tensor)
            found = self.roi_heads.predict_masks(features, detected_instances)
        return self.postprocess(found, batched_inputs) if do_postprocess else found
