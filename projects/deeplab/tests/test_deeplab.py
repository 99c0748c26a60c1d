import json
import os
import re
import shlex
from pathlib import Path

import pytest
import torch

from segdet.config import get_cfg
from segdet.engine import predict, train
from segdet.errors import DataError
from segdet.modeling import build_model
from segdet.modeling.meta_arch import system_name

FOLDER = Path(__file__).parents[1]
CONFIGS = FOLDER / "configs/Cityscapes-SemanticSegmentation"
NAMES = ("deeplab_v3", "deeplab_v3_plus")
PARITY = Path(os.environ.get("SEGDET_PARITY_DIR", FOLDER.parents[2] / "shared/parity"))
TINY = [
    *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.NORM", "BN"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", 4, "MODEL.SEM_SEG_HEAD.NORM", "BN"),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", 8, "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", 8),
    *("INPUT.CROP.SIZE", (64, 64)),
]


def config(name: str):
    cfg = get_cfg()
    cfg.merge_from_file(CONFIGS / f"{name}_R_103_os16_mg124_poly_90k_bs16.yaml")
    return cfg


@pytest.mark.parametrize("name", NAMES)
def test_an_official_config_trains_and_predicts(name):
    cfg = config(name)
    assert system_name({path: value for path, value, _ in cfg.leaves()}) == "DeepLab"
    cfg.merge_from_list(TINY)
    model = build_model(cfg)
    labels = torch.randint(0, 19, (2, 64, 64))
    labels[:, :20] = 255
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    batch = [{"image": i, "sem_seg": s} for i, s in zip(images, labels, strict=True)]
    losses = model.train()(batch)
    losses.total().backward()
    assert list(losses) == ["loss_sem_seg"] and losses["loss_sem_seg"].isfinite()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    with torch.no_grad():
        found = model.eval()([{"image": images[0, :, :50], "height": 70, "width": 33}])
    assert found[0]["sem_seg"].shape == (19, 70, 33)


@pytest.mark.parametrize("name", NAMES)
def test_the_names_of_a_saved_model_are_the_originals(name):
    cfg = config(name)
    cfg.merge_from_list(TINY)
    names = [n for n in build_model(cfg).state_dict() if n.startswith("sem_seg_head")]
    aspp = {"deeplab_v3": "aspp", "deeplab_v3_plus": "decoder.res5.project_conv"}[name]
    for part in ("convs.0.norm.bias", "convs.3.weight", "convs.4.1.bias", "project.weight"):
        assert f"sem_seg_head.{aspp}.{part}" in names
    assert names[-2:] == ["sem_seg_head.predictor.weight", "sem_seg_head.predictor.bias"]


def test_the_commands_of_the_readme_are_understood(monkeypatch, capsys):
    monkeypatch.chdir(FOLDER.parents[1])
    (block,) = re.findall(r"```sh\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)
    training, predicting = block.replace("\\\n", " ").splitlines()
    train.main(["--print-config", *shlex.split(training)[1:]])
    assert "NAME: DeepLabV3PlusHead" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"street.jpg: there is no such file"):
        predict.main(shlex.split(predicting)[1:])


def test_the_official_config_resolves_as_in_the_original():
    file = PARITY / "models/deeplabv3plus_r50.json"
    if not file.is_file():
        pytest.skip(f"needs the golden data, which is not at {PARITY}")
    meta = json.loads(file.read_text())
    cfg = config("deeplab_v3_plus")
    assert meta["official_config"].endswith("deeplab_v3_plus_R_103_os16_mg124_poly_90k_bs16.yaml")
    assert meta["input"]["network_order"] == cfg.INPUT.FORMAT
    cfg.merge_from_list(meta["overrides"])
    ours = {path: json.loads(json.dumps(value)) for path, value, _ in cfg.leaves()}
    unlike = {k for k, value in meta["resolved_config"].items() if ours[k] != value}
    assert unlike == {"MODEL.WEIGHTS"}
