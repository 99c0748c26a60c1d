"""Weights under every program's names load whole, and give the outputs of the official ones."""

import gzip
import importlib.util
import json
import pickle
import re

import numpy as np
import pytest
import safetensors.torch
import torch

from segdet.checkpoint import DetectionCheckpointer
from segdet.checkpoint.families.maskrcnn_benchmark import (
    maskrcnn_benchmark_name,
    maskrcnn_benchmark_value,
)
from segdet.checkpoint.families.mxnet_fcis import mxnet_fcis_name
from segdet.config import get_cfg
from segdet.model_zoo import get_config_file
from segdet.modeling import build_model

MODELS = {
    "fpn": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "c4": "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml",
    "keypoints": "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml",
}
THIN = [
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", 4, "MODEL.FPN.OUT_CHANNELS", 8),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8),
    *("MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", (8,) * 8),
]


def official_cfg(model, *opts):
    cfg = get_cfg()
    cfg.merge_from_file(get_config_file(MODELS[model]))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, *opts])
    return cfg


@pytest.fixture(scope="module")
def recipe(parity_dir):
    spec = importlib.util.spec_from_file_location("seeded_weights", parity_dir / "weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=["thin", pytest.param("official", marks=pytest.mark.slow)])
def size(request):
    return request.param


@pytest.fixture(scope="module", params=MODELS)
def model_name(request):
    return request.param


@pytest.fixture(scope="module")
def cfg(model_name, size):
    return official_cfg(model_name, *(THIN if size == "thin" else ()))


@pytest.fixture(scope="module")
def official(model_name, size, cfg, recipe, shared_configs) -> dict[str, np.ndarray]:
    """Seeded values under the official names, in the shapes of the official parameter table."""
    table = json.loads(gzip.decompress((shared_configs / "detectron2.json.gz").read_bytes()))
    shapes = dict(table[MODELS[model_name]]["state_dict"])
    if size == "thin":
        ours = {name: list(value.shape) for name, value in build_model(cfg).state_dict().items()}
        assert ours.keys() == shapes.keys()
        shapes = ours
    return recipe.state_dict([(name, shape, "float32") for name, shape in shapes.items()], seed=1)


@pytest.fixture(scope="module")
def expected(cfg, official):
    model = build_model(cfg).eval()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in official.items()})
    return outputs(model)


def outputs(model) -> dict[str, torch.Tensor]:
    pixels = torch.arange(3 * 64 * 96).reshape(3, 64, 96) * 7919 % 256
    with torch.no_grad():
        found = model.eval()([{"image": pixels.byte()}])[0]["instances"]
    assert len(found) > 0
    return {**found.get_fields(), "pred_boxes": found.pred_boxes.tensor}


def is_of_backbone(name: str) -> bool:
    """C4's last stage works on regions."""
    return name.startswith(
        ("backbone.bottom_up.", "backbone.res", "backbone.stem", "roi_heads.res5.")
    )


def background_first(name: str, value: np.ndarray) -> np.ndarray:
    if ".cls_score." in name:
        return np.concatenate((value[-1:], value[:-1]))
    if ".bbox_pred." in name:
        return np.concatenate((np.ones_like(value[:4]), value))
    if "mask_head.predictor." in name or "maskiou_head.maskiou." in name:
        return np.concatenate((np.ones_like(value[:1]), value))
    return value


