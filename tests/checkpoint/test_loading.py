import dataclasses
import logging

import pytest
import torch
from torch import nn

from segdet.checkpoint.loading import group_names, group_renamed, load_weights
from segdet.checkpoint.reading import read_checkpoint
from segdet.errors import CheckpointError
from segdet.layers import FrozenBatchNorm2d
from segdet.modeling.backbones import (
    FPN,
    LastLevelMaxPool,
    MobileNetV2,
    ResNetConfig,
    VoVNetConfig,
)

SMALL = {"stem_out_channels": 8, "res2_out_channels": 16, "width_per_group": 4}


def small_resnet(**kwargs):
    """A ResNet-50 in all but width."""
    return ResNetConfig(**SMALL, out_features=("res5",), **kwargs).build(freeze_at=0)


def branch(**children: nn.Module) -> nn.Module:
    module = nn.Module()
    for name, child in children.items():
        module.add_module(name, child)
    return module


def detector(num_classes: int) -> nn.Module:
    """The predictors and one feature layer of a detector, under their official names."""
    predictor = branch(
        cls_score=nn.Linear(4, num_classes + 1), bbox_pred=nn.Linear(4, 4 * num_classes)
    )
    mask_head = branch(deconv=nn.Conv2d(4, 4, 1), predictor=nn.Conv2d(4, num_classes, 1))
    return branch(
        backbone=branch(conv=nn.Conv2d(3, 4, 1)),
        roi_heads=branch(box_predictor=predictor, mask_head=mask_head),
    )


def randomised(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: torch.randn_like(value) for name, value in module.state_dict().items()}


def caffe2_names(resnet: nn.Module, *, fused: bool) -> dict[str, str]:
    """Official name -> name in MSRA's or Detectron's files, written out the other way round."""
    norms = {"weight": "s", "bias": "b"}
    if not fused:
        norms = {"weight": "gamma", "bias": "beta"}
        norms |= {"running_mean": "running_mean", "running_var": "running_var"}
    branches = {"shortcut": "1", "conv1": "2a", "conv2": "2b", "conv3": "2c"}
    names = {}
    for name in resnet.state_dict():
        *block, conv, last = name.replace(".norm", "_norm").split(".")
        is_norm = conv.endswith("_norm")
        conv = conv.removesuffix("_norm")
        if block == ["stem"]:
            base = "res_conv1_bn" if is_norm else "conv1"
        else:
            base = f"{block[0]}_{block[1]}_branch{branches[conv]}" + ("_bn" if is_norm else "")
        if not is_norm:
            names[name] = f"{base}_w"
        elif last in norms:
            names[name] = f"{base}_{norms[last]}"
    return names


def test_msra_backbone_fills_every_tensor():
    model = branch(backbone=branch(bottom_up=small_resnet()))
    resnet = model.backbone.bottom_up
    names = caffe2_names(resnet, fused=False)
    values = randomised(resnet)
    weights = {names[name]: value for name, value in values.items()}
    assert len({n.rsplit("_w")[0] for n in weights if n.endswith("_w")}) == 53
    extra = {"conv1_b": torch.zeros(8), "fc1000_w": torch.zeros(5, 9), "fc1000_b": torch.zeros(5)}
    momentum = {"conv1_w_momentum": torch.zeros(1)}

    report = load_weights(model, weights | extra | momentum, file="R-50.pkl")
    assert len(report.loaded) == len(report.renamed) == len(values)
    assert report.missing == [] and report.wrong_shape == {}
    assert report.unexpected == list(extra)
    torch.testing.assert_close(dict(resnet.state_dict()), values)
    first = "backbone.bottom_up.stem.conv1.weight"
    assert report.renamed[first] == "conv1_w"


def test_fused_batch_norms_get_mean_0_and_variance_1():
    model = small_resnet()
    names = caffe2_names(model, fused=True)
    values = randomised(model)
    weights = {old: values[new] for new, old in names.items()}
    report = load_weights(model, weights, file="model_final.pkl")
    assert report.missing == report.unexpected == []
    norm = model.res4[5].conv2.norm
    assert isinstance(norm, FrozenBatchNorm2d)
    torch.testing.assert_close(norm.weight, values["res4.5.conv2.norm.weight"])
    assert not norm.running_mean.any()
    assert (norm.running_var == 1).all()


def test_c4_heads_get_res5():
    model = branch(
        backbone=ResNetConfig(**SMALL).build(freeze_at=0),
        roi_heads=branch(res5=ResNetConfig(**SMALL).build_res5(64)),
    )
    whole = small_resnet()
    values = randomised(whole)
    report = load_weights(model, values, file="R-50.pth", by_suffix=True)
    assert report.missing == report.unexpected == []
    name = "roi_heads.res5.2.conv3.weight"
    assert report.renamed[name] == "res5.2.conv3.weight"
    torch.testing.assert_close(model.state_dict()[name], values["res5.2.conv3.weight"])


