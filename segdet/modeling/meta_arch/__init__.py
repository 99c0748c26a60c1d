"""The systems: one file each; which of them a config means is decided here."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from segdet.errors import ConfigError
from segdet.modeling.meta_arch.blendmask import (
    BlendMask,
    BlendMaskConfig,
    PanopticBlendMask,
    PanopticBlendMaskConfig,
)
from segdet.modeling.meta_arch.cascade_rcnn import CascadeRCNNConfig
from segdet.modeling.meta_arch.centermask import CenterMaskConfig, PanopticCenterMaskConfig
from segdet.modeling.meta_arch.fcis import FCIS, FCISConfig
from segdet.modeling.meta_arch.fcos import OneStageDetector, OneStageDetectorConfig
from segdet.modeling.meta_arch.implicit_pointrend import ImplicitPointRendConfig
from segdet.modeling.meta_arch.mask_rcnn import MaskRCNN, MaskRCNNConfig
from segdet.modeling.meta_arch.mask_rcnn_c4 import MaskRCNNC4Config
from segdet.modeling.meta_arch.mask_scoring_rcnn import MaskScoringRCNNConfig
from segdet.modeling.meta_arch.panoptic_fpn import (
    CascadePanopticFPNConfig,
    PanopticFPN,
    PanopticFPNConfig,
)
from segdet.modeling.meta_arch.pointrend import PointRendConfig
from segdet.modeling.meta_arch.pointrend_semantic import PointRendSemSegConfig
from segdet.modeling.meta_arch.proposal_network import ProposalNetwork, ProposalNetworkConfig
from segdet.modeling.meta_arch.retinanet import RetinaNet, RetinaNetConfig
from segdet.modeling.meta_arch.rotated_rcnn import RotatedRCNNConfig
from segdet.modeling.meta_arch.semantic_segmentor import (
    SemanticSegmentor,
    SemanticSegmentorConfig,
)
from segdet.modeling.meta_arch.yolact import YOLACT, YOLACTConfig
from segdet.modeling.system import Needs, SystemConfig

__all__ = [
    "FCIS",
    "OFFICIAL_NAMES",
    "SYSTEMS",
    "YOLACT",
    "BlendMask",
    "BlendMaskConfig",
    "CascadePanopticFPNConfig",
    "CascadeRCNNConfig",
    "CenterMaskConfig",
    "FCISConfig",
    "ImplicitPointRendConfig",
    "MaskRCNN",
    "MaskRCNNC4Config",
    "MaskRCNNConfig",
    "MaskScoringRCNNConfig",
    "OneStageDetector",
    "OneStageDetectorConfig",
    "PanopticBlendMask",
    "PanopticBlendMaskConfig",
    "PanopticCenterMaskConfig",
    "PanopticFPN",
    "PanopticFPNConfig",
    "PointRendConfig",
    "PointRendSemSegConfig",
    "ProposalNetwork",
    "ProposalNetworkConfig",
    "RetinaNet",
    "RetinaNetConfig",
    "RotatedRCNNConfig",
    "SemanticSegmentor",
    "SemanticSegmentorConfig",
    "YOLACTConfig",
    "needs_of",
    "system_name",
]

META, ROI_HEADS = "MODEL.META_ARCHITECTURE", "MODEL.ROI_HEADS.NAME"
MASK_HEAD, SEM_SEG_HEAD = "MODEL.ROI_MASK_HEAD.NAME", "MODEL.SEM_SEG_HEAD.NAME"
MASK_ON, KEYPOINT_ON = "MODEL.MASK_ON", "MODEL.KEYPOINT_ON"
MASKIOU_ON, COMBINE = "MODEL.MASKIOU_ON", "MODEL.PANOPTIC_FPN.COMBINE.ENABLED"

SYSTEMS: dict[str, type[SystemConfig]] = {
    "BlendMask": BlendMaskConfig,
    "CascadePanopticFPN": CascadePanopticFPNConfig,
    "CascadeRCNN": CascadeRCNNConfig,
    "FCIS": FCISConfig,
    "CenterMask": CenterMaskConfig,
    "FCOS": OneStageDetectorConfig,
    "ImplicitPointRend": ImplicitPointRendConfig,
    "MaskRCNN": MaskRCNNConfig,
    "MaskRCNNC4": MaskRCNNC4Config,
    "PanopticCenterMask": PanopticCenterMaskConfig,
    "PanopticBlendMask": PanopticBlendMaskConfig,
    "PanopticFPN": PanopticFPNConfig,
    "PointRend": PointRendConfig,
    "PointRendSemSeg": PointRendSemSegConfig,
    "MaskScoringRCNN": MaskScoringRCNNConfig,
    "ProposalNetwork": ProposalNetworkConfig,
    "RetinaNet": RetinaNetConfig,
    "RotatedRCNN": RotatedRCNNConfig,
    "SemanticSegmentor": SemanticSegmentorConfig,
    "YOLACT": YOLACTConfig,
}
_OURS = frozenset(SYSTEMS)

# What official files say, and the key of `SYSTEMS` that they mean. A file that says all of a row
# means its system; of several such rows, the longest counts.
OFFICIAL_NAMES: list[tuple[dict[str, Any], str]] = [
    ({META: "GeneralizedRCNN", ROI_HEADS: "StandardROIHeads"}, "MaskRCNN"),
    ({META: "GeneralizedRCNN", ROI_HEADS: "Res5ROIHeads"}, "MaskRCNNC4"),
    ({META: "GeneralizedRCNN", ROI_HEADS: "CascadeROIHeads"}, "CascadeRCNN"),
    ({META: "GeneralizedRCNN", ROI_HEADS: "RROIHeads"}, "RotatedRCNN"),
    (
        {META: "GeneralizedRCNN", ROI_HEADS: "StandardROIHeads", MASK_HEAD: "PointRendMaskHead"},
        "PointRend",
    ),
    (
        {
            META: "GeneralizedRCNN",
            ROI_HEADS: "StandardROIHeads",
            MASK_HEAD: "ImplicitPointRendMaskHead",
        },
        "ImplicitPointRend",
    ),
    # PointRend's first release said so, with MODEL.ROI_MASK_HEAD.NAME CoarseMaskHead.
    ({META: "GeneralizedRCNN", ROI_HEADS: "PointRendROIHeads"}, "PointRend"),
    ({META: "PanopticFPN", ROI_HEADS: "StandardROIHeads"}, "PanopticFPN"),
    ({META: "PanopticFPN", ROI_HEADS: "CascadeROIHeads"}, "CascadePanopticFPN"),
    ({META: "GeneralizedRCNN", ROI_HEADS: "CenterROIHeads"}, "CenterMask"),
    ({META: "PanopticFPN", ROI_HEADS: "CenterROIHeads"}, "PanopticCenterMask"),
    ({META: "OneStageDetector"}, "FCOS"),
    ({META: "BlendMask", COMBINE: False}, "BlendMask"),
    ({META: "BlendMask", COMBINE: True}, "PanopticBlendMask"),
    ({META: "ProposalNetwork"}, "ProposalNetwork"),
    ({META: "RetinaNet"}, "RetinaNet"),
    ({META: "SemanticSegmentor"}, "SemanticSegmentor"),
    ({META: "SemanticSegmentor", SEM_SEG_HEAD: "PointRendSemSegHead"}, "PointRendSemSeg"),
    (
        {META: "GeneralizedRCNN", ROI_HEADS: "StandardROIHeads", MASKIOU_ON: True},
        "MaskScoringRCNN",
    ),
]


def system_name(keys: Mapping[str, Any]) -> str:
    """The key of `SYSTEMS` that a config means.

    Args:
        keys: path -> value, as `MODEL.META_ARCHITECTURE`; only paths of `OFFICIAL_NAMES` count.

    Raises:
        ConfigError: no such system, or two; or one that lacks a part that the config asks for.
    """
    name = _meant_by(keys)
    _refuse_unread(keys, name)
    return name


def _meant_by(keys: Mapping[str, Any]) -> str:
    fitting = [
        (row, system)
        for row, system in OFFICIAL_NAMES
        if all(keys.get(path) == value for path, value in row.items())
    ]
    if fitting:
        most = max(len(row) for row, _ in fitting)
        best = {system: list(row.items())[-1:] for row, system in fitting if len(row) == most}
        if len(best) > 1:
            told = [f"{p} {v!r} means {system}" for system, row in best.items() for p, v in row]
            raise ConfigError(f"{', '.join(told)}; a model is one of them: leave out the other")
        (name,) = best
        return name
    name = keys[META]
    same = [row for row, _ in OFFICIAL_NAMES if row.get(META) == name]
    if not same and name in SYSTEMS:
        return name
    if not same:
        named = [row[META] for row, _ in OFFICIAL_NAMES if META in row]
        known = ", ".join(dict.fromkeys([*named, *SYSTEMS]))
        raise ConfigError(f"{META} {name!r} is unknown; known: {known}")
    path = next(path for path in same[0] if path != META)  # META alone would have fitted
    known = ", ".join(dict.fromkeys(row[path] for row in same if path in row))
    raise ConfigError(f"{path} {keys.get(path)!r} is unknown; known: {known}")


def needs_of(leaves: Iterable[tuple[str, Any, str]]) -> Needs:
    """What the system that a config means learns from.

    Args:
        leaves: of the config, as `cfg.leaves()`.

    Returns:
        Empty ones where there is no such system: the data may be for a script's own model.
    """
    try:
        return SYSTEMS[_meant_by({path: value for path, value, _ in leaves})].needs
    except ConfigError:
        return Needs()


def _refuse_unread(keys: Mapping[str, Any], system: str) -> None:
    """Raise where a system of ours would drop a head that is asked for; not of a plug-in."""
    if system not in _OURS:
        return
    read = {field.name for field in fields(SYSTEMS[system])}
    for key, switch, what in (
        (MASK_ON, "mask_on", "masks"),
        (KEYPOINT_ON, "keypoint_on", "keypoints"),
    ):
        if keys.get(key) and switch not in read:
            raise ConfigError(f"{key} is True, but {system} finds no {what}: set it to False")
    if keys.get(MASKIOU_ON) and "maskiou_on" not in read:
        raise ConfigError(
            f"{MASKIOU_ON} is True, but {system} has no MaskIoU head; it stands on {META} "
            f"GeneralizedRCNN with {ROI_HEADS} StandardROIHeads: use these, or set it to False"
        )
