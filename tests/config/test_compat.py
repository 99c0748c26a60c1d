import pytest

from segdet.config import get_cfg
from segdet.config.compat import upgrade

RENAMES = """
MODEL.RPN_HEAD.NAME MODEL.RPN.HEAD_NAME
MODEL.WEIGHT MODEL.WEIGHTS
MODEL.PANOPTIC_FPN.SEMANTIC_LOSS_SCALE MODEL.SEM_SEG_HEAD.LOSS_WEIGHT
MODEL.PANOPTIC_FPN.RPN_LOSS_SCALE MODEL.RPN.LOSS_WEIGHT
MODEL.PANOPTIC_FPN.INSTANCE_LOSS_SCALE MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT
MODEL.PANOPTIC_FPN.COMBINE_ON MODEL.PANOPTIC_FPN.COMBINE.ENABLED
MODEL.PANOPTIC_FPN.COMBINE_OVERLAP_THRESHOLD MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH
MODEL.PANOPTIC_FPN.COMBINE_STUFF_AREA_LIMIT MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT
MODEL.PANOPTIC_FPN.COMBINE_INSTANCES_CONFIDENCE_THRESHOLD \
    MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH
MODEL.ROI_HEADS.SCORE_THRESH MODEL.ROI_HEADS.SCORE_THRESH_TEST
MODEL.ROI_HEADS.NMS MODEL.ROI_HEADS.NMS_THRESH_TEST
MODEL.RETINANET.INFERENCE_SCORE_THRESHOLD MODEL.RETINANET.SCORE_THRESH_TEST
MODEL.RETINANET.INFERENCE_TOPK_CANDIDATES MODEL.RETINANET.TOPK_CANDIDATES_TEST
MODEL.RETINANET.INFERENCE_NMS_THRESHOLD MODEL.RETINANET.NMS_THRESH_TEST
MODEL.RPN.ANCHOR_SIZES MODEL.ANCHOR_GENERATOR.SIZES
MODEL.RPN.ANCHOR_ASPECT_RATIOS MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS
TEST.DETECTIONS_PER_IMG TEST.DETECTIONS_PER_IMAGE
TEST.AUG_ON TEST.AUG.ENABLED
TEST.AUG_MIN_SIZES TEST.AUG.MIN_SIZES
TEST.AUG_MAX_SIZE TEST.AUG.MAX_SIZE
TEST.AUG_FLIP TEST.AUG.FLIP
""".strip().splitlines()


@pytest.mark.parametrize("old, new", [line.split() for line in RENAMES])
@pytest.mark.parametrize("version", [0, 1])
def test_each_rename(old, new, version):
    upgraded = upgrade([("VERSION", version, "a.yaml"), (old, 3, "a.yaml")], "a.yaml")
    assert upgraded == [("VERSION", 2, "a.yaml"), (new, 3, "a.yaml")]
    assert get_cfg().source_of(new) == "default"


@pytest.mark.parametrize("system, kept", [("RetinaNet", "retinanet"), ("GeneralizedRCNN", "rpn")])
def test_the_anchors_of_the_files_own_system_count(system, kept):
    leaves = [
        ("VERSION", 1, ""),
        ("MODEL.META_ARCHITECTURE", system, ""),
        ("MODEL.RPN.ANCHOR_SIZES", "rpn", ""),
        ("MODEL.RETINANET.ANCHOR_SIZES", "retinanet", ""),
    ]
    assert upgrade(leaves, "")[2:] == [("MODEL.ANCHOR_GENERATOR.SIZES", kept, "")]


@pytest.mark.parametrize("key", ["MODEL.WEIGHT", "TEST.AUG_ON"])
def test_a_tell_tale_key_means_version_1(key):
    assert upgrade([(key, 1, "")], "") != [(key, 1, "")]


def test_today_is_left_alone():
    leaves = [("MODEL.ROI_HEADS.NMS", 0.5, "")]
    assert upgrade(leaves, "") == leaves
