import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from segdet.checkpoint import DetectionCheckpointer
from segdet.checkpoint.reading import read_checkpoint
from segdet.config import get_cfg
from segdet.engine.convert import main
from segdet.errors import CheckpointError, ConfigError
from segdet.modeling import build_model
from segdet.modeling.backbones import ResNetConfig

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
MODEL:
  DEVICE: cpu
  RESNETS: {STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 16, WIDTH_PER_GROUP: 4}
  ROI_HEADS: {NUM_CLASSES: 2}
DATASETS: {TRAIN: [nowhere]}
"""


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "model.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def detector(config):
    cfg = get_cfg()
    cfg.merge_from_file(config)
    return build_model(cfg)


def test_a_detector_with_its_config_and_class_names(tmp_path, config, detector):
    arrays = {name: value.numpy() for name, value in detector.state_dict().items()}
    source, output = tmp_path / "model_final.pkl", tmp_path / "new" / "model.safetensors"
    source.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
    main([str(source), str(output), "--config-file", str(config), "--class-names", "cat, dog"])
    torch.testing.assert_close(safetensors.torch.load_file(output), dict(detector.state_dict()))
    facts = json.loads(output.with_suffix(".json").read_text())
    assert facts["source"] == "model_final.pkl" and facts["family"] == "official"
    assert facts["class_names"] == ["cat", "dog"]
    assert facts["config"]["MODEL"]["ROI_HEADS"]["NUM_CLASSES"] == 2
    files = {path.name for path in output.parent.iterdir()}
    assert files == {"model.safetensors", "model.json"}


def test_a_backbone_without_a_config(tmp_path, detector):
    resnet = pytest.importorskip("torchvision.models", exc_type=ImportError).resnet18()
    source, output = tmp_path / "resnet18.pth", tmp_path / "resnet18.safetensors"
    torch.save(resnet.state_dict(), source)
    main([str(source), str(output)])
    facts = json.loads(output.with_suffix(".json").read_text())
    assert facts["family"] == "torchvision ResNet" and facts["config"] is None
    assert facts["trained_with"]["INPUT.FORMAT"] == "RGB"
    assert read_checkpoint(output)["__author__"] == "torchvision"
    section = ResNetConfig(depth=18, res2_out_channels=64, out_features=("res5",), norm="BN")
    model = torch.nn.ModuleDict({"backbone": section.build(freeze_at=0)})
    checkpointer = DetectionCheckpointer(model)
    checkpointer.load(output)  # the file itself asks for suffix matching
    assert checkpointer.report.missing == []
    assert torch.equal(model.backbone.res5[1].conv2.weight, resnet.layer4[1].conv2.weight)


def test_weights_of_another_model_are_refused(tmp_path, config, detector):
    weights = detector.state_dict()
    weights["roi_heads.box_predictor.cls_score.weight"] = torch.zeros(81, 128)
    torch.save(weights, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth: is of another model\n.*cls_score\.weight"):
        main(
            [str(tmp_path / "a.pth"), str(tmp_path / "b.safetensors"), "--config-file", f"{config}"]
        )
    assert not (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize("present", ["b.safetensors", "b.json"])
def test_nothing_is_overwritten_unless_told(tmp_path, present):
    torch.save({"a.weight": torch.ones(2)}, tmp_path / "a.pth")
    (tmp_path / present).write_text("mine")
    arguments = [str(tmp_path / "a.pth"), str(tmp_path / "b.safetensors")]
    with pytest.raises(CheckpointError, match=f"{present} is there already; --overwrite"):
        main(arguments)
    assert (tmp_path / present).read_text() == "mine"
    main([*arguments, "--overwrite"])
    assert read_checkpoint(tmp_path / "b.safetensors")["model"]["a.weight"].tolist() == [1, 1]


def test_mistakes_are_named(tmp_path, config):
    source = tmp_path / "a.pth"
    torch.save({"a.weight": torch.ones(2)}, source)
    with pytest.raises(CheckpointError, match=r"must end in \.safetensors"):
        main([str(source), str(tmp_path / "b.pth")])
    with pytest.raises(ConfigError, match="--opts changes a config"):
        main([str(source), str(tmp_path / "b.safetensors"), "--opts", "SEED", "1"])
    with pytest.raises(CheckpointError, match="none of its 1 tensors fits"):
        main([str(source), str(tmp_path / "b.safetensors"), "--config-file", str(config)])
    with pytest.raises(CheckpointError, match="no such file"):
        main([str(tmp_path / "none.pth"), str(tmp_path / "b.safetensors")])


def test_a_hostile_file_ends_the_script_with_one_message(tmp_path):
    (tmp_path / "evil.pkl").write_bytes(b"cposix\nsystem\n(S'touch ran'\ntR.")
    run = subprocess.run(
        [sys.executable, str(ROOT / "tools/convert_weights.py"), "evil.pkl", "out.safetensors"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 2
    assert run.stderr.startswith("error: evil.pkl: refers to the Python object posix.system")
    assert [path.name for path in tmp_path.iterdir()] == ["evil.pkl"]


def test_as_many_class_names_as_classes(tmp_path, config, detector):
    torch.save(detector.state_dict(), tmp_path / "a.pth")
    arguments = [str(tmp_path / "a.pth"), str(tmp_path / "b.safetensors")]
    with pytest.raises(ConfigError, match="3 class names for 2 classes"):
        main([*arguments, "--config-file", str(config), "--class-names", "a,b,c"])


def test_classes_are_counted_where_the_system_counts_them(tmp_path):
    config, cfg = ROOT / "configs/demo/fcos.yaml", get_cfg()
    cfg.merge_from_file(config)
    torch.save(build_model(cfg).state_dict(), tmp_path / "a.pth")
    arguments = [str(tmp_path / "a.pth"), str(tmp_path / "b.safetensors")]
    with pytest.raises(ConfigError, match=r"3 class names for 5 classes \(MODEL.FCOS.NUM_CLASSES"):
        main([*arguments, "--config-file", str(config), "--class-names", "a,b,c"])


def test_class_names_of_the_configs_data_set(tmp_path, config, detector):
    weights = {k: v for k, v in detector.state_dict().items() if "predictor" not in k}
    torch.save(weights, tmp_path / "a.pth")
    arguments = [str(tmp_path / "a.pth"), str(tmp_path / "b.safetensors")]
    opts = ["DATASETS.TRAIN", "('coco_2017_train',)", "MODEL.ROI_HEADS.NUM_CLASSES", "80"]
    main([*arguments, "--config-file", str(config), "--opts", *opts])
    names = json.loads((tmp_path / "b.json").read_text())["class_names"]
    assert len(names) == 80 and names[0] == "person"


def test_the_script_has_help():
    run = subprocess.run(
        [sys.executable, "tools/convert_weights.py", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert run.returncode == 0 and "--overwrite" in run.stdout