def caffe2_name(name: str) -> str:
    """The other way round than the package's table, and written for these models alone."""
    stage = {"2": "2_2", "3": "3_3", "4": "4_5", "5": "5_2"}
    rules = (
        (r"^backbone\.(bottom_up\.)?stem\.conv1\.norm", "res_conv1_bn"),
        (r"^backbone\.(bottom_up\.)?stem\.conv1", "conv1"),
        (r"^(?:backbone\.(?:bottom_up\.)?|roi_heads\.)res(\d)\.(\d+)\.", r"res\1_\2_"),
        ("shortcut", "branch1"),
        (r"(?<=\d)_conv1", "_branch2a"),
        (r"(?<=\d)_conv2", "_branch2b"),
        (r"(?<=\d)_conv3", "_branch2c"),
        (r"\.norm", "_bn"),
        (r"^backbone\.fpn_lateral(\d)", lambda m: f"fpn_inner_res{stage[m[1]]}_sum_lateral"),
        (r"^backbone\.fpn_output(\d)", lambda m: f"fpn_res{stage[m[1]]}_sum"),
        ("fpn_inner_res5_2_sum_lateral", "fpn_inner_res5_2_sum"),
        (r"^proposal_generator\.rpn_head\.conv", "conv_rpn_fpn2"),
        (r"^proposal_generator\.rpn_head\.objectness_logits", "rpn_cls_logits_fpn2"),
        (r"^proposal_generator\.rpn_head\.anchor_deltas", "rpn_bbox_pred_fpn2"),
        (r"^roi_heads\.box_head\.fc1", "fc6"),
        (r"^roi_heads\.box_head\.fc2", "fc7"),
        (r"^roi_heads\.box_predictor\.", ""),
        (r"^roi_heads\.mask_head\.mask_fcn", "_[mask]_fcn"),
        (r"^roi_heads\.mask_head\.deconv", "conv5_mask"),
        (r"^roi_heads\.mask_head\.predictor", "mask_fcn_logits"),
        (r"^roi_heads\.keypoint_head\.score_lowres", "kps_score_lowres"),
        (r"^roi_heads\.keypoint_head\.", ""),
        (r"_bn\.weight$", "_bn_s"),
        (r"_bn\.bias$", "_bn_b"),
        (r"\.weight$", "_w"),
        (r"\.bias$", "_b"),
        (r"\.running", "_running"),
    )
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def torchvision_name(name: str) -> str:
    name = re.sub(r"^(backbone\.(bottom_up\.)?|roi_heads\.)(stem\.)?", "", name)
    name = re.sub(r"^res(\d)", lambda m: f"layer{int(m[1]) - 1}", name)
    name = re.sub(r"conv(\d)\.norm", r"bn\1", name)
    return name.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")


def benchmark_name(name: str) -> str:
    if name.startswith("roi_heads.res5."):
        return f"module.roi_heads.box.feature_extractor.head.{torchvision_name(name)}"
    if is_of_backbone(name):
        stem = ".stem" if ".stem." in name else ""
        return f"module.backbone.body{stem}.{torchvision_name(name)}"
    rules = (
        (r"^backbone\.fpn_lateral(\d)", lambda m: f"backbone.fpn.fpn_inner{int(m[1]) - 1}"),
        (r"^backbone\.fpn_output(\d)", lambda m: f"backbone.fpn.fpn_layer{int(m[1]) - 1}"),
        (r"^proposal_generator\.rpn_head", "rpn.head"),
        ("objectness_logits", "cls_logits"),
        ("anchor_deltas", "bbox_pred"),
        (r"box_head\.fc1", "box.feature_extractor.fc6"),
        (r"box_head\.fc2", "box.feature_extractor.fc7"),
        (r"box_predictor", "box.predictor"),
        (r"mask_head\.mask_fcn", "mask.feature_extractor.mask_fcn"),
        (r"mask_head\.deconv", "mask.predictor.conv5_mask"),
        (r"mask_head\.predictor", "mask.predictor.mask_fcn_logits"),
        (r"maskiou_head\.maskiou\.", "maskiou.predictor.maskiou."),
        (r"maskiou_head\.maskiou_f", "maskiou.feature_extractor.maskiou_f"),
        (r"keypoint_head\.score", "keypoint.predictor.kps_score"),
        (r"keypoint_head", "keypoint.feature_extractor"),
    )
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return f"module.{name}"


def mxnet_name(name: str) -> str:
    """The other way round than the package's, and written for FCIS alone."""
    kinds = {"norm.weight": "gamma", "norm.bias": "beta"}
    kinds |= {f"norm.running_{one}": f"moving_{one}" for one in ("mean", "var")}
    layer, kind = re.fullmatch(r"(.*?)\.((?:norm\.)?\w+)", name).groups()
    norm, kind = kind.startswith("norm."), kinds.get(kind, kind)
    prefix = "aux" if kind.startswith("moving") else "arg"
    block = re.fullmatch(r"backbone\.res(\d)\.(\d+)\.(\w+)", layer)
    if block:
        stage, index, conv = block.groups()
        letters = "a" if index == "0" else f"b{index}" if stage in "34" else "abc"[int(index)]
        branch = {"shortcut": "1", "conv1": "2a", "conv2": "2b", "conv3": "2c"}[conv]
        kind_of_layer = "bn" if norm else "res"
        return f"{prefix}:{kind_of_layer}{stage}{letters}_branch{branch}_{kind}"
    rpn = {"conv": "conv_3x3", "objectness_logits": "cls_score", "anchor_deltas": "bbox_pred"}
    layer = re.sub(r"proposal_generator\.rpn_head\.(\w+)", lambda m: f"rpn_{rpn[m[1]]}", layer)
    layer = layer.replace("backbone.stem.", "").removeprefix("head.")
    return f"{prefix}:{'bn_' if norm else ''}{layer}_{kind}"


