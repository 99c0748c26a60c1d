"""Caffe2, the language of Detectron and of the ImageNet backbones that detectron2 starts from."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from segdet.checkpoint.families.family import CAFFE2_IMAGES, Family, background_last

# Applied in this order to a name whose underscores have become dots.
_CAFFE2 = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\.b$", ".bias"),
        (r"\.w$", ".weight"),
        # norms
        (r"bn\.s$", "norm.weight"),
        (r"bn\.bias$", "norm.bias"),
        (r"bn\.rm", "norm.running_mean"),
        (r"bn\.running\.mean$", "norm.running_mean"),
        (r"bn\.riv", "norm.running_var"),
        (r"bn\.running\.var$", "norm.running_var"),
        (r"bn\.gamma$", "norm.weight"),
        (r"bn\.beta$", "norm.bias"),
        (r"gn\.s$", "norm.weight"),
        (r"gn\.bias$", "norm.bias"),
        # ResNet
        (r"^res\.conv1\.norm\.", "conv1.norm."),
        (r"^conv1\.", "stem.conv1."),
        (r"\.branch1\.", ".shortcut."),
        (r"\.branch2a\.", ".conv1."),
        (r"\.branch2b\.", ".conv2."),
        (r"\.branch2c\.", ".conv3."),
        # DensePose
        (r"body\.conv\.fcn", "body_conv_fcn"),
        (r"AnnIndex\.lowres", "ann_index_lowres"),
        (r"Index\.UV\.lowres", "index_uv_lowres"),
        (r"U\.lowres", "u_lowres"),
        (r"V\.lowres", "v_lowres"),
        # RPN
        (r"conv\.rpn(\.fpn2)?", "proposal_generator.rpn_head.conv"),
        (r"rpn\.bbox\.pred(\.fpn2)?", "proposal_generator.rpn_head.anchor_deltas"),
        (r"rpn\.cls\.logits(\.fpn2)?", "proposal_generator.rpn_head.objectness_logits"),
        # box head
        (r"^bbox\.pred", "bbox_pred"),
        (r"^cls\.score", "cls_score"),
        (r"^fc6\.", "box_head.fc1."),
        (r"^fc7\.", "box_head.fc2."),
        (r"^head\.conv", "box_head.conv"),
        # FPN: the block's number and "sum" go, a norm stays
        (r"^fpn\.inner\.res(\d)\.(?:(?!norm\.).)*?(norm\.)?(\w+)$", r"fpn_lateral\1.\2\3"),
        (r"^fpn\.res(\d)\.(?:(?!norm\.).)*?(norm\.)?(\w+)$", r"fpn_output\1.\2\3"),
        # mask head
        (r"\.\[mask\]\.fcn|^\.mask\.fcn", "mask_head.mask_fcn"),
        (r"mask\.fcn\.logits", "mask_head.predictor"),
        (r"conv5\.mask", "mask_head.deconv"),
        # keypoint head
        (r"conv\.fcn", "roi_heads.keypoint_head.conv_fcn"),
        (r"kps\.score\.lowres", "roi_heads.keypoint_head.score_lowres"),
        (r"kps\.score\.", "roi_heads.keypoint_head.score."),
    )
)


def caffe2_name(name: str) -> str | None:
    """`res2_0_branch2a_bn_s` is `res2.0.conv1.norm.weight`; None for the optimizer's momentum."""
    if name.endswith("_momentum"):
        return None
    name = {"pred_b": "linear_b", "pred_w": "linear_w"}.get(name, name).replace("_", ".")
    for pattern, replacement in _CAFFE2:
        name = pattern.sub(replacement, name)
    return name


def _recognises(names: Collection[str]) -> bool:
    return any(n.endswith("_w") for n in names) and not any("." in n for n in names)


def _settings(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """MSRA's plain ResNets; FAIR's ResNeXt and GN ones; the names and shapes tell them apart."""
    first = weights.get("res2_0_branch2b_w")
    if first is None:
        return {}
    is_grouped = first.shape[0] != first.shape[1]
    has_gn = any("_gn_" in name for name in weights)
    settings = CAFFE2_IMAGES | {"MODEL.RESNETS.STRIDE_IN_1X1": not (is_grouped or has_gn)}
    depth_101 = "res4_22_branch2a_w" in weights and "res4_23_branch2a_w" not in weights
    if is_grouped and depth_101 and first.shape[:2] == (256, 8):  # X-101-32x8d
        settings["MODEL.PIXEL_STD"] = (57.375, 57.12, 58.395)
    return settings


CAFFE2 = Family("Caffe2", _recognises, caffe2_name, background_last, _settings)
