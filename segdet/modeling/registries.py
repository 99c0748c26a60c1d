"""detectron2's registries: plug-ins whose constructors take a config enter our tables of names.

Nothing of ours is registered here; a new system of ours is a section in a table (docs/migrate.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from segdet.config.node import CfgNode
from segdet.config.reader import tree_of
from segdet.errors import ConfigError
from segdet.layers import Losses, ShapeSpec
from segdet.modeling.backbones import BACKBONES, Backbone, BackboneSections
from segdet.modeling.meta_arch import (
    META,
    OFFICIAL_NAMES,
    ROI_HEADS,
    SYSTEMS,
    MaskRCNN,
    MaskRCNNConfig,
)
from segdet.modeling.roi_heads import StandardROIHeads
from segdet.modeling.system import SystemConfig
from segdet.structures import Detections
from segdet.utils.registry import Registry, TableRegistry


def _backbone(name: str, build: Callable[..., Backbone]) -> Callable[..., Backbone]:
    """`build(cfg, ShapeSpec of the images)`, as an entry of BACKBONES."""

    def from_sections(sections: BackboneSections, input_channels: int) -> Backbone:
        return build(tree_of(sections), ShapeSpec(channels=input_channels))

    return from_sections


def _system(name: str, build: Callable[[CfgNode], nn.Module]) -> type[SystemConfig]:
    """A section that knows no keys of its own: `build(cfg)` reads what it wants."""

    @dataclass(frozen=True, kw_only=True)
    class PluginConfig(SystemConfig):
        def build(self) -> Any:
            return build(tree_of(self))

    PluginConfig.__name__ = f"{name}Config"
    return PluginConfig


def _roi_heads_system(name: str, build: Callable[..., Any]) -> str:
    """Adds Mask R-CNN with these heads, `build(cfg, shapes of the features)`, to SYSTEMS."""

    @dataclass(frozen=True, kw_only=True)
    class PluginConfig(MaskRCNNConfig):
        def build(self) -> MaskRCNN:
            if getattr(build, "__init__", None) is StandardROIHeads.__init__:
                model = super().build()  # made as ours, and with other methods
                model.roi_heads.__class__ = cast(Any, build)
                return model
            backbone = self.build_backbone()
            heads = build(tree_of(self), backbone.output_shape())
            return MaskRCNN(
                backbone,
                proposal_generator=self.build_proposal_generator(backbone),
                roi_heads=heads if hasattr(heads, "losses") else _with(heads, _ROIHeadsCalls),
                pixel_mean=self.pixel_mean,
                pixel_std=self.pixel_std,
            )

    system = f"MaskRCNN with {name}"
    PluginConfig.__name__ = f"{name}Config"
    SYSTEMS[system] = PluginConfig
    return system


class _ROIHeadsRegistry(Registry):
    """Heads are no part of a table of ours: each makes a system."""

    def _add(self, name: str, obj: Any) -> None:
        if any(row.get(ROI_HEADS) == name for row, _ in OFFICIAL_NAMES):
            raise ConfigError(f"{self._name} has {name!r} already; give yours another name")
        super()._add(name, obj)
        row = {META: "GeneralizedRCNN", ROI_HEADS: name}
        OFFICIAL_NAMES.append((row, _roi_heads_system(name, obj)))


# Whole models, `cls(cfg)`, for MODEL.META_ARCHITECTURE.
META_ARCH_REGISTRY = TableRegistry("META_ARCH", SYSTEMS, _system)
# `build(cfg, input_shape)`, for MODEL.BACKBONE.NAME.
BACKBONE_REGISTRY = TableRegistry("BACKBONE", BACKBONES, _backbone)
# `cls(cfg, shapes of the backbone's maps)`, for MODEL.ROI_HEADS.NAME.
ROI_HEADS_REGISTRY = _ROIHeadsRegistry("ROI_HEADS")
PROPOSAL_GENERATOR_REGISTRY = Registry("PROPOSAL_GENERATOR")
RPN_HEAD_REGISTRY = Registry("RPN_HEAD")
ROI_BOX_HEAD_REGISTRY = Registry("ROI_BOX_HEAD")
ROI_MASK_HEAD_REGISTRY = Registry("ROI_MASK_HEAD")

# Parts that are exchanged in the built model: key, registry, and what the model is built with.
_PARTS = (
    ("PROPOSAL_GENERATOR", "NAME", PROPOSAL_GENERATOR_REGISTRY, {"NAME": "RPN"}),
    ("RPN", "HEAD_NAME", RPN_HEAD_REGISTRY, {"HEAD_NAME": "StandardRPNHead"}),
    (
        "ROI_BOX_HEAD",
        "NAME",
        ROI_BOX_HEAD_REGISTRY,
        {"NAME": "FastRCNNConvFCHead", "NUM_FC": 1, "FC_DIM": 1},
    ),
    ("ROI_MASK_HEAD", "NAME", ROI_MASK_HEAD_REGISTRY, {"NAME": "MaskRCNNConvUpsampleHead"}),
)


def without_plugin_parts(cfg: CfgNode) -> CfgNode:
    """The config with our own parts where it names registered ones; itself where it names none."""
    named = [part for part in _PARTS if cfg.MODEL[part[0]][part[1]] in part[2]]
    if not named:
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    for section, _, _, own in named:
        for key, value in own.items():
            cfg.MODEL[section][key] = value
    return cfg


def exchange_plugin_parts(model: Any, section: Any, cfg: CfgNode) -> None:
    """Put the registered parts that a config names in the place of our own, in the built model.

    Args:
        model: of `section`.
        section: read from `without_plugin_parts(cfg)`.
        cfg: the config as the user wrote it.
    """
    parts = cfg.MODEL
    shapes = model.backbone.output_shape() if hasattr(model, "backbone") else {}
    if (name := parts.PROPOSAL_GENERATOR.NAME) in PROPOSAL_GENERATOR_REGISTRY:
        generator = PROPOSAL_GENERATOR_REGISTRY.get(name)(cfg, shapes)
        model.proposal_generator = _with(generator, _ProposalCalls)
    elif (name := parts.RPN.HEAD_NAME) in RPN_HEAD_REGISTRY:
        levels = [shapes[level] for level in parts.RPN.IN_FEATURES]
        model.proposal_generator.rpn_head = RPN_HEAD_REGISTRY.get(name)(cfg, levels)
    if (name := parts.ROI_BOX_HEAD.NAME) in ROI_BOX_HEAD_REGISTRY:
        head = ROI_BOX_HEAD_REGISTRY.get(name)(cfg, _pooled(shapes, cfg, "ROI_BOX_HEAD"))
        model.roi_heads.box_head = head
        size = _output_size(head)
        model.roi_heads.box_predictor = section.build_box_predictor(size)
    if parts.MASK_ON and (name := parts.ROI_MASK_HEAD.NAME) in ROI_MASK_HEAD_REGISTRY:
        head = ROI_MASK_HEAD_REGISTRY.get(name)(cfg, _pooled(shapes, cfg, "ROI_MASK_HEAD"))
        model.roi_heads.mask_head = _with(head, _MaskHeadCalls) if hasattr(head, "layers") else head


def _pooled(shapes: dict[str, ShapeSpec], cfg: CfgNode, section: str) -> ShapeSpec:
    side = cfg.MODEL[section].POOLER_RESOLUTION
    channels = shapes[cfg.MODEL.ROI_HEADS.IN_FEATURES[0]].channels
    return ShapeSpec(channels=channels, height=side, width=side)


def _output_size(head: Any) -> int:
    shape: Any = head.output_shape  # a property, or as of backbones a method
    shape = shape() if callable(shape) else shape
    return shape.channels * (shape.height or 1) * (shape.width or 1)


def _with(module: Any, calls: type) -> Any:
    """The module with the calls that our models make, which its class does not know."""
    kind = type(module)
    module.__class__ = type(kind.__name__, (calls, kind), {"__module__": kind.__module__})
    return module


class _ROIHeadsCalls:
    """Our calls on heads whose `forward(images, features, proposals, targets)` is detectron2's."""

    def losses(self, features: dict[str, Tensor], proposals: Any, targets: Any) -> Losses:
        return Losses(self(None, features, proposals, targets)[1])  # type: ignore[operator]

    def predict(self, features: dict[str, Tensor], proposals: Any) -> list[Detections]:
        found = self(None, features, proposals, None)[0]  # type: ignore[operator]
        return [Detections(one.image_size, **one.get_fields()) for one in found]


class _ProposalCalls:
    """Our calls on a generator whose `forward(images, features, gt_instances)` is detectron2's."""

    def losses(self, images: Any, features: Any, targets: Any) -> tuple[Any, Losses]:
        proposals, losses = self(images, features, targets)  # type: ignore[operator]
        return proposals, Losses(losses)

    def predict(self, images: Any, features: Any) -> Any:
        return self(images, features, None)[0]  # type: ignore[operator]


class _MaskHeadCalls:
    """Our call on a mask head whose `layers` give the logits."""

    def forward(self, pooled: Tensor) -> Tensor:
        return self.layers(pooled)  # type: ignore[attr-defined]
