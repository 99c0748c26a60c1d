from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segdet.config import get_cfg
from segdet.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from segdet.data.catalog import Metadata
from segdet.data.image_io import read_labels
from segdet.data.prepare import write_cityscapes, write_label_maps
from segdet.data.readers.panoptic_json import read_panoptic_json
from segdet.data.segment_ids import read_segment_ids
from segdet.data.sem_seg import read_sem_seg
from segdet.engine.evaluators import EVALUATORS
from segdet.errors import DataError
from segdet.structures import Instances

from .conftest import PanopticFolder


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_label_maps_are_those_made_on_the_way(panoptic_folder: PanopticFolder, tmp_path: Path):
    json_file, images, pngs = panoptic_folder.write()
    output = tmp_path / "deep" / "stuff"
    assert write_label_maps(json_file, pngs, output, workers=1) == 2
    for record in read_panoptic_json(json_file, images, pngs).records:
        name = Path(record["pan_seg_file_name"]).name
        assert (read_labels(output / name) == read_sem_seg(record)).all()
    before = content(output)
    assert before.keys() == {"a.png", "b.png"}, "nothing else is left"
    assert write_label_maps(json_file, pngs, output, workers=2) == 2
    assert content(output) == before


def test_label_maps_are_named_after_the_images(panoptic_folder: PanopticFolder, tmp_path: Path):
    first, second = panoptic_folder.tree["images"]
    first["file_name"], second["file_name"] = "x/a.jpg", "y/a.jpg"
    json_file, _, pngs = panoptic_folder.write()
    assert write_label_maps(json_file, pngs, tmp_path / "stuff", workers=1) == 2
    assert content(tmp_path / "stuff").keys() == {"x/a.png", "y/a.png"}
    second["file_name"] = "x/a.png"
    panoptic_folder.write()
    with pytest.raises(DataError, match=r"2 images would have the label map .*x/a\.png"):
        write_label_maps(json_file, pngs, tmp_path / "other", workers=1)
    assert not (tmp_path / "other").exists()


def test_other_files_are_not_overwritten(panoptic_folder: PanopticFolder, tmp_path: Path):
    json_file, _, pngs = panoptic_folder.write()
    theirs = tmp_path / "b.png"
    Image.fromarray(np.zeros((60, 80), np.uint8)).save(theirs)
    before = theirs.read_bytes()
    with pytest.raises(DataError, match=r"b\.png exists and holds something else; move it away"):
        write_label_maps(json_file, pngs, tmp_path, workers=1)
    assert theirs.read_bytes() == before


def test_defects_are_named(panoptic_folder: PanopticFolder, tmp_path: Path):
    panoptic_folder.segments.pop()
    json_file, _, pngs = panoptic_folder.write()
    with pytest.raises(DataError, match=r"a\.png: has pixels of segment 7, which segments_info"):
        write_label_maps(json_file, pngs, tmp_path / "stuff", workers=1)


