"""detectron2's registries: plug-ins whose constructors take a config enter our tables of names.

Nothing of ours is registered here; a new system of ours is a section in a table (docs/migrate.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from segdet.config.node import CfgNode
from segdet.config.reader import tree_of
from segdet.errors import ConfigError
from segdet.layers import Losses, ShapeSpec
from segdet.modeling.anchors import ANCHOR_GENERATORS, AnchorGeneratorConfig
from segdet.modeling.backbones import BACKBONES, Backbone, BackboneSections
from segdet.modeling.box_head import BOX_HEADS, BoxHeadConfig
from segdet.modeling.keypoint_head import KEYPOINT_HEADS, KeypointHeadConfig
from segdet.modeling.mask_head import MASK_HEADS, MaskHeadConfig
from segdet.modeling.meta_arch import (
    META,
    OFFICIAL_NAMES,
    ROI_HEADS,
    SYSTEMS,
    MaskRCNNConfig,
    PanopticFPNConfig,
)
from segdet.modeling.meta_arch.proposal_network import PROPOSAL_GENERATORS, ProposalNetworkConfig
from segdet.modeling.rpn import RPN_HEADS, RPNConfig
from segdet.modeling.sem_seg_head import SEM_SEG_HEADS, SemSegHead, SemSegHeadConfig
from segdet.modeling.system import SystemConfig
from segdet.structures import Detections
from segdet.utils.registry import Registry, TableRegistry


def _system(name: str, build: Callable[[CfgNode], nn.Module]) -> type[SystemConfig]:
    """A section that knows no keys of its own: `build(cfg)` reads what it wants."""

    @dataclass(frozen=True, kw_only=True)
    class PluginConfig(SystemConfig):
        def build(self) -> Any:
            return build(tree_of(self))

    PluginConfig.__name__ = f"{name}Config"
    return PluginConfig


def _backbone(name: str, build: Callable[..., Backbone]) -> Callable[..., Backbone]:
    """`build(cfg, ShapeSpec of the images)`."""

    def entry(sections: BackboneSections, input_channels: int) -> Backbone:
        return build(tree_of(sections), ShapeSpec(channels=input_channels))

    return entry


def _proposal_generator(name: str, build: Callable[..., Any]) -> Callable[..., Any]:
    """`build(cfg, shapes of the backbone's maps)`, called as detectron2 calls it."""

    def entry(section: ProposalNetworkConfig, backbone: Backbone) -> Any:
        return _with(build(tree_of(section), backbone.output_shape()), _ProposalCalls)

    return entry


def _anchor_generator(name: str, build: Callable[..., Any]) -> Callable[..., Any]:
    """`build(cfg, shapes of the levels)`."""

    def entry(section: AnchorGeneratorConfig, strides: list[int]) -> Any:
        return build(tree_of(section), [ShapeSpec(stride=stride) for stride in strides])

    return entry


def _rpn_head(name: str, build: Callable[..., nn.Module]) -> Callable[..., Any]:
    """`build(cfg, shapes of the levels)`."""

    def entry(section: RPNConfig, strides: list[int]) -> Callable[..., nn.Module]:
        def head(in_channels: int, num_anchors: int, box_dim: int) -> nn.Module:
            shapes = [ShapeSpec(channels=in_channels, stride=stride) for stride in strides]
            return build(tree_of(section), shapes)

        return head

    return entry


def _box_head(name: str, build: Callable[..., Any]) -> Callable[..., Any]:
    """`build(cfg, shape of the pooled maps)`; its `output_shape` sizes the predictor."""

    def entry(section: BoxHeadConfig) -> Callable[[int], Any]:
        def head(in_channels: int) -> Any:
            made = build(tree_of(section), _pooled(section, in_channels))
            if not hasattr(made, "out_features"):
                made.out_features = _size(made)
            return made

        return head

    return entry


def _mask_or_keypoint_head(name: str, build: Callable[..., nn.Module]) -> Callable[..., Any]:
    """`build(cfg, shape of the pooled maps)`; `layers(x)`, or else `forward(x)`, gives logits."""

    def entry(section: MaskHeadConfig | KeypointHeadConfig) -> Callable[..., nn.Module]:
        def head(in_channels: int, _outputs: float) -> nn.Module:
            return _with_layers(build(tree_of(section), _pooled(section, in_channels)))

        return head

    return entry


def _sem_seg_head(name: str, build: Callable[..., Any]) -> Callable[..., Any]:
    """`build(cfg, shapes of the backbone's maps)`, called as detectron2 calls it."""

    def entry(section: SemSegHeadConfig, shapes: Mapping[str, ShapeSpec]) -> Any:
        head = build(tree_of(section), shapes)
        if isinstance(head, SemSegHead):
            return head
        head.num_classes, head.ignore_value = section.num_classes, section.ignore_value
        return _with(head, _SemSegCalls)

    return entry


def _roi_heads_system(base: type[MaskRCNNConfig], name: str, build: Callable[..., Any]) -> str:
    """Adds a system with these heads, `build(cfg, shapes of the backbone's maps)`, to SYSTEMS."""

    @dataclass(frozen=True, kw_only=True)
    class PluginConfig(base):
        def build_roi_heads(self, backbone: Backbone) -> Any:
            heads = build(tree_of(self), backbone.output_shape())
            is_ours = type(heads).forward.__module__.startswith("segdet.modeling.")
            return heads if is_ours else _with(heads, _ROIHeadsCalls)

    system = f"{base.__name__.removesuffix('Config')} with {name}"
    PluginConfig.__name__ = f"{name}Config"
    SYSTEMS[system] = PluginConfig
    return system


class _ROIHeadsRegistry(Registry):
    """Heads are no part of a table of ours: each makes systems."""

    def _add(self, name: str, obj: Any) -> None:
        if any(row.get(ROI_HEADS) == name for row, _ in OFFICIAL_NAMES):
            raise ConfigError(f"{self._name} has {name!r} already; give yours another name")
        super()._add(name, obj)
        for meta, base in (("GeneralizedRCNN", MaskRCNNConfig), ("PanopticFPN", PanopticFPNConfig)):
            row = {META: meta, ROI_HEADS: name}
            OFFICIAL_NAMES.append((row, _roi_heads_system(base, name, obj)))


# What each of them takes is said above, beside its entry in our table.
META_ARCH_REGISTRY = TableRegistry("META_ARCH", SYSTEMS, _system)
BACKBONE_REGISTRY = TableRegistry("BACKBONE", BACKBONES, _backbone)
PROPOSAL_GENERATOR_REGISTRY = TableRegistry(
    "PROPOSAL_GENERATOR", PROPOSAL_GENERATORS, _proposal_generator
)
ANCHOR_GENERATOR_REGISTRY = TableRegistry("ANCHOR_GENERATOR", ANCHOR_GENERATORS, _anchor_generator)
RPN_HEAD_REGISTRY = TableRegistry("RPN_HEAD", RPN_HEADS, _rpn_head)
ROI_HEADS_REGISTRY = _ROIHeadsRegistry("ROI_HEADS")
ROI_BOX_HEAD_REGISTRY = TableRegistry("ROI_BOX_HEAD", BOX_HEADS, _box_head)
ROI_MASK_HEAD_REGISTRY = TableRegistry("ROI_MASK_HEAD", MASK_HEADS, _mask_or_keypoint_head)
ROI_KEYPOINT_HEAD_REGISTRY = TableRegistry(
    "ROI_KEYPOINT_HEAD", KEYPOINT_HEADS, _mask_or_keypoint_head
)
SEM_SEG_HEADS_REGISTRY = TableRegistry("SEM_SEG_HEADS", SEM_SEG_HEADS, _sem_seg_head)


def _pooled(section: Any, in_channels: int) -> ShapeSpec:
    side = section.pooler_resolution
    return ShapeSpec(channels=in_channels, height=side, width=side)


def _size(head: Any) -> int:
    shape: Any = head.output_shape  # a property, or as of backbones a method
    shape = shape() if callable(shape) else shape
    return shape.channels * (shape.height or 1) * (shape.width or 1)


def _with_layers(head: Any) -> Any:
    is_method = callable(getattr(type(head), "layers", None))  # a submodule of that name is none
    return _with(head, _LayersCall) if is_method else head


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


class _SemSegCalls:
    """Our calls on a head whose `forward(features, labels=None)` is detectron2's."""

    check_labels = SemSegHead.check_labels

    def forward(self, features: Mapping[str, Tensor], labels: Tensor) -> Losses:
        theirs: Any = super()
        return Losses(theirs.forward(features, labels)[1])

    def predict(self, features: Mapping[str, Tensor]) -> Tensor:
        theirs: Any = super()
        return theirs.forward(features, None)[0]


class _LayersCall:
    """Our call on a head whose `layers` give the logits."""

    def forward(self, pooled: Tensor) -> Tensor:
        return self.layers(pooled)  # type: ignore[attr-defined]
