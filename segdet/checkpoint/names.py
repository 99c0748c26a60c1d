"""From the names of foreign weight files to official parameter names."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from segdet.errors import CheckpointError


@dataclass(frozen=True)
class Family:
    """A kind of weight file with names of its own.

    Attributes:
        title: what messages call it.
        recognises: told the file's names that the model does not have, whether they are of it.
        official_name: the official name, without a prefix such as "backbone.", of a file's name.
        official_value: the tensor for an official name.
    """

    title: str
    recognises: Callable[[Collection[str]], bool]
    official_name: Callable[[str], str]
    official_value: Callable[[str, Tensor], Tensor] = lambda name, value: value


def find_family(file_names: Collection[str], model_names: Collection[str]) -> Family | None:
    """The family of a file, None when it has official names (or unknown ones)."""
    foreign = set(file_names) - set(model_names)
    return next((family for family in FAMILIES if family.recognises(foreign)), None)


def to_official(
    family: Family, weights: Mapping[str, Tensor], file: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights under official names, without the momentum that Caffe2 stores among them.

    Returns:
        The weights, and for each official name the file's.

    Raises:
        CheckpointError: two names of the file mean the same parameter.
    """
    official: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    for old, value in weights.items():
        if old.endswith("_momentum"):
            continue
        new = family.official_name(old)
        if new in official:
            raise CheckpointError(
                f"{file}: {origins[new]} and {old} both mean {new}, read as {family.title} names"
            )
        official[new] = family.official_value(new, value)
        origins[new] = old
    return official, origins


def match_suffixes(model_names: Collection[str], file_names: Collection[str]) -> dict[str, str]:
    """Match a model's names to a file's names that leave out leading parts.

    `backbone.bottom_up.res2.0.conv1.weight` matches `res2.0.conv1.weight`; `a.xb.c` does not match
    `b.c`. The longest match counts.

    Returns:
        The file's name for each name of the model that has one.
    """
    known = set(file_names)
    matches = {}
    for name in model_names:
        parts = name.split(".")
        suffixes = (".".join(parts[start:]) for start in range(len(parts)))
        found = next((suffix for suffix in suffixes if suffix in known), None)
        if found is not None:
            matches[name] = found
    return matches


def strip_data_parallel(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the `module.` that DataParallel puts before every name."""
    if weights and all(name.startswith("module.") for name in weights):
        return {name.removeprefix("module."): value for name, value in weights.items()}
    return weights


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


def caffe2_name(name: str) -> str:
    """`res2_0_branch2a_bn_s` (Caffe2, Detectron) is `res2.0.conv1.norm.weight`."""
    name = {"pred_b": "linear_b", "pred_w": "linear_w"}.get(name, name).replace("_", ".")
    for pattern, replacement in _CAFFE2:
        name = pattern.sub(replacement, name)
    return name


def caffe2_value(name: str, value: Tensor) -> Tensor:
    """Caffe2's class 0 is the background: here it is the last class, and has no box or mask."""
    if name.startswith("bbox_pred."):
        return value[4:]
    if name.startswith("mask_head.predictor."):
        return value[1:]
    if name.startswith("cls_score."):
        return value.roll(-1, 0)
    return value


def torchvision_resnet_name(name: str) -> str:
    """`layer1.0.bn1.weight` is `res2.0.conv1.norm.weight`."""
    if name.startswith("fc."):
        return name
    stage = re.match(r"layer(\d)\.(.*)", name)
    name = f"res{int(stage[1]) + 1}.{stage[2]}" if stage else f"stem.{name}"
    name = re.sub(r"\bbn(\d)\.", r"conv\1.norm.", name)
    return name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")


def torchvision_mobilenet_v2_name(name: str) -> str:
    """`features.2.conv.1.0.weight` is `features.2.conv.3.weight`.

    torchvision nests convolution, norm and ReLU6; official names count all layers of a block.
    """
    place = re.match(r"features\.(\d+)\.conv\.(\d)\.(?:(\d)\.)?(\w+)$", name)
    if place is None:
        return name
    block, layer, inner, rest = place.groups()
    nested = 1 if block == "1" else 2  # block 1 does not widen
    index = 3 * int(layer) + int(inner) if inner else 2 * nested + int(layer)
    return f"features.{block}.conv.{index}.{rest}"


FAMILIES = (
    Family(
        "Caffe2",
        lambda names: any(n.endswith("_w") for n in names) and not any("." in n for n in names),
        caffe2_name,
        caffe2_value,
    ),
    Family(
        "torchvision ResNet",
        lambda names: "layer1.0.conv1.weight" in names,
        torchvision_resnet_name,
    ),
    Family(
        "torchvision MobileNetV2",
        lambda names: "features.1.conv.0.0.weight" in names,
        torchvision_mobilenet_v2_name,
    ),
)
