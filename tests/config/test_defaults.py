import json
from pathlib import Path

import pytest

from segdet.config import CfgNode, get_cfg
from segdet.config.defaults import COMMON, SECTIONS, gather
from segdet.config.reader import defaults_of, read_section
from segdet.errors import ConfigError
from segdet.modeling.meta_arch import SYSTEMS

ROOT = Path(__file__).parents[2]
# Every key of detectron2, with its default as detectron2 writes it.
DETECTRON2 = {
    "": {
        "VERSION": 2, "OUTPUT_DIR": "./output", "SEED": -1, "CUDNN_BENCHMARK": False,
        "FLOAT32_PRECISION": "", "VIS_PERIOD": 0,
    },
    "GLOBAL": {"HACK": 1.0},
    "MODEL": {
        "LOAD_PROPOSALS": False, "MASK_ON": False, "KEYPOINT_ON": False, "DEVICE": "cuda",
        "META_ARCHITECTURE": "GeneralizedRCNN", "WEIGHTS": "",
        "PIXEL_MEAN": [103.53, 116.28, 123.675], "PIXEL_STD": [1.0, 1.0, 1.0],
    },
    "MODEL.BACKBONE": {"NAME": "build_resnet_backbone", "FREEZE_AT": 2},
    "MODEL.FPN": {"IN_FEATURES": [], "OUT_CHANNELS": 256, "NORM": "", "FUSE_TYPE": "sum"},
    "MODEL.PROPOSAL_GENERATOR": {"NAME": "RPN", "MIN_SIZE": 0},
    "MODEL.ANCHOR_GENERATOR": {
        "NAME": "DefaultAnchorGenerator", "SIZES": [[32, 64, 128, 256, 512]],
        "ASPECT_RATIOS": [[0.5, 1.0, 2.0]], "ANGLES": [[-90, 0, 90]], "OFFSET": 0.0,
    },
    "MODEL.RPN": {
        "HEAD_NAME": "StandardRPNHead", "IN_FEATURES": ["res4"], "BOUNDARY_THRESH": -1,
        "IOU_THRESHOLDS": [0.3, 0.7], "IOU_LABELS": [0, -1, 1], "BATCH_SIZE_PER_IMAGE": 256,
        "POSITIVE_FRACTION": 0.5, "BBOX_REG_LOSS_TYPE": "smooth_l1", "BBOX_REG_LOSS_WEIGHT": 1.0,
        "BBOX_REG_WEIGHTS": (1.0, 1.0, 1.0, 1.0), "SMOOTH_L1_BETA": 0.0, "LOSS_WEIGHT": 1.0,
        "PRE_NMS_TOPK_TRAIN": 12000, "PRE_NMS_TOPK_TEST": 6000, "POST_NMS_TOPK_TRAIN": 2000,
        "POST_NMS_TOPK_TEST": 1000, "NMS_THRESH": 0.7, "CONV_DIMS": [-1],
    },
    "MODEL.ROI_HEADS": {
        "NAME": "Res5ROIHeads", "NUM_CLASSES": 80, "IN_FEATURES": ["res4"], "IOU_THRESHOLDS": [0.5],
        "IOU_LABELS": [0, 1], "BATCH_SIZE_PER_IMAGE": 512, "POSITIVE_FRACTION": 0.25,
        "SCORE_THRESH_TEST": 0.05, "NMS_THRESH_TEST": 0.5, "PROPOSAL_APPEND_GT": True,
    },
    "MODEL.ROI_BOX_HEAD": {
        "NAME": "", "BBOX_REG_LOSS_TYPE": "smooth_l1", "BBOX_REG_LOSS_WEIGHT": 1.0,
        "BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0), "SMOOTH_L1_BETA": 0.0, "POOLER_RESOLUTION": 14,
        "POOLER_SAMPLING_RATIO": 0, "POOLER_TYPE": "ROIAlignV2", "NUM_FC": 0, "FC_DIM": 1024,
        "NUM_CONV": 0, "CONV_DIM": 256, "NORM": "", "CLS_AGNOSTIC_BBOX_REG": False,
        "TRAIN_ON_PRED_BOXES": False, "USE_FED_LOSS": False, "USE_SIGMOID_CE": False,
        "FED_LOSS_FREQ_WEIGHT_POWER": 0.5, "FED_LOSS_NUM_CLASSES": 50,
    },
    "MODEL.ROI_BOX_CASCADE_HEAD": {
        "BBOX_REG_WEIGHTS": (
            (10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0),
        ),
        "IOUS": (0.5, 0.6, 0.7),
    },
    "MODEL.ROI_MASK_HEAD": {
        "NAME": "MaskRCNNConvUpsampleHead", "POOLER_RESOLUTION": 14, "POOLER_SAMPLING_RATIO": 0,
        "NUM_CONV": 0, "CONV_DIM": 256, "NORM": "", "CLS_AGNOSTIC_MASK": False,
        "POOLER_TYPE": "ROIAlignV2",
    },
    "MODEL.ROI_KEYPOINT_HEAD": {
        "NAME": "KRCNNConvDeconvUpsampleHead", "POOLER_RESOLUTION": 14, "POOLER_SAMPLING_RATIO": 0,
        "CONV_DIMS": (512, 512, 512, 512, 512, 512, 512, 512), "NUM_KEYPOINTS": 17,
        "MIN_KEYPOINTS_PER_IMAGE": 1, "NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS": True,
        "LOSS_WEIGHT": 1.0, "POOLER_TYPE": "ROIAlignV2",
    },
    "MODEL.SEM_SEG_HEAD": {
        "NAME": "SemSegFPNHead", "IN_FEATURES": ["p2", "p3", "p4", "p5"], "IGNORE_VALUE": 255,
        "NUM_CLASSES": 54, "CONVS_DIM": 128, "COMMON_STRIDE": 4, "NORM": "GN", "LOSS_WEIGHT": 1.0,
    },
    "MODEL.PANOPTIC_FPN": {"INSTANCE_LOSS_WEIGHT": 1.0},
    "MODEL.PANOPTIC_FPN.COMBINE": {
        "ENABLED": True, "OVERLAP_THRESH": 0.5, "STUFF_AREA_LIMIT": 4096,
        "INSTANCES_CONFIDENCE_THRESH": 0.5,
    },
    "MODEL.RETINANET": {
        "NUM_CLASSES": 80, "IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"], "NUM_CONVS": 4,
        "IOU_THRESHOLDS": [0.4, 0.5], "IOU_LABELS": [0, -1, 1], "PRIOR_PROB": 0.01,
        "SCORE_THRESH_TEST": 0.05, "TOPK_CANDIDATES_TEST": 1000, "NMS_THRESH_TEST": 0.5,
        "BBOX_REG_WEIGHTS": (1.0, 1.0, 1.0, 1.0), "FOCAL_LOSS_GAMMA": 2.0, "FOCAL_LOSS_ALPHA": 0.25,
        "SMOOTH_L1_LOSS_BETA": 0.1, "BBOX_REG_LOSS_TYPE": "smooth_l1", "NORM": "",
    },
    "MODEL.RESNETS": {
        "DEPTH": 50, "OUT_FEATURES": ["res4"], "NUM_GROUPS": 1, "NORM": "FrozenBN",
        "WIDTH_PER_GROUP": 64, "STRIDE_IN_1X1": True, "RES5_DILATION": 1, "RES2_OUT_CHANNELS": 256,
        "STEM_OUT_CHANNELS": 64, "DEFORM_ON_PER_STAGE": [False, False, False, False],
        "DEFORM_MODULATED": False, "DEFORM_NUM_GROUPS": 1,
    },
    "INPUT": {
        "MIN_SIZE_TRAIN": (800,), "MIN_SIZE_TRAIN_SAMPLING": "choice", "MAX_SIZE_TRAIN": 1333,
        "MIN_SIZE_TEST": 800, "MAX_SIZE_TEST": 1333, "RANDOM_FLIP": "horizontal", "FORMAT": "BGR",
        "MASK_FORMAT": "polygon",
    },
    "INPUT.CROP": {"ENABLED": False, "TYPE": "relative_range", "SIZE": [0.9, 0.9]},
    "DATASETS": {
        "TRAIN": (), "TEST": (), "PROPOSAL_FILES_TRAIN": (), "PROPOSAL_FILES_TEST": (),
        "PRECOMPUTED_PROPOSAL_TOPK_TRAIN": 2000, "PRECOMPUTED_PROPOSAL_TOPK_TEST": 1000,
    },
    "DATALOADER": {
        "NUM_WORKERS": 4, "ASPECT_RATIO_GROUPING": True, "SAMPLER_TRAIN": "TrainingSampler",
        "REPEAT_THRESHOLD": 0.0, "REPEAT_SQRT": True, "FILTER_EMPTY_ANNOTATIONS": True,
    },
    "SOLVER": {
        "LR_SCHEDULER_NAME": "WarmupMultiStepLR", "MAX_ITER": 40000, "BASE_LR": 0.001,
        "BASE_LR_END": 0.0, "MOMENTUM": 0.9, "NESTEROV": False, "WEIGHT_DECAY": 0.0001,
        "WEIGHT_DECAY_NORM": 0.0, "WEIGHT_DECAY_BIAS": None, "BIAS_LR_FACTOR": 1.0, "GAMMA": 0.1,
        "STEPS": (30000,), "NUM_DECAYS": 3, "WARMUP_FACTOR": 0.001, "WARMUP_ITERS": 1000,
        "WARMUP_METHOD": "linear", "RESCALE_INTERVAL": False, "CHECKPOINT_PERIOD": 5000,
        "IMS_PER_BATCH": 16, "REFERENCE_WORLD_SIZE": 0,
    },
    "SOLVER.CLIP_GRADIENTS": {
        "ENABLED": False, "CLIP_TYPE": "value", "CLIP_VALUE": 1.0, "NORM_TYPE": 2.0,
    },
    "SOLVER.AMP": {"ENABLED": False},
    "TEST": {
        "EXPECTED_RESULTS": [], "EVAL_PERIOD": 0, "KEYPOINT_OKS_SIGMAS": [],
        "DETECTIONS_PER_IMAGE": 100,
    },
    "TEST.AUG": {
        "ENABLED": False, "MIN_SIZES": (400, 500, 600, 700, 800, 900, 1000, 1100, 1200),
        "MAX_SIZE": 4000, "FLIP": True,
    },
    "TEST.PRECISE_BN": {"ENABLED": False, "NUM_ITER": 200},
}  # fmt: skip
# Keys of its projects that are built in, there added by calls as `add_pointrend_config(cfg)`.
PROJECTS = {
    "INPUT": {"COLOR_AUG_SSD": False},
    "INPUT.CROP": {"SINGLE_CATEGORY_MAX_AREA": 1.0},
    "MODEL.ROI_MASK_HEAD": {
        "IN_FEATURES": ("p2",), "FC_DIM": 1024, "NUM_FC": 2, "OUTPUT_SIDE_RESOLUTION": 7,
        "POINT_HEAD_ON": False,
    },
    "MODEL.POINT_HEAD": {
        "NAME": "StandardPointHead", "NUM_CLASSES": 80, "IN_FEATURES": ("p2",),
        "TRAIN_NUM_POINTS": 196, "OVERSAMPLE_RATIO": 3, "IMPORTANCE_SAMPLE_RATIO": 0.75,
        "SUBDIVISION_STEPS": 5, "SUBDIVISION_NUM_POINTS": 784, "FC_DIM": 256, "NUM_FC": 3,
        "CLS_AGNOSTIC_MASK": False, "COARSE_PRED_EACH_LAYER": True,
        "COARSE_SEM_SEG_HEAD_NAME": "SemSegFPNHead",
    },
    "MODEL.IMPLICIT_POINTREND": {
        "IMAGE_FEATURE_ENABLED": True, "POS_ENC_ENABLED": True, "PARAMS_L2_REGULARIZER": 1e-5,
    },
}  # fmt: skip
# Keys of systems that are not detectron2's, with the defaults of their originals.
BEYOND = {
    "SOLVER": {
        "CHECKPOINTS_KEPT": 0, "RESUME_CHANGED": False, "NONFINITE": "stop", "ACCUMULATE": 1,
    },
    "SOLVER.AMP": {"PRECISION": ""},  # D2Go's name
    "TEST": {"BEST_METRIC": ""},
    "TEST.AMP": {"ENABLED": False, "PRECISION": ""},
    "MODEL_EMA": {"ENABLED": False, "DECAY": 0.999},  # D2Go's names
    "MODEL": {"MASKIOU_ON": False, "MASKIOU_LOSS_WEIGHT": 1.0, "MOBILENET": False},
    "MODEL.BACKBONE": {"USE_ACT_CHECKPOINT": False},
    "MODEL.COMPILE": {"ENABLED": False, "MODE": "default"},
    "MODEL.ROI_MASKIOU_HEAD": {"NAME": "MaskIoUHead", "CONV_DIM": 256, "NUM_CONV": 4},
    "MODEL.FCIS": {
        "CONV_DIM": 1024, "GROUP_SIZE": 7, "POOLED_SIZE": 21, "OHEM": True,
        "MASK_LOSS_WEIGHT": 10.0, "MASK_THRESH": 0.4, "VOTE_THRESH": 0.5,
    },
    "MODEL.FCOS": {
        "NUM_CLASSES": 80, "IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"],
        "FPN_STRIDES": [8, 16, 32, 64, 128], "TOP_LEVELS": 2, "PRIOR_PROB": 0.01,
        "INFERENCE_TH_TRAIN": 0.05, "INFERENCE_TH_TEST": 0.05, "NMS_TH": 0.6,
        "PRE_NMS_TOPK_TRAIN": 1000, "PRE_NMS_TOPK_TEST": 1000,
        "POST_NMS_TOPK_TRAIN": 100, "POST_NMS_TOPK_TEST": 100,
        "NORM": "GN", "USE_SCALE": True, "BOX_QUALITY": "ctrness", "THRESH_WITH_CTR": False,
        "LOSS_ALPHA": 0.25, "LOSS_GAMMA": 2.0, "LOSS_NORMALIZER_CLS": "fg", "LOSS_WEIGHT_CLS": 1.0,
        "SIZES_OF_INTEREST": [64, 128, 256, 512], "USE_RELU": True, "USE_DEFORMABLE": False,
        "NUM_CLS_CONVS": 4, "NUM_BOX_CONVS": 4, "NUM_SHARE_CONVS": 0,
        "CENTER_SAMPLE": True, "POS_RADIUS": 1.5, "LOC_LOSS_TYPE": "giou",
        "YIELD_PROPOSAL": False, "YIELD_BOX_FEATURES": False,
    },
    "MODEL.ROI_KEYPOINT_HEAD": {
        "IN_FEATURES": ("p2", "p3", "p4", "p5"), "ASSIGN_CRITERION": "ratio",
    },
    "MODEL.ROI_MASK_HEAD": {"ASSIGN_CRITERION": "area"},
    "MODEL.BASIS_MODULE": {
        "NAME": "ProtoNet", "NUM_BASES": 4, "LOSS_ON": False, "ANN_SET": "coco", "CONVS_DIM": 128,
        "IN_FEATURES": ["p3", "p4", "p5"], "NORM": "SyncBN", "NUM_CONVS": 3, "COMMON_STRIDE": 8,
        "NUM_CLASSES": 80, "LOSS_WEIGHT": 0.3,
    },
    "MODEL.BLENDMASK": {
        "ATTN_SIZE": 14, "TOP_INTERP": "bilinear", "BOTTOM_RESOLUTION": 56,
        "POOLER_TYPE": "ROIAlignV2", "POOLER_SAMPLING_RATIO": 1, "POOLER_SCALES": [0.25],
        "INSTANCE_LOSS_WEIGHT": 1.0, "VISUALIZE": False,
    },
    "MODEL.DLA": {"CONV_BODY": "DLA34", "NORM": "FrozenBN"},
    "MODEL.RESNETS": {"DEFORM_INTERVAL": 1, "DEFORM_BIAS": False, "STEM_POOL_PADDING": 1},
    "INPUT": {"SQUARE_SIZE": 0, "RANDOM_ROTATION": 0.0},
    "INPUT.LSJ": {"ENABLED": False, "MIN_SCALE": 0.1, "MAX_SCALE": 2.0, "SIZE": 1024},
    "INPUT.COLOR": {"BRIGHTNESS": 0.0, "CONTRAST": 0.0, "SATURATION": 0.0},
    "INPUT.COPY_PASTE": {"PROB": 0.0},
    "INPUT.MOSAIC": {"PROB": 0.0, "SCALE": 0.5},
    "INPUT.SSD": {"PHOTOMETRIC": False, "EXPAND": False, "CROP": False},
    "MODEL.YOLACT": {
        "NUM_CLASSES": 80, "NUM_PROTOTYPES": 32,
        "ANCHOR_SCALES": ((24,), (48,), (96,), (192,), (384,)), "ASPECT_RATIOS": (1.0, 0.5, 2.0),
        "SQUARE_ANCHORS": True, "IOU_THRESHOLDS": (0.4, 0.5), "CROWD_IOU_THRESHOLD": 0.7,
        "NEGATIVES_PER_POSITIVE": 3, "MASKS_TO_TRAIN": 100, "DISCARD_MASK_AREA": 25,
        "CLS_LOSS_WEIGHT": 1.0, "BBOX_REG_LOSS_WEIGHT": 1.5, "MASK_LOSS_WEIGHT": 6.125,
        "SEMANTIC_LOSS_WEIGHT": 1.0, "MASKIOU_LOSS_WEIGHT": 25.0, "SCORE_THRESH_TEST": 0.05,
        "NMS_THRESH_TEST": 0.5, "TOPK_CANDIDATES_TEST": 200, "FAST_NMS": True,
        "CROSS_CLASS_NMS": False, "MIN_IMAGES_FOR_BN": 6,
    },
    "MODEL.VOVNET": {
        "CONV_BODY": "V-39-eSE", "OUT_FEATURES": ["stage2", "stage3", "stage4", "stage5"],
        "NORM": "FrozenBN", "STAGE_WITH_DCN": (False, False, False, False),
        "WITH_MODULATED_DCN": False, "DEFORMABLE_GROUPS": 1, "OUT_CHANNELS": 256,
        "BACKBONE_OUT_CHANNELS": 256,
    },
}  # fmt: skip


