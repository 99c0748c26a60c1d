from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from PIL import Image

from segdet.config import get_cfg
from segdet.data import DatasetCatalog
from segdet.errors import DataError

from .conftest import CocoFolder, PanopticFolder

TOOLS = Path(__file__).resolve().parents[2] / "tools"


SYSTEM_OF = {
    "demo": "GeneralizedRCNN",
    "demo_panoptic": "PanopticFPN",
    "demo_sem_seg": "SemanticSegmentor",
}


@pytest.mark.parametrize("name", SYSTEM_OF)
@pytest.mark.parametrize("source", ["annotation", "dataloader"])
def test_make_demo_data_and_visualize_it(
    tmp_path: Path, monkeypatch, capsys, source: str, name: str
):
    monkeypatch.setenv("SEGDET_DATASETS", str(tmp_path))
    runpy.run_path(str(TOOLS / "make_demo_data.py"))["main"](["--num-train", "3", "--num-val", "0"])
    config = tmp_path / "config.yaml"
    config.write_text(
        f"DATASETS: {{TRAIN: [{name}_train]}}\n"
        f"MODEL: {{MASK_ON: True, META_ARCHITECTURE: {SYSTEM_OF[name]}}}\n"
        "DATALOADER: {NUM_WORKERS: 0}\nSOLVER: {IMS_PER_BATCH: 1}\nSEED: 1\n"
        "INPUT: {MIN_SIZE_TRAIN: [100]}\n"
    )
    output = tmp_path / "drawn"
    argv = ["--source", source, "--config-file", str(config), "--output-dir", str(output)]
    runpy.run_path(str(TOOLS / "visualize_data.py"))["main"]([*argv, "--count", "2"])
    assert [file.name for file in sorted(output.iterdir())] == ["0000.jpg", "0001.jpg"]
    if source == "dataloader":
        assert min(Image.open(output / "0000.jpg").size) == 100
    assert str(output) in capsys.readouterr().out


def test_prepare_panoptic(panoptic_folder: PanopticFolder, tmp_path: Path, capsys):
    json_file, _, pngs = panoptic_folder.write()
    argv = [str(json_file), str(pngs), str(tmp_path / "stuff"), "--workers", "1"]
    runpy.run_path(str(TOOLS / "prepare_panoptic.py"))["main"](argv)
    assert len(list((tmp_path / "stuff").iterdir())) == 2
    assert "2 label maps in" in capsys.readouterr().out


def test_prepare_cityscapes(shared_data: Path, tmp_path: Path, capsys):
    source = shared_data / "cityscapes_layout" / "gtFine" / "val"
    photos = shared_data / "cityscapes_layout" / "leftImg8bit" / "val"
    for file in source.rglob("*.png"):
        copy = tmp_path / "val" / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    argv = [str(photos), str(tmp_path / "val"), "--workers", "1"]
    runpy.run_path(str(TOOLS / "prepare_cityscapes.py"))["main"](argv)
    assert (tmp_path / "cityscapes_panoptic_val.json").is_file()
    assert "files of 2 photos" in capsys.readouterr().out


def test_demo_splits_own_data(coco_folder: CocoFolder, tmp_path: Path):
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    json_file, images = coco_folder.write()
    runpy.run_path(str(TOOLS / "demo.py"))["use_own_data"](cfg, json_file, str(images))
    for names, ids in ((cfg.DATASETS.TRAIN, [1]), (cfg.DATASETS.TEST, [2])):
        assert [record["image_id"] for record in DatasetCatalog.get(names[0])] == ids
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 2


@pytest.mark.parametrize(
    "change, says",
    [
        ({"annotations": None}, "'annotations' must be a list, is null"),
        ({"images": [7]}, r"images\[0\] must be an object, is 7"),
        (
            {"images": [{"id": [1], "file_name": "0.png"}]},
            r"images\[0\]: id must be a whole number",
        ),
        ({"annotations": [{"id": 1, "image_id": [1]}]}, "annotation 1: image_id must be a whole"),
    ],
)
def test_demo_names_what_is_wrong_with_own_data(coco_folder: CocoFolder, change: dict, says: str):
    coco_folder.tree |= change
    json_file, images = coco_folder.write()
    use_own_data = runpy.run_path(str(TOOLS / "demo.py"))["use_own_data"]
    with pytest.raises(DataError, match=rf"instances\.json: {says}"):
        use_own_data(get_cfg(), json_file, str(images))
    with pytest.raises(DataError, match="--images '' is not a folder"):
        use_own_data(get_cfg(), json_file, "")
