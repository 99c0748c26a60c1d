import pytest
import torch

from segdet.checkpoint.families.caffe2 import caffe2_name
from segdet.checkpoint.families.torchvision import (
    torchvision_mobilenet_v2_name,
    torchvision_resnet_name,
)
from segdet.checkpoint.names import (
    find_family,
    match_suffixes,
    strip_data_parallel,
    to_official,
)
from segdet.errors import CheckpointError

RPN = "proposal_generator.rpn_head"
KEYPOINT = "roi_heads.keypoint_head"

CAFFE2 = {
    # classifier of a bare backbone
    "pred_w": "linear.weight",
    "pred_b": "linear.bias",
    # stem
    "conv1_w": "stem.conv1.weight",
    "conv1_b": "stem.conv1.bias",
    "res_conv1_bn_s": "stem.conv1.norm.weight",
    "res_conv1_bn_b": "stem.conv1.norm.bias",
    "res_conv1_bn_gamma": "stem.conv1.norm.weight",
    "res_conv1_bn_beta": "stem.conv1.norm.bias",
    "res_conv1_bn_rm": "stem.conv1.norm.running_mean",
    "res_conv1_bn_riv": "stem.conv1.norm.running_var",
    "res_conv1_bn_running_mean": "stem.conv1.norm.running_mean",
    "res_conv1_bn_running_var": "stem.conv1.norm.running_var",
    "conv1_gn_s": "stem.conv1.norm.weight",
    "conv1_gn_b": "stem.conv1.norm.bias",
    # blocks
    "res2_0_branch1_w": "res2.0.shortcut.weight",
    "res2_0_branch1_bn_s": "res2.0.shortcut.norm.weight",
    "res2_0_branch1_bn_b": "res2.0.shortcut.norm.bias",
    "res2_0_branch2a_w": "res2.0.conv1.weight",
    "res2_0_branch2a_bn_s": "res2.0.conv1.norm.weight",
    "res3_3_branch2b_w": "res3.3.conv2.weight",
    "res3_3_branch2b_bn_beta": "res3.3.conv2.norm.bias",
    "res4_22_branch2c_w": "res4.22.conv3.weight",
    "res4_22_branch2c_bn_running_mean": "res4.22.conv3.norm.running_mean",
    "res4_22_branch2c_bn_running_var": "res4.22.conv3.norm.running_var",
    "res4_5_branch2b_bn_rm": "res4.5.conv2.norm.running_mean",
    "res4_5_branch2b_bn_riv": "res4.5.conv2.norm.running_var",
    "res5_2_branch2c_gn_s": "res5.2.conv3.norm.weight",
    "res5_2_branch2c_gn_b": "res5.2.conv3.norm.bias",
    # RPN
    "conv_rpn_w": f"{RPN}.conv.weight",
    "conv_rpn_b": f"{RPN}.conv.bias",
    "conv_rpn_fpn2_w": f"{RPN}.conv.weight",
    "conv_rpn_fpn2_b": f"{RPN}.conv.bias",
    "rpn_cls_logits_w": f"{RPN}.objectness_logits.weight",
    "rpn_cls_logits_fpn2_b": f"{RPN}.objectness_logits.bias",
    "rpn_bbox_pred_w": f"{RPN}.anchor_deltas.weight",
    "rpn_bbox_pred_fpn2_b": f"{RPN}.anchor_deltas.bias",
    # box head
    "bbox_pred_w": "bbox_pred.weight",
    "bbox_pred_b": "bbox_pred.bias",
    "cls_score_w": "cls_score.weight",
    "cls_score_b": "cls_score.bias",
    "fc6_w": "box_head.fc1.weight",
    "fc6_b": "box_head.fc1.bias",
    "fc7_w": "box_head.fc2.weight",
    "head_conv1_w": "box_head.conv1.weight",
    "head_conv4_gn_s": "box_head.conv4.norm.weight",
    "head_conv4_gn_b": "box_head.conv4.norm.bias",
    # FPN
    "fpn_inner_res5_2_sum_w": "fpn_lateral5.weight",
    "fpn_inner_res5_2_sum_b": "fpn_lateral5.bias",
    "fpn_inner_res2_2_sum_lateral_w": "fpn_lateral2.weight",
    "fpn_inner_res4_22_sum_lateral_b": "fpn_lateral4.bias",
    "fpn_inner_res3_3_sum_lateral_gn_s": "fpn_lateral3.norm.weight",
    "fpn_inner_res5_2_sum_gn_b": "fpn_lateral5.norm.bias",
    "fpn_res2_2_sum_w": "fpn_output2.weight",
    "fpn_res5_2_sum_b": "fpn_output5.bias",
    "fpn_res4_5_sum_gn_s": "fpn_output4.norm.weight",
    "fpn_res4_5_sum_gn_b": "fpn_output4.norm.bias",
    # mask head
    "_[mask]_fcn1_w": "mask_head.mask_fcn1.weight",
    "_[mask]_fcn4_b": "mask_head.mask_fcn4.bias",
    "_[mask]_fcn2_gn_s": "mask_head.mask_fcn2.norm.weight",
    "_mask_fcn3_w": "mask_head.mask_fcn3.weight",
    "conv5_mask_w": "mask_head.deconv.weight",
    "conv5_mask_b": "mask_head.deconv.bias",
    "mask_fcn_logits_w": "mask_head.predictor.weight",
    "mask_fcn_logits_b": "mask_head.predictor.bias",
    # keypoint head
    "conv_fcn1_w": f"{KEYPOINT}.conv_fcn1.weight",
    "conv_fcn8_b": f"{KEYPOINT}.conv_fcn8.bias",
    "kps_score_lowres_w": f"{KEYPOINT}.score_lowres.weight",
    "kps_score_w": f"{KEYPOINT}.score.weight",
    # DensePose
    "body_conv_fcn1_w": "body_conv_fcn1.weight",
    "AnnIndex_lowres_w": "ann_index_lowres.weight",
    "Index_UV_lowres_b": "index_uv_lowres.bias",
    "U_lowres_w": "u_lowres.weight",
    "V_lowres_b": "v_lowres.bias",
}