def anchors_by_ratio(name: str, value: np.ndarray) -> np.ndarray:
    """maskrcnn-benchmark's order of the 15 anchors that a cell of C4 has; here they are by size."""
    per_anchor = {"objectness_logits": 1, "anchor_deltas": 4}.get(name.split(".")[-2], 0)
    if len(value) != 15 * per_anchor:
        return value
    by_size = value.reshape(5, 3, per_anchor, *value.shape[1:])
    return by_size.swapaxes(0, 1).reshape(value.shape)


def as_tensors(arrays):
    return {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}


def write_pickle(path, content):
    path.write_bytes(pickle.dumps(content, 2))


def caffe2(path, official):
    blobs = {caffe2_name(n): background_first(n, v) for n, v in official.items()}
    momentum = {f"{n}_momentum": np.zeros(1, np.float32) for n in blobs if n.endswith("_w")}
    write_pickle(path, {"blobs": blobs | momentum, "cfg": "NUM_GPUS: 8"})


def maskrcnn_benchmark(path, official):
    weights = {
        benchmark_name(n): background_first(n, anchors_by_ratio(n, v)) for n, v in official.items()
    }
    # C4's mask branch shares the box branch's stage, and files hold it twice.
    shared = {n.replace(".box.", ".mask."): v for n, v in weights.items() if ".head.layer4." in n}
    weights |= shared
    variances = [n for n in weights if n.endswith(".running_var")]  # to which nothing is added
    weights |= {n: weights[n].astype(np.float64) + 1e-5 for n in variances}
    anchors = {f"module.rpn.anchor_generator.cell_anchors.{i}": np.ones((3, 4)) for i in range(5)}
    content = {"model": as_tensors(weights | anchors), "optimizer": {}, "iteration": 90000}
    torch.save(content, path, _use_new_zipfile_serialization=False)


WRITERS = {
    "zoo.pkl": lambda path, official: write_pickle(
        path, {"model": official, "__author__": "Detectron2 Model Zoo"}
    ),
    "zoo.pth": lambda path, official: torch.save({"model": as_tensors(official)}, path),
    "bare.pth": lambda path, official: torch.save(as_tensors(official), path),
    "parallel.pth": lambda path, official: torch.save(
        {"state_dict": {f"module.{n}": v for n, v in as_tensors(official).items()}}, path
    ),
    "a.safetensors": lambda path, official: safetensors.torch.save_file(as_tensors(official), path),
    "caffe2.pkl": caffe2,
    "benchmark.pth": maskrcnn_benchmark,
}


@pytest.mark.parametrize("file", WRITERS)
def test_a_whole_detector(tmp_path, cfg, official, expected, file):
    WRITERS[file](tmp_path / file, official)
    model = build_model(cfg)
    checkpointer = DetectionCheckpointer(model)
    checkpointer.load(tmp_path / file, strict=True)
    assert checkpointer.report.problems() == ""
    assert len(checkpointer.report.loaded) == len(official)
    torch.testing.assert_close(outputs(model), expected, rtol=0, atol=0)


def test_mask_scoring_rcnns_release(tmp_path, size, recipe, parity_dir, shared_configs):
    thin = [*THIN, "MODEL.ROI_MASKIOU_HEAD.CONV_DIM", 4] if size == "thin" else []
    cfg = official_cfg("fpn", "MODEL.MASKIOU_ON", True, *thin)
    model = build_model(cfg)
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    table = json.loads(gzip.decompress((shared_configs / "detectron2.json.gz").read_bytes()))
    released = [benchmark_name(name) for name, _ in table[MODELS["fpn"]]["state_dict"]]
    golden = json.loads((parity_dir / "systems" / "mask_scoring_rcnn_head.json").read_text())
    released += [f"module.{name}" for name, _, _ in golden["state_dict"]]
    assert sorted(map(benchmark_name, shapes)) == sorted(released)
    entries = [(name, shape, "float32") for name, shape in shapes.items()]
    official = recipe.state_dict(entries, seed=1)
    if size == "official":
        for name, shape, _ in golden["state_dict"]:
            (ours,) = (n for n in shapes if benchmark_name(n) == f"module.{name}")
            assert list(background_first(ours, official[ours]).shape) == shape
    maskrcnn_benchmark(tmp_path / "release.pth", official)
    checkpointer = DetectionCheckpointer(model)
    checkpointer.load(tmp_path / "release.pth", strict=True)
    assert checkpointer.report.problems() == ""
    assert len(checkpointer.report.loaded) == len(official)
    other = build_model(cfg)
    other.load_state_dict(as_tensors(official))
    found = outputs(model)
    assert "mask_scores" in found
    torch.testing.assert_close(found, outputs(other), rtol=0, atol=0)


