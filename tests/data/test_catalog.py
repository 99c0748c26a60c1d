from __future__ import annotations

from pathlib import Path

import pytest

from segdet.data import DatasetCatalog, Metadata, MetadataCatalog
from segdet.data.builtin import datasets_root
from segdet.data.datasets import register_coco_instances
from segdet.data.image_io import read_labels
from segdet.data.sem_seg import read_sem_seg
from segdet.errors import DataError

from .conftest import CocoFolder, PanopticFolder


def test_register_get_list_remove():
    DatasetCatalog.register("mine", lambda: [{"file_name": "a"}])
    assert DatasetCatalog.get("mine") == [{"file_name": "a"}]
    assert "mine" in DatasetCatalog and "mine" in DatasetCatalog.list()
    with pytest.raises(DataError, match="'mine' is registered already"):
        DatasetCatalog.register("mine", lambda: [])
    with pytest.raises(DataError, match="'coco_2017_val' is registered already"):
        DatasetCatalog.register("coco_2017_val", lambda: [])
    with pytest.raises(DataError, match="needs a function"):
        DatasetCatalog.register("records", [{}])
    DatasetCatalog.remove("mine")
    assert "mine" not in DatasetCatalog
    DatasetCatalog.register("mine", lambda: [])
    DatasetCatalog.clear()
    assert "mine" not in DatasetCatalog and "coco_2017_val" in DatasetCatalog


def test_a_registration_shadows_a_sample_name_and_its_metadata(coco_folder: CocoFolder):
    sample_file = MetadataCatalog.get("nuclei_train").json_file
    MetadataCatalog.get("nuclei_train").thing_classes = ["dog", "cat"]
    for name in ("nuclei_train", "demo_val"):
        json_file, images = coco_folder.write()
        register_coco_instances(name, {}, json_file, images)
        assert len(DatasetCatalog.get(name)) == 2
        metadata = MetadataCatalog.get(name)
        assert metadata.json_file == str(json_file) and metadata.thing_classes == ["dog", "cat"]
    DatasetCatalog.remove("nuclei_train")
    assert MetadataCatalog.get("nuclei_train").json_file == sample_file
    DatasetCatalog.clear()
    assert "demo_val" in DatasetCatalog
    assert not hasattr(MetadataCatalog.get("demo_val"), "thing_classes")


@pytest.mark.parametrize(
    "name, message",
    [
        ("coco_2017_val", "is built in"),
        ("demo_val", "is built in"),
        ("mine", "no data set is named"),
    ],
)
def test_only_registered_names_can_be_removed(name: str, message: str):
    for remove in (DatasetCatalog.remove, DatasetCatalog.pop):
        with pytest.raises(DataError, match=message):
            remove(name)
    with pytest.raises(DataError, match="no metadata to remove"):
        MetadataCatalog.pop(name)


@pytest.mark.parametrize(
    "name, hint",
    [("fruits_nut_train", "; did you mean fruits_nuts_train"), ("zzz", r" \(or give FILE\.json:")],
)
def test_unknown_name_has_a_hint(name, hint):
    with pytest.raises(DataError, match=f"no data set is named '{name}'{hint}"):
        DatasetCatalog.get(name)


def test_metadata_keeps_its_first_value():
    metadata = MetadataCatalog.get("mine").set(thing_classes=["a"], colour=1)
    assert MetadataCatalog.get("mine") is metadata and metadata.name == "mine"
    assert metadata.thing_classes == ["a"] and metadata.get("nothing", 5) == 5
    metadata.thing_classes = ["a"]
    with pytest.raises(DataError, match=r"of data set 'mine' is already \['a'\]"):
        metadata.thing_classes = ["b"]
    with pytest.raises(
        AttributeError, match=r"'mine' has no stuff_classes \(it has colour, name, thing_classes\)"
    ):
        _ = metadata.stuff_classes
    assert metadata.as_dict() == {"name": "mine", "thing_classes": ["a"], "colour": 1}
    MetadataCatalog.remove("mine")
    assert "mine" not in MetadataCatalog.list() and "mine" not in MetadataCatalog
    with pytest.raises(DataError, match="empty"):
        MetadataCatalog.get("")


def test_metadata_knows_old_names():
    metadata = Metadata().set(class_names=["a"])
    assert metadata.thing_classes == ["a"] and metadata.class_names == ["a"]


def test_root_of_built_in_sets(monkeypatch: pytest.MonkeyPatch):
    for name in ("SEGDET_DATASETS", "DETECTRON2_DATASETS"):
        monkeypatch.delenv(name, raising=False)
    assert datasets_root() == Path("datasets")
    monkeypatch.setenv("DETECTRON2_DATASETS", "/d2")
    assert datasets_root() == Path("/d2")
    monkeypatch.setenv("SEGDET_DATASETS", "/own")
    assert datasets_root() == Path("/own")