@pytest.fixture
def cityscapes(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sample, where the built-in names look for it."""
    root = tmp_path / "cityscapes"
    shutil.copytree(shared_data / "cityscapes_layout", root, copy_function=shutil.copyfile)
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
        folder.chmod(0o755)
    monkeypatch.setenv("SEGDET_DATASETS", str(tmp_path))
    return root


def test_cityscapes(cityscapes: Path):
    for name, message in (
        ("sem_seg_val", r"labelTrainIds\.png does not exist; make these files with tools/prepare_"),
        ("panoptic_val", r"cityscapes_panoptic_val\.json does not exist; make it with tools/prep"),
    ):
        with pytest.raises(DataError, match=message):
            DatasetCatalog.get(f"cityscapes_fine_{name}")
    for split, count in (("train", 3), ("val", 2)):
        places = cityscapes / "leftImg8bit" / split, cityscapes / "gtFine" / split
        assert write_cityscapes(*places, workers=1) == count
        before = content(cityscapes)
        assert write_cityscapes(*places, workers=1) == count and content(cityscapes) == before
        semantic = DatasetCatalog.get(f"cityscapes_fine_sem_seg_{split}")
        panoptic = DatasetCatalog.get(f"cityscapes_fine_panoptic_{split}")
        assert len(semantic) == len(panoptic) == count
        for one, other in zip(semantic, panoptic, strict=True):
            assert one["sem_seg_file_name"] == other["sem_seg_file_name"]
            from_file = read_sem_seg(one)
            del other["sem_seg_file_name"]
            assert (read_sem_seg(other) == from_file).all(), "segments say the same"
            assert {0, 2, 10, 255} <= set(np.unique(from_file))
            out = DatasetMapper(True, augmentations=[], image_format="RGB")(other)
            assert out["sem_seg"].shape == out["image"].shape[1:]
    metadata = MetadataCatalog.get("cityscapes_fine_panoptic_val")
    assert metadata.evaluator_type == "cityscapes_panoptic_seg" and metadata.label_divisor == 1000
    assert len(metadata.thing_classes) == len(metadata.stuff_colors) == 19
    assert metadata.thing_dataset_id_to_contiguous_id[26] == 13
    assert metadata.stuff_dataset_id_to_contiguous_id[7] == 0


def test_cityscapes_format(cityscapes: Path):
    """What csCreatePanopticImgs writes."""
    write_cityscapes(cityscapes / "leftImg8bit/val", cityscapes / "gtFine/val", workers=1)
    tree = json.loads((cityscapes / "gtFine/cityscapes_panoptic_val.json").read_text())
    stem = "riverton_000000_000019"
    image, row = tree["images"][0], tree["annotations"][0]
    assert image == {
        "id": stem,
        "file_name": f"{stem}_gtFine_leftImg8bit.png",
        "width": 480,
        "height": 360,
    }
    assert row.keys() == {"image_id", "file_name", "segments_info"}
    assert row["image_id"] == stem and row["file_name"] == f"{stem}_gtFine_panoptic.png"
    ids = read_labels(cityscapes / f"gtFine/val/riverton/{stem}_gtFine_instanceIds.png")
    expected = {int(v) for v in np.unique(ids) if v >= 7}
    assert {segment["id"] for segment in row["segments_info"]} == expected
    cars = [s for s in row["segments_info"] if s["category_id"] == 26]
    assert {s["id"]: s["iscrowd"] for s in cars} == {26: 1, 26_000: 0, 26_001: 0}
    assert cars[1]["area"] == (ids == 26_000).sum()
    assert [c["id"] for c in tree["categories"]][:3] == [7, 8, 11] and len(tree["categories"]) == 19


def test_cityscapes_is_evaluated(cityscapes: Path):
    """The annotation as a prediction, by contiguous classes, in all three evaluators."""
    write_cityscapes(cityscapes / "leftImg8bit/val", cityscapes / "gtFine/val", workers=1)
    name = "cityscapes_fine_panoptic_val"
    metadata = MetadataCatalog.get(name)
    evaluator = EVALUATORS[metadata.evaluator_type](get_cfg(), name, str(cityscapes / "results"))
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        evaluator.process([record], [annotation_as_output(record, metadata)])
    results = evaluator.evaluate()
    assert results is not None
    assert results["panoptic_seg"]["PQ"] == results["panoptic_seg"]["PQ_th"] == 100
    assert results["sem_seg"]["IoU"] == 100 and results["segm"]["AP"] > 99


def annotation_as_output(record: dict, metadata: Metadata) -> dict:
    """What a model would give that is always right; crowds are left void."""
    ids = read_segment_ids(record["pan_seg_file_name"])
    labels = read_sem_seg(record)
    segments, masks = [], []
    for segment in record["segments_info"]:
        is_thing = segment["category_id"] in metadata.thing_dataset_id_to_contiguous_id.values()
        if segment["iscrowd"]:
            ids[ids == segment["id"]] = 0
            continue
        segments.append({**segment, "isthing": is_thing})
        if is_thing:
            masks.append((segment["category_id"], ids == segment["id"]))
    found = Instances(ids.shape)
    found.pred_classes = torch.tensor([label for label, _ in masks])
    found.pred_masks = torch.from_numpy(np.stack([mask for _, mask in masks]))
    found.scores = torch.linspace(1, 0.5, len(masks))
    scores = torch.nn.functional.one_hot(torch.from_numpy(labels.astype(np.int64)) % 255, 19)
    return {
        "panoptic_seg": (torch.from_numpy(ids.astype(np.int32)), segments),
        "sem_seg": scores.permute(2, 0, 1),
        "instances": found,
    }


def test_groups_are_crowds_and_the_ignored_are_void(cityscapes: Path):
    folder = cityscapes / "gtFine/val/riverton"
    file = next(folder.glob("*_000000_*instanceIds.png"))
    ids = np.full((360, 480), 7, np.uint16)
    ids[:9, :9], ids[20:29, :9], ids[40:49, :9] = 26, 29_001, 26_000
    Image.fromarray(ids).save(file)
    write_cityscapes(cityscapes / "leftImg8bit/val", cityscapes / "gtFine/val", workers=1)
    record = DatasetCatalog.get("cityscapes_fine_panoptic_val")[0]
    crowds = {s["id"]: s["iscrowd"] for s in record["segments_info"]}
    assert crowds == {7: 0, 26: 1, 26_000: 0}
    ids[0, 0] = 34_000
    Image.fromarray(ids).save(file)
    with pytest.raises(DataError, match=r"instanceIds\.png: has the id 34000, of no class"):
        write_cityscapes(cityscapes / "leftImg8bit/val", cityscapes / "gtFine/val", workers=1)
