"""DeepLab v3 (arXiv:1706.05587) and v3+ (arXiv:1802.02611), as detectron2's project has them.

The tables below are all that segdet reads of this package; what they name is in the files beside.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from segdet.modeling.meta_arch import META, SemanticSegmentorConfig

from .lr_schedule import PolyLRConfig, warmup_poly
from .resnet import DeepLabResNetKeys, build_resnet_deeplab_backbone
from .sem_seg_head import DeepLabHeadConfig, build_v3_head, build_v3_plus_head


@dataclass(frozen=True, kw_only=True)
class DeepLabConfig(SemanticSegmentorConfig):
    """MODEL, as DeepLab reads it: a semantic segmentor with its trunk's keys and these heads."""

    resnets: DeepLabResNetKeys = field(default_factory=DeepLabResNetKeys)
    sem_seg_head: DeepLabHeadConfig = field(default_factory=DeepLabHeadConfig)


HEAD = "MODEL.SEM_SEG_HEAD.NAME"

SYSTEMS = {"DeepLab": DeepLabConfig}
OFFICIAL_NAMES = [
    ({META: "SemanticSegmentor", HEAD: "DeepLabV3Head"}, "DeepLab"),
    ({META: "SemanticSegmentor", HEAD: "DeepLabV3PlusHead"}, "DeepLab"),
]
BACKBONES = {"build_resnet_deeplab_backbone": build_resnet_deeplab_backbone}
SEM_SEG_HEADS = {"DeepLabV3Head": build_v3_head, "DeepLabV3PlusHead": build_v3_plus_head}
LR_SCHEDULES = {"WarmupPolyLR": warmup_poly}
SECTIONS = {"SOLVER": PolyLRConfig}