def test_torchvision_mobilenet_v2_file(shared_data):
    backbone = FPN(MobileNetV2(), ["res2", "res3", "res4", "res5"], 8, top_block=LastLevelMaxPool())
    model = branch(backbone=backbone)
    checkpoint = read_checkpoint(shared_data / "weights" / "mobilenet_v2-b0353104.pth")
    weights = checkpoint["model"]
    report = load_weights(model, weights, file="mobilenet_v2-b0353104.pth")
    assert report.wrong_shape == {}
    assert all(name.startswith("backbone.fpn_") for name in report.missing)
    assert sorted(report.unexpected) == [
        "classifier.1.bias",
        "classifier.1.weight",
        *(f"features.18.{k}" for k in ("0.weight", "1.bias", "1.running_mean")),
        *(f"features.18.1.{k}" for k in ("running_var", "weight")),
    ]
    # Both lay out the same tensors in the same order: a check that needs no names.
    theirs = [v for k, v in weights.items() if not k.endswith("num_batches_tracked")]
    ours = list(backbone.bottom_up.state_dict().values())
    assert len(ours) == 51 * 5  # convolutions, each with the four tensors of its norm
    for a, b in zip(ours, theirs, strict=False):
        assert torch.equal(a, b)


@pytest.mark.parametrize("deformable", [False, True])
def test_a_vovnet_without_prefix(deformable):
    """As CenterMask2's ImageNet weights: a body, and the classifier that was on it."""
    plain = VoVNetConfig(conv_body="V-19-slim-eSE", out_features=("stage3",))
    stages = (False, True, False, False) if deformable else (False,) * 4
    ours = dataclasses.replace(plain, stage_with_dcn=stages, with_modulated_dcn=True)
    model = branch(backbone=branch(bottom_up=ours.build(freeze_at=0)))
    weights = randomised(plain.build(freeze_at=0)) | {"classifier.bias": torch.zeros(1000)}
    report = load_weights(model, weights, file="vovnet19_ese_slim_detectron2.pth")
    assert report.unexpected == ["classifier.bias"] and report.wrong_shape == {}
    assert len(report.missing) == (6 if deformable else 0)
    assert all("/conv_offset." in name for name in report.missing)
    name = "stage3.OSA3_1.ese.fc.weight"
    assert torch.equal(model.state_dict()[f"backbone.bottom_up.{name}"], weights[name])


def test_a_mobilenet_v2_without_prefix():
    body = MobileNetV2()
    model = branch(backbone=branch(bottom_up=body))
    weights = randomised(MobileNetV2())
    report = load_weights(model, weights, file="mobilenet_v2_detectron2.pth")
    assert report.missing == report.unexpected == []
    assert all(torch.equal(body.state_dict()[name], weights[name]) for name in weights)


def test_torchvision_resnet():
    models = pytest.importorskip("torchvision.models", exc_type=ImportError)
    torchvision = models.resnet18()
    resnet = ResNetConfig(depth=18, res2_out_channels=64, out_features=("res5",), norm="BN")
    model = branch(backbone=branch(bottom_up=resnet.build(freeze_at=2)))
    report = load_weights(model, torchvision.state_dict(), file="resnet18.pth")
    assert report.missing == [] and report.wrong_shape == {}
    assert report.unexpected == ["fc.weight", "fc.bias"]
    loaded = model.backbone.bottom_up
    assert torch.equal(loaded.stem.conv1.norm.weight, torchvision.bn1.weight)
    assert torch.equal(loaded.res5[0].shortcut.weight, torchvision.layer4[0].downsample[0].weight)


def test_other_class_count_keeps_all_but_the_predictors(caplog):
    old, new = detector(80), detector(3)
    before = {name: value.clone() for name, value in new.state_dict().items()}
    report = load_weights(new, randomised(old), file="coco.pth")
    predictors = [
        f"roi_heads.{head}.{kind}"
        for head in ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_head.predictor")
        for kind in ("weight", "bias")
    ]
    assert list(report.wrong_shape) == predictors
    assert report.missing == report.unexpected == []
    for name, value in new.state_dict().items():
        assert torch.equal(value, before[name]) == (name in predictors), name

    with caplog.at_level(logging.INFO, logger="segdet.checkpoint"):
        report.log()
    text = caplog.text
    assert "coco.pth: loaded 4 of the model's 10 tensors" in text
    shapes = "cls_score.weight is (81, 4) in the file, (4, 4) in the model"
    assert shapes in text


def test_strict_refuses_a_wrong_shape_before_it_changes_the_model():
    model = detector(3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"coco.pth.*\n.*cls_score.weight is \(81, 4\)"):
        load_weights(model, randomised(detector(80)), file="coco.pth", strict=True)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_strict_refuses_missing_and_unexpected_names():
    weights = randomised(detector(3))
    weights["extra"] = weights.pop("backbone.conv.bias")
    message = r"not in the file: backbone\.conv\.bias\nnot in the model: extra"
    with pytest.raises(CheckpointError, match=message):
        load_weights(detector(3), weights, file="a.pth", strict=True)
    report = load_weights(detector(3), weights, file="a.pth")
    assert (report.missing, report.unexpected) == (["backbone.conv.bias"], ["extra"])