def flat(cfg: CfgNode) -> dict[str, object]:
    return {path: value for path, value, _ in cfg.leaves()}


def as_lists(value: object) -> object:
    return [as_lists(one) for one in value] if isinstance(value, (list, tuple)) else value


def test_the_tree_is_detectron2s_and_what_other_systems_add():
    expected = {
        f"{section}.{key}".removeprefix("."): value
        for tree in (DETECTRON2, PROJECTS, BEYOND)
        for section, keys in tree.items()
        for key, value in keys.items()
    }
    actual = flat(get_cfg())
    assert actual == expected
    for path, value in expected.items():
        assert type(actual[path]) is type(value), path


def test_every_value_comes_from_a_default():
    assert {source for _, _, source in get_cfg().leaves()} == {"default"}


def test_each_call_gives_a_tree_of_its_own():
    first = get_cfg()
    first.MODEL.ANCHOR_GENERATOR.SIZES[0].append(1024)
    first.MODEL.MASK_ON = True
    assert get_cfg().MODEL.ANCHOR_GENERATOR.SIZES == [[32, 64, 128, 256, 512]]
    assert get_cfg().MODEL.MASK_ON is False


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_defaults_read_back_as_each_systems_section(name):
    assert read_section(SYSTEMS[name], get_cfg(), at="MODEL") == SYSTEMS[name]()


