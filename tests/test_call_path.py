import pytest

from benchmarks.call_path import CONFIG, frames_to_head
from segdet.config import get_cfg
from segdet.modeling.box_head import FastRCNNConvFCHead
from segdet.modeling.fcis_head import FCISHead
from segdet.modeling.fcis_rpn import TwoScoreRPNHead
from segdet.modeling.fcos_head import FCOSHead
from segdet.modeling.mask_head import MaskRCNNConvUpsampleHead
from segdet.modeling.maskiou_head import MaskIoUHead
from segdet.modeling.rpn import StandardRPNHead
from segdet.modeling.sem_seg_head import SemSegFPNHead
from segdet.modeling.yolact_layers import PredictionHead


@pytest.mark.parametrize(
    "config, head",
    [
        ("mask_rcnn", FastRCNNConvFCHead),
        ("mask_rcnn", MaskRCNNConvUpsampleHead),
        ("mask_rcnn", StandardRPNHead),
        ("fcos", FCOSHead),
        ("yolact", PredictionHead),
        ("panoptic_fpn", MaskRCNNConvUpsampleHead),
        ("panoptic_fpn", SemSegFPNHead),
        ("fcis", FCISHead),
        ("fcis", TwoScoreRPNHead),
        ("centermask_lite", MaskRCNNConvUpsampleHead),
        ("centermask_lite", MaskIoUHead),
    ],
)
def test_a_head_is_at_most_four_of_our_frames_from_build_model(config, head):
    cfg = get_cfg()
    cfg.merge_from_file(CONFIG.with_name(f"{config}.yaml"))
    frames = frames_to_head(cfg, head)
    assert frames[0] == "build_model" and frames[-1] == f"{head.__name__}.__init__"
    assert len(frames) <= 4