@pytest.mark.parametrize("old, new", CAFFE2.items())
def test_caffe2_name(old, new):
    assert caffe2_name(old) == new


@pytest.mark.parametrize(
    "old, new",
    [
        ("conv1.weight", "stem.conv1.weight"),
        ("bn1.weight", "stem.conv1.norm.weight"),
        ("bn1.running_var", "stem.conv1.norm.running_var"),
        ("layer1.0.conv1.weight", "res2.0.conv1.weight"),
        ("layer1.0.bn3.bias", "res2.0.conv3.norm.bias"),
        ("layer3.22.bn2.running_mean", "res4.22.conv2.norm.running_mean"),
        ("layer4.0.downsample.0.weight", "res5.0.shortcut.weight"),
        ("layer4.0.downsample.1.weight", "res5.0.shortcut.norm.weight"),
        ("fc.weight", "fc.weight"),
    ],
)
def test_torchvision_resnet_name(old, new):
    assert torchvision_resnet_name(old) == new


@pytest.mark.parametrize(
    "old, new",
    [
        ("features.0.0.weight", "features.0.0.weight"),
        ("features.0.1.running_mean", "features.0.1.running_mean"),
        ("features.1.conv.0.0.weight", "features.1.conv.0.weight"),
        ("features.1.conv.0.1.bias", "features.1.conv.1.bias"),
        ("features.1.conv.1.weight", "features.1.conv.3.weight"),
        ("features.1.conv.2.running_var", "features.1.conv.4.running_var"),
        ("features.2.conv.0.0.weight", "features.2.conv.0.weight"),
        ("features.2.conv.1.0.weight", "features.2.conv.3.weight"),
        ("features.2.conv.1.1.bias", "features.2.conv.4.bias"),
        ("features.17.conv.2.weight", "features.17.conv.6.weight"),
        ("features.17.conv.3.running_mean", "features.17.conv.7.running_mean"),
        ("features.18.0.weight", "features.18.0.weight"),
        ("classifier.1.weight", "classifier.1.weight"),
    ],
)
def test_torchvision_mobilenet_v2_name(old, new):
    assert torchvision_mobilenet_v2_name(old) == new


def test_caffe2_background_class_goes_last_or_away():
    weights = {
        "cls_score_w": torch.tensor([[0.0], [1.0], [2.0]]),
        "bbox_pred_b": torch.arange(12.0),
        "mask_fcn_logits_b": torch.arange(3.0),
        "fc6_b": torch.arange(3.0),
        "fc6_b_momentum": torch.arange(3.0),
    }
    family = find_family(weights, ["roi_heads.box_predictor.cls_score.weight"])
    official, origins = to_official(family, weights, "model.pkl")
    assert official["cls_score.weight"].flatten().tolist() == [1, 2, 0]
    assert official["bbox_pred.bias"].tolist() == [4, 5, 6, 7, 8, 9, 10, 11]
    assert official["mask_head.predictor.bias"].tolist() == [1, 2]
    assert official["box_head.fc1.bias"].tolist() == [0, 1, 2]
    assert len(official) == 4  # no momentum
    assert origins["mask_head.predictor.bias"] == "mask_fcn_logits_b"


def test_two_names_for_one_parameter_are_refused():
    weights = {"conv_rpn_w": torch.zeros(1), "conv_rpn_fpn2_w": torch.zeros(1)}
    message = f"a.pkl: conv_rpn_w and conv_rpn_fpn2_w both mean {RPN}.conv.weight"
    with pytest.raises(CheckpointError, match=message):
        to_official(find_family(weights, []), weights, "a.pkl")


@pytest.mark.parametrize(
    "names, title",
    [
        (["conv1_w", "res2_0_branch1_bn_s"], "Caffe2"),
        (["conv1.weight", "layer1.0.conv1.weight"], "torchvision ResNet"),
        (["features.0.0.weight", "features.1.conv.0.0.weight"], "torchvision MobileNetV2"),
        (["stem.stem_1/conv.weight"], "CenterMask2's VoVNet"),
        (["features.0.0.weight", "features.1.conv.3.weight"], "CenterMask2's MobileNetV2"),
        (["backbone.bottom_up.stem.stem_1/conv.weight"], None),
        (["stem.conv1.weight", "res2.0.conv1.weight"], None),
        (["features.0.0.weight", "features.1.conv.0.weight"], None),
        (["weight", "bias"], None),
        ([], None),
    ],
)
def test_find_family(names, title):
    family = find_family(names, ["features.0.0.weight"])
    assert (family and family.title) == title


def test_names_that_the_model_has_are_not_foreign():
    names = ["conv1.weight", "layer1.0.conv1.weight"]
    assert find_family(names, names) is None


def test_match_suffixes_takes_the_longest_match_at_a_dot():
    model = ["a.b.c", "x.b.c", "a.xb.c", "d", "a.b.e"]
    assert match_suffixes(model, ["b.c", "a.b.c", "d", "e.f"]) == {
        "a.b.c": "a.b.c",
        "x.b.c": "b.c",
        "d": "d",
    }


def test_strip_data_parallel_only_where_every_name_has_it():
    value = torch.zeros(1)
    assert list(strip_data_parallel({"module.a": value, "module.b": value})) == ["a", "b"]
    assert list(strip_data_parallel({"module.a": value, "b": value})) == ["module.a", "b"]
    assert strip_data_parallel({}) == {}