@pytest.mark.parametrize("at", SECTIONS)
def test_the_defaults_read_back_as_each_section(at):
    assert read_section(SECTIONS[at], get_cfg(), at=at) == SECTIONS[at]()


def test_common_keys_belong_to_no_section():
    owned = [defaults_of(section) for section in SYSTEMS.values()]
    owned_keys = {f"MODEL.{path}" for tree in owned for path in flat(tree)}
    assert not owned_keys & flat(CfgNode(COMMON)).keys()


def test_two_sections_that_disagree_are_refused():
    one, other = CfgNode({"MODEL": {"A": 1, "B": 1}}), CfgNode({"MODEL": {"A": 1, "C": 1}})
    assert gather([one, other]) == {"MODEL": {"A": 1, "B": 1, "C": 1}}
    other.MODEL.A = 2
    with pytest.raises(ConfigError, match=r"MODEL.A has two defaults: 1 and 2"):
        gather([one, other])


@pytest.mark.parametrize(
    "case", ["mask_rcnn_r50_fpn", "mask_rcnn_r50_c4", "panoptic_fpn_r50", "semantic_fpn_r50"]
)
def test_an_official_file_resolves_as_in_the_original(parity_dir: Path, case: str):
    meta = json.loads((parity_dir / "models" / f"{case}.json").read_text())
    cfg = get_cfg()
    cfg.merge_from_file(str(ROOT / meta["official_config"]))
    cfg.merge_from_list(meta["overrides"])
    resolved = meta["resolved_config"] | {"MODEL.WEIGHTS": cfg.MODEL.WEIGHTS}
    ours = {path: as_lists(value) for path, value in flat(cfg).items() if path in resolved}
    assert ours == resolved