def test_fcis_release(tmp_path, size, recipe):
    cfg = get_cfg()
    cfg.merge_from_file(get_config_file("FCIS/fcis_R_101_coco.yaml"))
    thin = [*THIN[:6], "MODEL.RPN.CONV_DIMS", [8], "MODEL.FCIS.CONV_DIM", 8]
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *(thin if size == "thin" else ())])
    model = build_model(cfg)
    entries = [(name, list(v.shape), "float32") for name, v in model.state_dict().items()]
    official = recipe.state_dict(entries, seed=1)
    release = {mxnet_name(name): value for name, value in official.items()}
    seg, box = (f"arg:fcis_{one}_{{}}" for one in ("cls_seg", "bbox"))
    for kind in ("weight", "bias"):  # the background is its first class, and has a box
        value = release[seg.format(kind)]
        release[seg.format(kind)] = np.concatenate((value[-98:], value[:-98]))
        value = release[box.format(kind)]
        release[box.format(kind)] = np.concatenate((np.ones_like(value), value))
        release[f"{box.format(kind)}_test"] = 0.2 * release[box.format(kind)]
    assert {"arg:res4b22_branch2c_weight", "aux:bn5c_branch2a_moving_var"} <= release.keys()
    assert {
        "arg:bn_conv1_gamma",
        "arg:rpn_conv_3x3_bias",
        "arg:conv_new_1_weight",
    } <= release.keys()
    np.savez(tmp_path / "fcis.npz", **release)
    checkpointer = DetectionCheckpointer(model)
    checkpointer.load(tmp_path / "fcis.npz", strict=True)
    assert checkpointer.report.problems() == ""
    loaded = model.state_dict()
    assert all(np.array_equal(loaded[name].numpy(), official[name]) for name in official)


@pytest.mark.parametrize(
    "old, new",
    [
        ("arg:conv1_weight", "stem.conv1.weight"),
        ("aux:bn_conv1_moving_mean", "stem.conv1.norm.running_mean"),
        ("arg:res2a_branch1_weight", "res2.0.shortcut.weight"),
        ("arg:bn3b3_branch2b_beta", "res3.3.conv2.norm.bias"),
        ("aux:bn5b_branch2c_moving_var", "res5.1.conv3.norm.running_var"),
        ("arg:rpn_cls_score_bias", "proposal_generator.rpn_head.objectness_logits.bias"),
        ("fcis_bbox_weight", "head.fcis_bbox.weight"),
        ("arg:fcis_bbox_bias_test", None),
        ("arg:fc1000_weight", "fc1000.weight"),
        ("momentum", "momentum"),
    ],
)
def test_mxnet_fcis_name(old, new):
    assert mxnet_fcis_name(old) == new


def fcos_name(name: str) -> str:
    """Of FCOS's own repository, before AdelaiDet."""
    name = name.replace("proposal_generator.fcos_head", "rpn.head").replace("ctrness", "centerness")
    return benchmark_name(name.replace("backbone.top_block", "backbone.fpn.top_blocks"))


@pytest.mark.parametrize("release", ["maskrcnn-benchmark", "AdelaiDet"])
def test_fcos_first_releases(tmp_path, recipe, release):
    cfg = get_cfg()
    cfg.merge_from_file(get_config_file("FCOS-Detection/R_50_1x.yaml"))
    thin = ["MODEL.FPN.OUT_CHANNELS", 64, "MODEL.FCOS.INFERENCE_TH_TEST", 0.0]
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *THIN, *thin])
    model, other = build_model(cfg), build_model(cfg)
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    entries = [(name, shape, "float32") for name, shape in shapes.items()]
    official = recipe.state_dict(entries, seed=1)
    if release == "AdelaiDet":
        weights = {name.replace("ctrness", "centerness"): v for name, v in official.items()}
    else:
        added = {n: 1e-5 if n.endswith(".running_var") else 0 for n in official}
        weights = {fcos_name(n): v.astype(np.float64) + added[n] for n, v in official.items()}
        assert "module.rpn.head.centerness.bias" in weights
        assert "module.backbone.fpn.top_blocks.p7.bias" in weights
    torch.save({"model": as_tensors(weights)}, tmp_path / "release.pth")
    checkpointer = DetectionCheckpointer(model)
    checkpointer.load(tmp_path / "release.pth", strict=True)
    assert checkpointer.report.problems() == ""
    assert len(checkpointer.report.loaded) == len(official)
    other.load_state_dict(as_tensors(official))
    torch.testing.assert_close(outputs(model), outputs(other), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["caffe2", "torchvision", "timm", "detectron2"])
