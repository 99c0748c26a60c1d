from pathlib import Path

import pytest

from segdet import model_zoo
from segdet.checkpoint.download import checksum_in
from segdet.errors import ConfigError
from segdet.model_zoo.released import RELEASED
from segdet.model_zoo.zoo import CONFIGS

# Families whose releases have no address that names its content.
OTHERS = {"BlendMask", "FCIS", "FCOS-Detection", "MaskScoringRCNN", "RCNN", "YOLACT", "centermask"}
R50_FPN = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"


def test_an_official_config_is_found_by_name():
    file = model_zoo.get_config_file(R50_FPN)
    assert isinstance(file, str) and Path(file).is_file()
    cfg = model_zoo.get_config(R50_FPN)
    assert cfg.SOLVER.MAX_ITER == 270000
    assert cfg.MODEL.WEIGHTS == "detectron2://ImageNetPretrained/MSRA/R-50.pkl"


def test_the_released_model_of_a_config():
    url = "https://dl.fbaipublicfiles.com/detectron2/COCO-InstanceSegmentation/" + (
        "mask_rcnn_R_50_FPN_3x/137849600/model_final_f10217.pkl"
    )
    assert model_zoo.get_checkpoint_url(R50_FPN) == url
    cfg = model_zoo.get_config(R50_FPN, trained=True)
    assert cfg.MODEL.WEIGHTS.endswith("/137849600/model_final_f10217.pkl")


def test_unknown_names_get_the_nearest():
    wrong = R50_FPN.replace("3x", "2x")
    with pytest.raises(ConfigError, match=rf"no official config {wrong}; did you mean COCO-"):
        model_zoo.get_config_file(wrong)
    with pytest.raises(ConfigError, match=rf"no model was released for {wrong}; did you mean"):
        model_zoo.get_checkpoint_url(wrong)


def test_every_config_with_a_published_number_has_its_released_model():
    published = [
        file
        for file in CONFIGS.rglob("*.yaml")
        if "published by" in file.read_text() and file.relative_to(CONFIGS).parts[0] not in OTHERS
    ]
    names = {str(file.relative_to(CONFIGS).with_suffix("")) for file in published}
    assert names and names <= RELEASED.keys()


def test_every_released_file_has_its_checksum_in_its_name():
    for name in RELEASED:
        assert checksum_in(model_zoo.get_checkpoint_url(name))[1], name
    assert len(set(RELEASED.values())) == len(RELEASED)


@pytest.mark.parametrize("trained", [True, False])
def test_get_builds_the_model_in_training_mode(monkeypatch, trained, tmp_path):
    loaded, located = [], []
    monkeypatch.setattr(
        "segdet.model_zoo.zoo.DetectionCheckpointer.load", lambda self, path: loaded.append(path)
    )

    def locate(address: str, *, may_download: bool):
        assert may_download
        located.append(address)
        return tmp_path / "cached.pkl", False

    monkeypatch.setattr("segdet.model_zoo.zoo.locate", locate)
    model = model_zoo.get(R50_FPN, trained=trained, device="cpu")
    assert model.training and model.device.type == "cpu"
    if trained:
        assert located == [model_zoo.get_checkpoint_url(R50_FPN)]
        assert loaded == [str(tmp_path / "cached.pkl")]
    else:  # what it trains from is looked for on this machine only
        assert located == [] and loaded == ["detectron2://ImageNetPretrained/MSRA/R-50.pkl"]
