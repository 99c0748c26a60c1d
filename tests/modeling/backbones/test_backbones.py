"""The names and shapes of every official backbone, and the table that builds them."""

import gzip
import json
from typing import Any

import pytest
import torch

from segdet.errors import ConfigError
from segdet.modeling.backbones import (
    BACKBONES,
    BackboneConfig,
    BackboneSections,
    FPNConfig,
    LastLevelP6P7,
    ResNetConfig,
    VoVNetConfig,
)

OFFICIAL = ("build_resnet_backbone", "build_resnet_fpn_backbone")


def read_table(folder, family: str) -> dict[str, dict[str, Any]]:
    with gzip.open(folder / f"{family}.json.gz") as file:
        return json.load(file)


def sections_of(overrides: dict[str, Any]) -> BackboneSections:
    def read(section, at):
        values = {
            key.removeprefix(f"MODEL.{at}.").lower(): tuple(v) if isinstance(v, list) else v
            for key, v in overrides.items()
            if key.startswith(f"MODEL.{at}.")
        }
        return section(**values)

    return BackboneSections(
        backbone=read(BackboneConfig, "BACKBONE"),
        resnets=read(ResNetConfig, "RESNETS"),
        vovnet=read(VoVNetConfig, "VOVNET"),
        fpn=read(FPNConfig, "FPN"),
    )


def names_and_shapes(module, prefix: str) -> list[tuple[str, list[int]]]:
    return [(prefix + name, list(value.shape)) for name, value in module.state_dict().items()]


def part(entry, prefix: str) -> list[tuple[str, list[int]]]:
    return [(name, shape) for name, shape in entry["state_dict"] if name.startswith(prefix)]


def test_official_resnets_have_official_names_shapes_and_frozen_parts(shared_configs):
    seen, checked = {}, 0
    for path, entry in read_table(shared_configs, "detectron2").items():
        overrides = entry["overrides"]
        if overrides.get("MODEL.BACKBONE.NAME", OFFICIAL[0]) not in OFFICIAL:
            continue
        sections = sections_of(overrides)
        if sections not in seen:
            with torch.device("meta"):
                seen[sections] = sections.build_backbone()
        backbone = seen[sections]
        ours = names_and_shapes(backbone, "backbone.")
        assert ours == part(entry, "backbone."), path
        frozen = sum(p.numel() for p in backbone.parameters() if not p.requires_grad)
        assert frozen == entry["num_params"] - entry["num_trainable"], path
        checked += 1
    assert checked > 70
    assert len(seen) >= 9


def test_official_vovnets_have_official_names_and_shapes(shared_configs):
    checked = set()
    for path, entry in read_table(shared_configs, "centermask2").items():
        sections = sections_of(entry["overrides"])
        if "vovnet" in sections.backbone.name:
            with torch.device("meta"):
                bottom_up = BACKBONES["build_vovnet_backbone"](sections, 3)
            prefix = "backbone.bottom_up."
            assert names_and_shapes(bottom_up, prefix) == part(entry, prefix), path
            checked.add(sections.vovnet)
    assert len(checked) >= 12


def test_mobilenetv2_has_centermask_names(shared_configs):
    entry = read_table(shared_configs, "centermask2")[
        "centermask/centermask_lite_Mv2_FPN_ms_4x.yaml"
    ]
    sections = sections_of(entry["overrides"])
    with torch.device("meta"):
        bottom_up = BACKBONES["build_mobilenetv2_backbone"](sections, 3)
        fpn = sections.fpn.build(bottom_up, LastLevelP6P7(128, 128, "p5"))
    assert names_and_shapes(fpn, "backbone.") == part(entry, "backbone.")


def test_retinanet_pyramid_has_official_names(shared_configs):
    entry = read_table(shared_configs, "detectron2")["COCO-Detection/retinanet_R_50_FPN_1x.yaml"]
    sections = sections_of(entry["overrides"])
    with torch.device("meta"):
        fpn = sections.fpn.build(sections.resnets.build(freeze_at=2), LastLevelP6P7(2048, 256))
    assert names_and_shapes(fpn, "backbone.") == part(entry, "backbone.")


def test_c4_res5_has_official_names(shared_configs):
    entry = read_table(shared_configs, "detectron2")[
        "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml"
    ]
    with torch.device("meta"):
        res5 = ResNetConfig().build_res5(1024)
    assert names_and_shapes(res5, "roi_heads.res5.") == part(entry, "roi_heads.res5.")
    assert all(p.requires_grad for p in res5.parameters())


def test_unknown_name_suggests_the_nearest():
    sections = BackboneSections(backbone=BackboneConfig(name="build_resnet_fpn_backbon"))
    with pytest.raises(ConfigError, match="did you mean build_resnet_fpn_backbone"):
        sections.build_backbone()


def maps_of(name: str) -> tuple[str, ...]:
    """What a pyramid on the body of a backbone is made of."""
    if "vovnet" in name:
        return VoVNetConfig.out_features
    return ("level3", "level4", "level5") if "dla" in name else ("res2", "res3", "res4", "res5")


@pytest.mark.parametrize("name", BACKBONES)
def test_images_have_one_channel_per_pixel_mean(name):
    sections = BackboneSections(
        pixel_mean=(0.5,),
        backbone=BackboneConfig(name=name),
        resnets=ResNetConfig(out_features=("res2", "res3", "res4", "res5")),
        fpn=FPNConfig(in_features=maps_of(name)),
    )
    with torch.device("meta"):
        features = sections.build_backbone()(torch.zeros(2, 1, 64, 96))
    assert all(len(f) == 2 for f in features.values())


def test_checkpoints_of_activations_change_nothing_but_memory():
    def train(**settings):
        torch.manual_seed(0)
        resnets = ResNetConfig(depth=18, res2_out_channels=16, out_features=("res3", "res5"))
        backbone = BackboneSections(
            backbone=BackboneConfig(**settings), resnets=resnets
        ).build_backbone()
        kept = 0

        def keep(x):
            nonlocal kept
            kept += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            maps = backbone(torch.randn(1, 3, 64, 64))
        sum(x.square().mean() for x in maps.values()).backward()
        return kept, {n: p.grad for n, p in backbone.named_parameters() if p.requires_grad}

    whole, expected = train()
    kept, found = train(use_act_checkpoint=True)
    assert kept < whole / 3
    torch.testing.assert_close(found, expected)


def test_checkpoints_of_activations_refuse_what_they_would_change():
    settings = {"backbone": BackboneConfig(use_act_checkpoint=True)}
    with pytest.raises(ConfigError, match="BatchNorm2d would take each batch into its statistics"):
        BackboneSections(**settings, resnets=ResNetConfig(norm="BN")).build_backbone()
    dla = BackboneConfig(name="build_fcos_dla_fpn_backbone", use_act_checkpoint=True)
    levels = FPNConfig(in_features=("level3", "level4", "level5"))
    with pytest.raises(ConfigError, match="needs ResNet or VoVNet"):
        BackboneSections(backbone=dla, fpn=levels).build_backbone()
