"""The systems: one file each; which of them a config means is decided here."""

from segdet.errors import ConfigError
from segdet.modeling.meta_arch.cascade_rcnn import CascadeRCNNConfig
from segdet.modeling.meta_arch.mask_rcnn import MaskRCNN, MaskRCNNConfig
from segdet.modeling.meta_arch.mask_rcnn_c4 import MaskRCNNC4Config
from segdet.modeling.meta_arch.proposal_network import ProposalNetwork, ProposalNetworkConfig
from segdet.modeling.meta_arch.retinanet import RetinaNet, RetinaNetConfig
from segdet.modeling.meta_arch.rotated_rcnn import RotatedRCNNConfig
from segdet.modeling.system import SystemConfig

__all__ = [
    "SYSTEMS",
    "CascadeRCNNConfig",
    "MaskRCNN",
    "MaskRCNNC4Config",
    "MaskRCNNConfig",
    "ProposalNetwork",
    "ProposalNetworkConfig",
    "RetinaNet",
    "RetinaNetConfig",
    "RotatedRCNNConfig",
    "system_name",
]

SYSTEMS: dict[str, type[SystemConfig]] = {
    "CascadeRCNN": CascadeRCNNConfig,
    "MaskRCNN": MaskRCNNConfig,
    "MaskRCNNC4": MaskRCNNC4Config,
    "ProposalNetwork": ProposalNetworkConfig,
    "RetinaNet": RetinaNetConfig,
    "RotatedRCNN": RotatedRCNNConfig,
}

# Official files call many systems GeneralizedRCNN; MODEL.ROI_HEADS.NAME tells them apart.
GENERALIZED_RCNN = {
    "StandardROIHeads": "MaskRCNN",
    "Res5ROIHeads": "MaskRCNNC4",
    "CascadeROIHeads": "CascadeRCNN",
    "RROIHeads": "RotatedRCNN",
}


def system_name(meta_architecture: str, roi_heads: str) -> str:
    """The key of `SYSTEMS` that a config means.

    Args:
        meta_architecture: MODEL.META_ARCHITECTURE.
        roi_heads: MODEL.ROI_HEADS.NAME.

    Raises:
        ConfigError: no such system.
    """
    if meta_architecture in SYSTEMS:
        return meta_architecture
    if meta_architecture != "GeneralizedRCNN":
        known = ", ".join(["GeneralizedRCNN", *SYSTEMS])
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE {meta_architecture!r} is unknown; known: {known}"
        )
    if roi_heads not in GENERALIZED_RCNN:
        known = ", ".join(GENERALIZED_RCNN)
        raise ConfigError(f"MODEL.ROI_HEADS.NAME {roi_heads!r} is unknown; known: {known}")
    return GENERALIZED_RCNN[roi_heads]