def test_names_of_data_parallel_models():
    model = nn.Linear(2, 3)
    values = randomised(model)
    report = load_weights(model, {f"module.{k}": v for k, v in values.items()}, file="a.pth")
    assert report.problems() == ""
    torch.testing.assert_close(dict(model.state_dict()), values)


def test_exact_names_are_not_matched_by_suffix():
    model = branch(backbone=nn.Linear(2, 3))
    message = (
        r"a.pth: none of its 2 tensors fits the model; its names are like weight, the model's "
        r"like backbone.weight.*\?matching_heuristics=True"
    )
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, randomised(nn.Linear(2, 3)), file="a.pth")
    assert load_weights(model, randomised(nn.Linear(2, 3)), file="a.pth", by_suffix=True)


def test_nothing_that_fits_is_an_error():
    with pytest.raises(CheckpointError, match=r"none of its 2 tensors fits.*shapes differ"):
        load_weights(nn.Linear(2, 3), randomised(nn.Linear(4, 5)), file="a.pth")
    with pytest.raises(CheckpointError, match="none of its 0 tensors fits"):
        load_weights(nn.Linear(2, 3), {}, file="a.pth", by_suffix=True)


def test_one_tensor_for_two_parameters_is_ambiguous():
    model = branch(a=nn.Linear(2, 3), b=nn.Linear(2, 3))
    message = r"a.pth: weight fits two of the model's parameters, a.weight and b.weight"
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, randomised(nn.Linear(2, 3)), file="a.pth", by_suffix=True)


def test_shapes_settle_an_ambiguity():
    model = branch(a=nn.Linear(2, 3), b=nn.Linear(4, 5))
    values = randomised(nn.Linear(4, 5))
    report = load_weights(model, values, file="a.pth", by_suffix=True)
    assert report.loaded == ["b.weight", "b.bias"]
    assert report.missing == ["a.weight", "a.bias"]
    assert report.wrong_shape == {}


def test_suffix_match_of_a_wrong_shape_is_told():
    model = branch(a=nn.Linear(2, 3))
    values = {"weight": torch.randn(3, 2), "bias": torch.randn(7)}
    report = load_weights(model, values, file="a.pth", by_suffix=True)
    assert report.wrong_shape == {"a.bias": (torch.Size([7]), torch.Size([3]))}
    assert report.loaded == ["a.weight"]


def test_a_shared_parameter_is_not_missing():
    model = branch(a=nn.Linear(2, 2), b=nn.Linear(2, 2))
    model.b.weight = model.a.weight
    weights = randomised(model)
    del weights["b.weight"]
    report = load_weights(model, weights, file="a.pth")
    assert report.missing == []
    assert torch.equal(model.b.weight, weights["a.weight"])


def test_what_the_config_gives_is_not_reported():
    model = branch(a=nn.BatchNorm2d(2))
    model.register_buffer("pixel_mean", torch.zeros(3))
    weights = model.a.state_dict(prefix="a.")
    weights["pixel_std"] = torch.zeros(3)
    weights["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(3, 4)
    weights["old.norm.num_batches_tracked"] = torch.tensor(0)
    report = load_weights(model, weights, file="a.pth", strict=True)
    assert report.problems() == ""


def test_versions_reach_the_modules():
    class Versioned(nn.Linear):
        _version = 7

        def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
            self.seen = local_metadata.get("version")
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    model = branch(a=Versioned(2, 3))
    load_weights(model, model.state_dict(), file="a.pth")
    assert model.a.seen == 7


def test_group_names():
    assert group_names(["a.b.weight", "a.b.bias", "c", "a.d.weight"]) == [
        "a.b.{weight, bias}",
        "c",
        "a.d.weight",
    ]
    renamed = {
        "a.b.weight": "b_w",
        "a.b.bias": "b_b",
        "a.c.weight": "c.weight",
        "a.c.bias": "c.bias",
    }
    assert group_renamed(renamed) == [
        "a.b.{weight, bias} <- {b_w, b_b}",
        "a.c.{weight, bias} <- c.{weight, bias}",
    ]


def test_the_log_has_every_new_name(caplog):
    model = branch(a=nn.Linear(2, 3))
    report = load_weights(model, randomised(nn.Linear(2, 3)), file="a.pth", by_suffix=True)
    with caplog.at_level(logging.DEBUG, logger="segdet.checkpoint"):
        report.log()
    counts, example, table = (record.message for record in caplog.records)
    assert counts == "a.pth: loaded 2 of the model's 2 tensors"
    assert (
        example == "2 of them have other names in the file: a.{weight, bias} <- {weight, bias} ..."
    )
    assert table.endswith("a.{weight, bias} <- {weight, bias}")
