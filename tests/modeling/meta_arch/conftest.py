"""Every system in small, and images to feed it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from segdet.config import CfgNode, get_cfg
from segdet.data.demo import make_demo_dataset
from segdet.structures import BitMasks, Boxes, BoxMode, PolygonMasks, RotatedBoxes, Targets

PYRAMID = [
    *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
    *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"], "MODEL.FPN.OUT_CHANNELS", 16),
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32], [64], [128], [256]]),
    *("MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"]),
]
HEADS = [
    *("MODEL.MASK_ON", True, "MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
    *("MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4", "p5"]),
    *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 1),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", 32, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 7),
    *("MODEL.ROI_MASK_HEAD.NUM_CONV", 1, "MODEL.ROI_MASK_HEAD.CONV_DIM", 16),
]
POINT_HEAD = [*("MODEL.POINT_HEAD.FC_DIM", 16, "MODEL.POINT_HEAD.TRAIN_NUM_POINTS", 20)]
POINTREND = [
    *PYRAMID,
    *HEADS,
    *POINT_HEAD,
    *("MODEL.ROI_MASK_HEAD.FC_DIM", 32, "MODEL.POINT_HEAD.NUM_CLASSES", 3),
    *("INPUT.MASK_FORMAT", "bitmask"),
]
FCOS = [
    *PYRAMID,
    *("MODEL.PROPOSAL_GENERATOR.NAME", "FCOS"),
    *("MODEL.BACKBONE.NAME", "build_fcos_resnet_fpn_backbone"),
    *("MODEL.FCOS.NUM_CLASSES", 3, "MODEL.FCOS.NUM_CLS_CONVS", 1),
    *("MODEL.FCOS.NUM_BOX_CONVS", 1, "MODEL.FCOS.POST_NMS_TOPK_TEST", 7),
    *("MODEL.FCOS.INFERENCE_TH_TEST", 0.0, "MODEL.FCOS.NORM", "none"),
    *("MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"]),
    *("MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"]),
]
CENTERMASK = [
    *FCOS,
    *("MODEL.MASK_ON", True, "MODEL.ROI_HEADS.NAME", "CenterROIHeads"),
    *("MODEL.ROI_HEADS.IN_FEATURES", ["p3", "p4", "p5"]),
    *("MODEL.ROI_MASK_HEAD.NAME", "SpatialAttentionMaskHead"),
    *("MODEL.ROI_MASK_HEAD.ASSIGN_CRITERION", "ratio"),
    *("MODEL.ROI_MASK_HEAD.NUM_CONV", 1, "MODEL.ROI_MASK_HEAD.CONV_DIM", 16),
    *("MODEL.MASKIOU_ON", True, "MODEL.ROI_MASKIOU_HEAD.CONV_DIM", 8),
    *("MODEL.ROI_MASKIOU_HEAD.NUM_CONV", 2),
]
BLENDMASK = [
    *FCOS,
    *("MODEL.META_ARCHITECTURE", "BlendMask", "MODEL.MASK_ON", True),
    *("MODEL.PANOPTIC_FPN.COMBINE.ENABLED", False),
    *("MODEL.BLENDMASK.ATTN_SIZE", 4, "MODEL.BLENDMASK.BOTTOM_RESOLUTION", 8),
    *("MODEL.BASIS_MODULE.CONVS_DIM", 8, "MODEL.BASIS_MODULE.NUM_CONVS", 1),
    *("MODEL.BASIS_MODULE.NUM_CLASSES", 3, "MODEL.BASIS_MODULE.LOSS_ON", True),
]
TINY = {
    "MaskRCNN": [*PYRAMID, *HEADS],
    "MaskScoringRCNN": [
        *PYRAMID,
        *HEADS,
        *("MODEL.MASKIOU_ON", True, "MODEL.ROI_MASKIOU_HEAD.CONV_DIM", 8),
        *("MODEL.ROI_MASKIOU_HEAD.NUM_CONV", 2),
    ],
    "MaskRCNNC4": [
        *("MODEL.MASK_ON", True),
        *("MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.RESNETS.RES2_OUT_CHANNELS", 32),
        *("MODEL.RESNETS.WIDTH_PER_GROUP", 8),
    ],
    "FCIS": [
        *("MODEL.META_ARCHITECTURE", "FCIS", "MODEL.MASK_ON", True, "MODEL.FCIS.CONV_DIM", 16),
        *("MODEL.FCIS.GROUP_SIZE", 3, "MODEL.FCIS.POOLED_SIZE", 9),
        *("MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.RESNETS.RES2_OUT_CHANNELS", 32),
        *("MODEL.RESNETS.WIDTH_PER_GROUP", 8, "MODEL.RESNETS.RES5_DILATION", 2),
        *("MODEL.RESNETS.OUT_FEATURES", ["res4", "res5"], "MODEL.ROI_HEADS.IN_FEATURES", ["res5"]),
        *("MODEL.ANCHOR_GENERATOR.NAME", "RoundedAnchorGenerator"),
        *("MODEL.ANCHOR_GENERATOR.SIZES", [[16, 32]], "MODEL.RPN.BOUNDARY_THRESH", 1),
    ],
    "CascadeRCNN": [
        *PYRAMID,
        *HEADS,
        *("MODEL.ROI_HEADS.NAME", "CascadeROIHeads"),
        *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
    ],
    "RotatedRCNN": [
        *PYRAMID,
        *HEADS,
        *("MODEL.MASK_ON", False, "MODEL.ROI_HEADS.NAME", "RROIHeads"),
        *("MODEL.PROPOSAL_GENERATOR.NAME", "RRPN"),
        *("MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator"),
        *("MODEL.RPN.BBOX_REG_WEIGHTS", (1.0,) * 5, "MODEL.RPN.PRE_NMS_TOPK_TEST", 50),
        *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", 50),
        *("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", (10.0, 10.0, 5.0, 5.0, 1.0)),
        *("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignRotated"),
    ],
    "ProposalNetwork": [
        *PYRAMID,
        *("MODEL.META_ARCHITECTURE", "ProposalNetwork", "MODEL.RPN.POST_NMS_TOPK_TEST", 7),
    ],
    "RetinaNet": [
        *PYRAMID,
        *("MODEL.META_ARCHITECTURE", "RetinaNet"),
        *("MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone"),
        *("MODEL.RETINANET.NUM_CLASSES", 3, "MODEL.RETINANET.NUM_CONVS", 1),
        *("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0),
        *("MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"]),
        *("MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"]),
    ],
    "FCOS": [*FCOS, "MODEL.META_ARCHITECTURE", "OneStageDetector"],
    "BlendMask": BLENDMASK,
    "PanopticBlendMask": [
        *BLENDMASK,
        *("MODEL.PANOPTIC_FPN.COMBINE.ENABLED", True),
        *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
        *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]),
    ],
    "CenterMask": CENTERMASK,
    "PanopticCenterMask": [
        *CENTERMASK,
        *("MODEL.META_ARCHITECTURE", "PanopticFPN"),
        *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
        *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]),
    ],
    "PanopticFPN": [*PYRAMID, *HEADS, "MODEL.META_ARCHITECTURE", "PanopticFPN"],
    "CascadePanopticFPN": [
        *PYRAMID,
        *HEADS,
        *("MODEL.META_ARCHITECTURE", "PanopticFPN", "MODEL.ROI_HEADS.NAME", "CascadeROIHeads"),
        *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
    ],
    "PointRend": [
        *POINTREND,
        *("MODEL.ROI_MASK_HEAD.NAME", "PointRendMaskHead"),
        *("MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", True, "MODEL.POINT_HEAD.SUBDIVISION_STEPS", 3),
        *("MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True),
    ],
    "ImplicitPointRend": [
        *POINTREND,
        *("MODEL.ROI_MASK_HEAD.NAME", "ImplicitPointRendMaskHead"),
        *("MODEL.POINT_HEAD.SUBDIVISION_STEPS", 1),
    ],
    "PointRendSemSeg": [
        *PYRAMID,
        *POINT_HEAD,
        *("MODEL.META_ARCHITECTURE", "SemanticSegmentor"),
        *("MODEL.SEM_SEG_HEAD.NAME", "PointRendSemSegHead", "MODEL.POINT_HEAD.NUM_CLASSES", 5),
        *("MODEL.POINT_HEAD.SUBDIVISION_STEPS", 2),
    ],
    "SemanticSegmentor": [*PYRAMID, "MODEL.META_ARCHITECTURE", "SemanticSegmentor"],
    "YOLACT": [
        *PYRAMID,
        *("MODEL.META_ARCHITECTURE", "YOLACT", "MODEL.MASK_ON", True),
        *("MODEL.BACKBONE.NAME", "build_resnet_backbone"),
        *("MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"]),
        *("MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"]),
        *("MODEL.YOLACT.NUM_CLASSES", 3, "MODEL.YOLACT.NUM_PROTOTYPES", 8),
        *("MODEL.YOLACT.SCORE_THRESH_TEST", 0.0),
    ],
}
COMMON = [
    *("MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.NUM_CLASSES", 3),
    *("MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0),
    *("MODEL.PIXEL_STD", [58.0, 58.0, 58.0], "TEST.DETECTIONS_PER_IMAGE", 7),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
    *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32),
]


def a_tiny_cfg(system: str) -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_list([*TINY[system], *COMMON])
    return cfg


def an_image(*boxes: tuple[float, ...], size: tuple[int, int] = (64, 80)) -> dict:
    polygons = [[[x0, y0, x1, y0, x1, y1, x0, y1]] for x0, y0, x1, y1 in boxes]
    targets = Targets(
        size,
        gt_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        gt_classes=torch.arange(len(boxes)) % 3,
        gt_masks=PolygonMasks(polygons),
    )
    pixels = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    labels = torch.arange(size[1]).expand(size) // 8 % 5  # stripes
    labels = torch.where(torch.arange(size[0])[:, None] < 10, 255, labels)
    results = {"height": 128, "width": 100}
    return {"image": pixels, "instances": targets, "sem_seg": labels, **results}


@pytest.fixture(scope="session")
def tiny_cfg() -> Callable[[str], CfgNode]:
    """The config of a small model of a system."""
    return a_tiny_cfg


def a_rotated_image(
    *boxes: tuple[float, ...], size: tuple[int, int] = (64, 80), angle: float = 30.0
) -> dict:
    one = an_image(*boxes, size=size)
    upright = one["instances"].gt_boxes.tensor
    turned = BoxMode.convert(upright, BoxMode.XYXY_ABS, BoxMode.XYWHA_ABS)
    turned[:, 4] = angle
    one["instances"].gt_boxes = RotatedBoxes(turned)
    return one


def an_image_of_pixels(*boxes: tuple[float, ...], size: tuple[int, int] = (64, 80)) -> dict:
    one = an_image(*boxes, size=size)
    polygons = one["instances"].gt_masks
    one["instances"].gt_masks = BitMasks.from_polygon_masks(polygons, *size)
    return one


IMAGE_FOR = {
    "RotatedRCNN": a_rotated_image,
    "PointRend": an_image_of_pixels,
    "ImplicitPointRend": an_image_of_pixels,
}


@pytest.fixture(scope="session")
def image_for() -> Callable[[str], Callable[..., dict]]:
    """What makes a system's input, with objects at the given XYXY boxes."""
    return lambda system: IMAGE_FOR.get(system, an_image)


@pytest.fixture(scope="session")
def image() -> Callable[..., dict]:
    """A model's input with objects in the given XYXY boxes."""
    return an_image


@pytest.fixture
def on_demo_pictures(tmp_path: Path) -> Callable[[CfgNode, int], None]:
    """Lets a config train and evaluate on the same few demo pictures."""

    def set_up(cfg: CfgNode, number: int) -> None:
        folder = make_demo_dataset(tmp_path / "demo", num_train=number, num_val=1)
        name = f"{folder}/annotations/instances_train.json:{folder}/train"
        cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
        cfg.OUTPUT_DIR, cfg.DATALOADER.NUM_WORKERS, cfg.SEED = str(tmp_path / "run"), 0, 1

    return set_up
