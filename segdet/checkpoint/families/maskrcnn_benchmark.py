"""maskrcnn-benchmark: its Mask, Faster and Keypoint R-CNN releases, and Mask Scoring R-CNN's.

Boxes there are a pixel wider and anchors rounded, as in Detectron, so scores agree closely, not
exactly.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from segdet.checkpoint.families.family import CAFFE2_IMAGES, Family, background_last

# Its frozen batch norm divides by the root of the variance alone, ours of variance + this.
_NORM_EPS = 1e-5
# Its stages count from 1, ours from 2 (res2).
_NEXT = {str(n): str(n + 1) for n in range(1, 6)}
_BODY = r"^(?:backbone\.body|roi_heads\.box\.feature_extractor\.head)\.layer(\d)\."

# Applied in this order; a number in the first group becomes the next one.
_NAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # ResNet
        (r"^backbone\.body\.stem\.bn1\.", "stem.conv1.norm."),
        (r"^backbone\.body\.stem\.", "stem."),
        (_BODY, "res{}."),
        (r"(?<=\.)downsample\.0\.", "shortcut."),
        (r"(?<=\.)downsample\.1\.", "shortcut.norm."),
        # FPN; with GN each of its convolutions is a list of two
        (r"^backbone\.fpn\.fpn_inner(\d)\.", "backbone.fpn_lateral{}."),
        (r"^backbone\.fpn\.fpn_layer(\d)\.", "backbone.fpn_output{}."),
        (r"(?<=\d\.)0\.(?=weight$|bias$)", ""),
        # RPN
        (r"^rpn\.anchor_generator\.", "proposal_generator.anchor_generator."),
        (r"^rpn\.head\.conv\.", "proposal_generator.rpn_head.conv."),
        (r"^rpn\.head\.cls_logits\.", "proposal_generator.rpn_head.objectness_logits."),
        (r"^rpn\.head\.bbox_pred\.", "proposal_generator.rpn_head.anchor_deltas."),
        # box head
        (r"^roi_heads\.box\.feature_extractor\.fc6\.", "roi_heads.box_head.fc1."),
        (r"^roi_heads\.box\.feature_extractor\.fc7\.", "roi_heads.box_head.fc2."),
        (r"^roi_heads\.box\.predictor\.", "roi_heads.box_predictor."),
        # mask head
        (r"^roi_heads\.mask\.feature_extractor\.", "roi_heads.mask_head."),
        (r"^roi_heads\.mask\.predictor\.conv5_mask\.", "roi_heads.mask_head.deconv."),
        (r"^roi_heads\.mask\.predictor\.mask_fcn_logits\.", "roi_heads.mask_head.predictor."),
        # Mask Scoring R-CNN's head
        (r"^roi_heads\.maskiou\.(?:feature_extractor|predictor)\.", "roi_heads.maskiou_head."),
        # keypoint head
        (r"^roi_heads\.keypoint\.feature_extractor\.", "roi_heads.keypoint_head."),
        (r"^roi_heads\.keypoint\.predictor\.kps_score_", "roi_heads.keypoint_head.score_"),
    )
)
_NORM_OF_CONV = re.compile(r"(?<=\.)bn(\d)\.")
_NORM_IN_LIST = re.compile(r"(?<=\d\.)1\.(?=weight$|bias$)")


def maskrcnn_benchmark_name(name: str) -> str | None:
    """`backbone.body.layer1.0.bn1.weight` is `res2.0.conv1.norm.weight`."""
    if name.startswith("roi_heads.mask.feature_extractor.head."):
        return None  # the box head's, which the mask head shares
    for pattern, replacement in _NAMES:
        name = pattern.sub(
            lambda found, text=replacement: text.format(*map(_NEXT.get, found.groups())), name
        )
    name = _NORM_OF_CONV.sub(r"conv\1.norm.", name)
    return name if name.startswith("res") else _NORM_IN_LIST.sub("norm.", name)


def without_eps(name: str, value: Tensor) -> Tensor:
    """Variances so that our frozen batch norm gives what theirs gives."""
    return value - _NORM_EPS if name.endswith(".running_var") else value


def maskrcnn_benchmark_value(name: str, value: Tensor) -> Tensor:
    """The background last; the anchors of one map by size, then by ratio, not the other way."""
    rows = {"objectness_logits": 1, "anchor_deltas": 4}.get(f".{name}".split(".")[-2])
    if rows and len(value) == 15 * rows:  # 5 sizes, 3 ratios: C4; elsewhere a map has one size
        return value.unflatten(0, (3, 5, rows)).transpose(0, 1).flatten(0, 2)
    return background_last(name, without_eps(name, value))


def _recognises(names: Collection[str]) -> bool:
    return "backbone.body.stem.conv1.weight" in names


def _settings(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    settings: dict[str, Any] = dict(CAFFE2_IMAGES)
    has_masks = any(name.startswith("roi_heads.mask.") for name in weights)
    for head in ("BOX", "MASK") if has_masks else ("BOX",):
        settings[f"MODEL.ROI_{head}_HEAD.POOLER_TYPE"] = "ROIAlign"
        if any(name.startswith("backbone.fpn.") for name in weights):
            settings[f"MODEL.ROI_{head}_HEAD.POOLER_SAMPLING_RATIO"] = 2
    return settings | stride_of_body(weights)


def stride_of_body(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Where the stride of these ResNets is: in the 1x1, but of ResNeXt in the 3x3."""
    first = weights.get("backbone.body.layer1.0.conv2.weight")
    if first is None:
        return {}
    return {"MODEL.RESNETS.STRIDE_IN_1X1": first.shape[0] == first.shape[1]}


MASKRCNN_BENCHMARK = Family(
    "maskrcnn-benchmark",
    _recognises,
    maskrcnn_benchmark_name,
    maskrcnn_benchmark_value,
    _settings,
)