def test_a_backbone(tmp_path, cfg, official, expected, name):
    """The rest of the detector stays as it was."""
    backbone = {n: v for n, v in official.items() if is_of_backbone(n)}
    classifier = {"fc.weight": np.ones((9, 4), np.float32), "fc.bias": np.ones(9, np.float32)}
    path = tmp_path / "R-50.pkl"
    if name == "caffe2":
        unused = {"fc1000_w": classifier["fc.weight"], "fc1000_b": classifier["fc.bias"]}
        write_pickle(path, {caffe2_name(n): v for n, v in backbone.items()} | unused)
    elif name == "detectron2":  # tools/convert-torchvision-to-d2.py
        prefix = re.compile(r"^(backbone\.(bottom_up\.)?|roi_heads\.)")
        model = {prefix.sub("", n): v for n, v in backbone.items()}
        content = {"model": model, "__author__": "torchvision", "matching_heuristics": True}
        write_pickle(path, content)
        unused = {}
    else:
        path, unused = tmp_path / "resnet50.pth", classifier
        weights = {torchvision_name(n): v for n, v in backbone.items()} | classifier
        tracked = {n.replace("running_mean", "num_batches_tracked"): np.int64(3) for n in weights}
        torch.save(
            as_tensors(tracked | weights)
            if name == "torchvision"
            else {"state_dict": as_tensors(weights)},
            path,
        )
    model = build_model(cfg)
    model.load_state_dict(
        as_tensors({n: v for n, v in official.items() if n not in backbone}), strict=False
    )
    checkpointer = DetectionCheckpointer(model)
    checkpointer.load(path)
    assert sorted(checkpointer.report.loaded) == sorted(backbone)
    assert checkpointer.report.unexpected == list(unused)
    assert not backbone.keys() & set(checkpointer.report.missing)
    torch.testing.assert_close(outputs(model), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "old, new",
    [
        ("backbone.body.stem.bn1.running_var", "stem.conv1.norm.running_var"),
        ("backbone.body.layer1.0.downsample.0.weight", "res2.0.shortcut.weight"),
        ("backbone.body.layer4.2.bn3.bias", "res5.2.conv3.norm.bias"),
        ("backbone.fpn.fpn_inner4.bias", "backbone.fpn_lateral5.bias"),
        ("backbone.fpn.fpn_layer1.0.weight", "backbone.fpn_output2.weight"),  # with GN
        ("backbone.fpn.fpn_layer1.1.bias", "backbone.fpn_output2.norm.bias"),
        ("roi_heads.box.feature_extractor.head.layer4.1.bn2.bias", "res5.1.conv2.norm.bias"),
        ("roi_heads.mask.feature_extractor.head.layer4.1.bn2.bias", None),
        ("roi_heads.mask.feature_extractor.mask_fcn3.1.weight",
         "roi_heads.mask_head.mask_fcn3.norm.weight"),
        ("roi_heads.maskiou.feature_extractor.maskiou_fc1.bias",
         "roi_heads.maskiou_head.maskiou_fc1.bias"),
        ("roi_heads.maskiou.predictor.maskiou.weight", "roi_heads.maskiou_head.maskiou.weight"),
        ("roi_heads.keypoint.feature_extractor.conv_fcn8.bias",
         "roi_heads.keypoint_head.conv_fcn8.bias"),
        ("roi_heads.keypoint.predictor.kps_score_lowres.weight",
         "roi_heads.keypoint_head.score_lowres.weight"),
    ],
)  # fmt: skip
def test_maskrcnn_benchmark_name(old, new):
    assert maskrcnn_benchmark_name(old) == new


def test_maskrcnn_benchmark_anchors_of_c4_are_by_ratio_and_here_by_size():
    theirs = [(ratio, size) for ratio in (0.5, 1, 2) for size in (32, 64, 128, 256, 512)]
    ours = [(ratio, size) for size in (32, 64, 128, 256, 512) for ratio in (0.5, 1, 2)]
    head = "proposal_generator.rpn_head"
    logits = maskrcnn_benchmark_value(f"{head}.objectness_logits.bias", torch.tensor(theirs))
    assert [tuple(one) for one in logits.tolist()] == ours
    deltas = torch.tensor([[*one, k] for one in theirs for k in range(4)])
    deltas = maskrcnn_benchmark_value(f"{head}.anchor_deltas.weight", deltas)
    assert [tuple(one) for one in deltas.tolist()] == [(*one, k) for one in ours for k in range(4)]
    three = torch.arange(3)
    assert maskrcnn_benchmark_value(f"{head}.objectness_logits.bias", three) is three
