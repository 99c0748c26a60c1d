import pytest
import torch

from segdet.errors import ConfigError
from segdet.modeling import build_model
from segdet.structures import RotatedBoxes


def test_detections_are_rotated(tiny_cfg, image_for):
    model = build_model(tiny_cfg("RotatedRCNN")).eval()
    assert model.roi_heads.box_predictor.bbox_pred.out_features == 3 * 5
    with torch.no_grad():
        found = model([image_for("RotatedRCNN")()])[0]["instances"]
    assert isinstance(found.pred_boxes, RotatedBoxes) and len(found)


@pytest.mark.parametrize(
    "key, value",
    [
        ("MASK_ON", True),
        ("KEYPOINT_ON", True),
        ("PROPOSAL_GENERATOR.NAME", "RPN"),
        ("ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV2"),
        ("ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True),
    ],
)
def test_what_rotated_heads_cannot_do_is_refused(tiny_cfg, key, value):
    cfg = tiny_cfg("RotatedRCNN")
    cfg.merge_from_list([f"MODEL.{key}", value])
    with pytest.raises(ConfigError, match=f"RROIHeads need {key} = .*, it is {value}"):
        build_model(cfg)