def test_coco_names_are_known_without_files(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SEGDET_DATASETS", "/data")
    metadata = MetadataCatalog.get("coco_2017_val")
    assert metadata.json_file == "/data/coco/annotations/instances_val2017.json"
    assert metadata.image_root == "/data/coco/val2017" and metadata.evaluator_type == "coco"
    assert len(metadata.thing_classes) == len(metadata.thing_colors) == 80
    assert metadata.thing_classes[0] == "person" and metadata.thing_classes[-1] == "toothbrush"
    assert metadata.thing_dataset_id_to_contiguous_id[90] == 79
    for name, file, images in (
        ("coco_2014_minival", "instances_minival2014.json", "val2014"),
        ("coco_2017_test-dev", "image_info_test-dev2017.json", "test2017"),
    ):
        metadata = MetadataCatalog.get(name)
        assert metadata.json_file == f"/data/coco/annotations/{file}"
        assert metadata.image_root == f"/data/coco/{images}"
    with pytest.raises(DataError, match=r"/data/coco/annotations/instances_val2017\.json: cannot"):
        DatasetCatalog.get("coco_2017_val")


@pytest.mark.parametrize("name, images", [("fruits_nuts", 12), ("nuclei", 120), ("coco_mini", 72)])
def test_sample_sets(monkeypatch: pytest.MonkeyPatch, shared_data: Path, name: str, images: int):
    monkeypatch.setenv("SEGDET_DATASETS", str(shared_data))
    records = DatasetCatalog.get(f"{name}_train")
    assert len(records) == images and Path(records[0]["file_name"]).is_file()
    assert len(MetadataCatalog.get(f"{name}_train").thing_classes) in (1, 3, 80)


def test_json_and_folder_as_a_name(coco_folder: CocoFolder, monkeypatch: pytest.MonkeyPatch):
    json_file, _ = coco_folder.write()
    monkeypatch.chdir(json_file.parent)
    name = "instances.json:images"
    assert MetadataCatalog.get(name).json_file == str(json_file)
    assert len(DatasetCatalog.get(name)) == 2
    assert MetadataCatalog.get(name).thing_classes == ["dog", "cat"]
    assert len(DatasetCatalog.get(name)) == 2, "a second time too"


def test_panoptic_json_and_folders_as_a_name(
    panoptic_folder: PanopticFolder, monkeypatch: pytest.MonkeyPatch
):
    json_file, _, pngs = panoptic_folder.write()
    monkeypatch.chdir(json_file.parent)
    for name in ("pan.json:images", "pan.json:images:pan"):
        metadata = MetadataCatalog.get(name)
        assert metadata.panoptic_json == str(json_file) and metadata.panoptic_root == str(pngs)
        assert metadata.evaluator_type == "coco_panoptic_seg"
        records = DatasetCatalog.get(name)
        assert len(records[0]["annotations"]) == 2
        assert metadata.stuff_classes == ["things", "sky", "grass"]
    pngs.rename(pngs.with_name("elsewhere"))
    with pytest.raises(DataError, match=r"pan\.json: image 1: .*pan/a\.png does not exist"):
        DatasetCatalog.get("pan.json:images")
    assert len(DatasetCatalog.get("pan.json:images:elsewhere")) == 2


def test_folders_of_label_maps_as_a_name(
    panoptic_folder: PanopticFolder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(panoptic_folder.images.parent)
    name = "pan:images"
    assert MetadataCatalog.get(name).evaluator_type == "sem_seg"
    assert MetadataCatalog.get(name).sem_seg_root == str(panoptic_folder.pngs)
    with pytest.raises(DataError, match=r"pan/classes\.txt: cannot be read"):
        DatasetCatalog.get(name)
    Path("pan/classes.txt").write_text("a\nb\n")
    Path("more.txt").write_text("a\nb\nc\n")
    for name, count in (("pan:images", 2), ("pan:images:more.txt", 3)):
        assert len(DatasetCatalog.get(name)) == 2
        assert len(MetadataCatalog.get(name).stuff_classes) == count
    with pytest.raises(DataError, match="no data set is named 'nowhere:images'"):
        DatasetCatalog.get("nowhere:images")


def test_panoptic_names_of_coco(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SEGDET_DATASETS", "/data")
    metadata = MetadataCatalog.get("coco_2017_val_100_panoptic_separated").as_dict()
    assert (
        metadata.items()
        >= {
            "image_root": "/data/coco/val2017",
            "panoptic_root": "/data/coco/panoptic_val2017_100",
            "panoptic_json": "/data/coco/annotations/panoptic_val2017_100.json",
            "sem_seg_root": "/data/coco/panoptic_stuff_val2017_100",
            "json_file": "/data/coco/annotations/instances_val2017_100.json",
            "evaluator_type": "coco_panoptic_seg",
            "ignore_label": 255,
        }.items()
    )
    assert len(metadata["thing_classes"]) == 80 and len(metadata["stuff_classes"]) == 54
    assert len(metadata["stuff_colors"]) == 54 and "label_divisor" not in metadata
    stuff = MetadataCatalog.get("coco_2017_train_panoptic_stuffonly")
    assert stuff.evaluator_type == "sem_seg" and stuff.stuff_classes == metadata["stuff_classes"]
    standard = MetadataCatalog.get("coco_2017_val_panoptic")
    assert len(standard.thing_classes) == len(standard.stuff_classes) == 133
    assert standard.label_divisor == 1000
    assert standard.stuff_dataset_id_to_contiguous_id[200] == 132
    assert standard.thing_dataset_id_to_contiguous_id[90] == 79


@pytest.mark.parametrize("split, images", [("train", 62), ("val", 21)])
def test_camvid(monkeypatch: pytest.MonkeyPatch, shared_data: Path, split: str, images: int):
    monkeypatch.setenv("SEGDET_DATASETS", str(shared_data))
    records = DatasetCatalog.get(f"camvid_small_panoptic_{split}")
    metadata = MetadataCatalog.get(f"camvid_small_panoptic_{split}")
    assert len(records) == images and metadata.thing_classes == ["car", "pedestrian", "bicyclist"]
    assert len(metadata.stuff_classes) == 9
    semantic = DatasetCatalog.get(f"camvid_small_sem_seg_{split}")
    assert len(semantic) == images
    assert len(MetadataCatalog.get(f"camvid_small_sem_seg_{split}").stuff_classes) == 11
    prepared = shared_data / "camvid_small" / "annotations" / f"stuff_{split}"
    for record in records[:5]:
        made = read_sem_seg(record)
        theirs = read_labels(prepared / f"{Path(record['file_name']).stem}.png")
        labelled = made != 255  # theirs also have the smallest things, which have no segment
        assert (made == theirs)[labelled].all() and set(theirs[~labelled]) <= {0, 255}


def test_official_sets_beside_coco(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SEGDET_DATASETS", "/data")
    known = {
        "lvis_v1_val": {
            "json_file": "/data/lvis/lvis_v1_val.json",
            "image_root": "/data/coco",
            "evaluator_type": "lvis",
        },
        "lvis_v1_test_dev": {"json_file": "/data/lvis/lvis_v1_image_info_test_dev.json"},
        "lvis_v0.5_val_rand_100": {"json_file": "/data/lvis/lvis_v0.5_val_rand_100.json"},
        "voc_2007_test": {"dirname": "/data/VOC2007", "split": "test", "year": 2007},
        "voc_2012_trainval": {"year": 2012, "evaluator_type": "pascal_voc"},
        "sbd_val": {"dirname": "/data/sbd", "split": "val", "evaluator_type": "coco"},
        "cityscapes_fine_instance_seg_val": {
            "image_dir": "/data/cityscapes/leftImg8bit/val",
            "gt_dir": "/data/cityscapes/gtFine/val",
            "evaluator_type": "cityscapes_instance",
        },
        "cityscapes_fine_sem_seg_train": {
            "ignore_label": 255,
            "evaluator_type": "cityscapes_sem_seg",
        },
        "keypoints_coco_2017_val": {
            "json_file": "/data/coco/annotations/person_keypoints_val2017.json",
            "image_root": "/data/coco/val2017",
            "thing_classes": ["person"],
        },
    }
    for name, facts in known.items():
        assert facts.items() <= MetadataCatalog.get(name).as_dict().items()
        with pytest.raises(DataError, match="is registered already"):
            DatasetCatalog.register(name, list)
        with pytest.raises(DataError, match="/data/"):
            DatasetCatalog.get(name)
    assert len(MetadataCatalog.get("voc_2007_test").thing_classes) == 20
    city = MetadataCatalog.get("cityscapes_fine_sem_seg_train")
    assert len(city.thing_classes) == 8 and len(city.stuff_classes) == 19


def test_keypoints_of_coco():
    metadata = MetadataCatalog.get("keypoints_coco_2014_minival")
    names = metadata.keypoint_names
    assert len(names) == 17 and len(metadata.keypoint_flip_map) == 8
    assert {name for pair in metadata.keypoint_flip_map for name in pair} == {*names} - {"nose"}
    assert all(a in names and b in names for a, b, _ in metadata.keypoint_connection_rules)
