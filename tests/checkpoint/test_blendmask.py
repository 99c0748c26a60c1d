"""BlendMask's releases, and the ImageNet weights that its DLA-34 starts from."""

import pytest
import torch

from segdet.checkpoint import DetectionCheckpointer
from segdet.config import get_cfg
from segdet.errors import CheckpointError
from segdet.model_zoo import get_config_file
from segdet.modeling import build_model


def a_model(config: str):
    cfg = get_cfg()
    cfg.merge_from_file(get_config_file(f"BlendMask/{config}.yaml"))
    small = ["MODEL.FPN.OUT_CHANNELS", 32, "MODEL.BASIS_MODULE.CONVS_DIM", 16]
    cfg.merge_from_list([*small, "MODEL.BLENDMASK.ATTN_SIZE", 2])
    return build_model(cfg)


@pytest.fixture(scope="module")
def model():
    return a_model("DLA_34_syncbn_4x")


def save(weights, folder) -> str:
    torch.save({"model": weights}, folder / "release.pth")
    return str(folder / "release.pth")


def changed(model) -> dict[str, torch.Tensor]:
    weights = model.state_dict()
    return {name: torch.full_like(value, k) for k, (name, value) in enumerate(weights.items())}


def test_a_release_loads_by_its_names(model, tmp_path):
    weights = changed(model)
    checkpointer = DetectionCheckpointer(model)
    checkpointer.load(save(weights, tmp_path), strict=True)
    assert checkpointer.report.problems() == "" and not checkpointer.report.renamed
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("strict", [False, True])
def test_a_release_for_inference_has_no_semantic_head(model, tmp_path, strict):
    weights = {n: v for n, v in changed(model).items() if "seg_head" not in n}
    checkpointer = DetectionCheckpointer(model)
    checkpointer.load(save(weights, tmp_path), strict=strict)
    assert checkpointer.report.problems() == ""
    del weights["top_layer.bias"]
    checkpointer = DetectionCheckpointer(model)
    if strict:
        with pytest.raises(CheckpointError, match=r"not in the file: top_layer.bias"):
            checkpointer.load(save(weights, tmp_path), strict=True)
    else:
        checkpointer.load(save(weights, tmp_path))
        assert checkpointer.report.missing == ["top_layer.bias"]


def test_very_old_releases_say_centerness(model, tmp_path):
    weights = {n.replace("ctrness", "centerness"): v for n, v in changed(model).items()}
    checkpointer = DetectionCheckpointer(model)
    checkpointer.load(save(weights, tmp_path), strict=True)
    assert len(checkpointer.report.renamed) == 2


@pytest.mark.parametrize("is_timms", [False, True])
def test_imagenet_weights_of_dla(model, tmp_path, is_timms):
    """timm's lack the two layers that nothing uses."""
    prefix, unused = "backbone.bottom_up.", ("level3.project.", "level4.project.")
    weights = {
        name.removeprefix(prefix): value
        for name, value in changed(model).items()
        if name.startswith(prefix)
        and not (is_timms and name.removeprefix(prefix).startswith(unused))
    }
    torch.save(weights | {"fc.bias": torch.zeros(1000)}, tmp_path / "dla34.pth")
    checkpointer = DetectionCheckpointer(model)
    checkpointer.load(tmp_path / "dla34.pth")
    loaded = model.state_dict()
    assert all(torch.equal(loaded[prefix + name], value) for name, value in weights.items())
    assert checkpointer.report.unexpected == ["fc.bias"]
    assert {n.partition(".")[0] for n in checkpointer.report.missing} >= {"top_layer"}
