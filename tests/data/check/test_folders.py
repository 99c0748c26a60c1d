import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdet.data.check.findings import Checked
from segdet.data.check.pictures import check_pictures
from segdet.data.check.sources import check_dataset
from segdet.data.prepare import write_cityscapes
from tests.data.readers.mat_writer import numbers, structure, write_mat

OBJECT = (
    "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>1</ymin><xmax>{}</xmax>"
    "<ymax>9</ymax></bndbox></object>"
)
SIZE = "<size><width>20</width><height>10</height></size>"


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (tmp_path / name).mkdir(parents=True)
    for name in "abc":
        Image.new("RGB", (20, 10)).save(tmp_path / f"JPEGImages/{name}.jpg")
        text = f"<annotation>{SIZE}{OBJECT.format('cat', 1, 20)}</annotation>"
        (tmp_path / f"Annotations/{name}.xml").write_text(text)
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\nb\nc\n")
    return tmp_path


def check_all(name: str) -> Checked:
    (checked,) = check_dataset(name)
    check_pictures([checked], 1)
    return checked


def test_voc_without_a_defect(voc: Path):
    checked = check_all(f"{voc}:train")
    assert {one.kind for one in checked.findings} == {"image-twice"}  # all three are black
    assert (checked.summary.images, checked.summary.objects) == (3, 3)
    assert checked.summary.image_sizes == {(20, 10): 3}


@pytest.fixture
def sbd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEGDET_DATASETS", str(tmp_path))
    folder = tmp_path / "sbd"
    for name in "ab":
        segments = np.repeat(np.array([[0, 1, 1, 2]], "u1"), 10, axis=0)
        write_segments(folder, name, segments, [1.0, 20.0])
        (folder / "img").mkdir(exist_ok=True)
        Image.new("RGB", (4, 10)).save(folder / f"img/{name}.jpg")
    (folder / "val.txt").write_text("a\nb\n")
    return folder


def write_segments(folder: Path, name: str, segments: np.ndarray, categories: list[float]) -> None:
    fields = {"Segmentation": segments, "Categories": np.array([categories]).T}
    struct = structure("GTinst", {key: numbers(one) for key, one in fields.items()})
    write_mat(folder / f"inst/{name}.mat", struct)


def test_sbd_without_a_defect(sbd: Path):
    checked = check_all("sbd_val")
    assert {one.kind for one in checked.findings} == {"image-twice"}  # both are black
    assert (checked.summary.images, checked.summary.objects) == (2, 4)
    assert checked.summary.image_sizes == {(4, 10): 2}
    assert checked.summary.objects_of_class == {0: 2, 19: 2}


def test_every_object_of_sbd_with_a_defect_is_named(sbd: Path):
    write_segments(sbd, "a", np.full((10, 4), 2, "u1"), [0.0, 21.0, 3.0])
    write_segments(sbd, "b", np.full((10, 4), 2, "u1"), [3.0])
    (sbd / "val.txt").write_text("a\nb\nc\nc\n")
    found = {(one.kind, one.record) for one in check_all("sbd_val").findings}
    assert found >= {
        ("class-unknown", "a, object 1"),
        ("mask-empty", "a, object 1"),
        ("class-unknown", "a, object 2"),
        ("mask-empty", "a, object 3"),
        ("segmentation-malformed", "b"),
        ("file-unreadable", "c"),
        ("file-name-twice", "c"),
        ("nothing-to-train-on", ""),
    }


def test_every_object_of_voc_with_a_defect_is_named(voc: Path):
    odd = [("cow", 5, 2), ("unicorn", 1, 2), ("cat", 1, 40), ("cat", "x", 3), ("cat", "nan", 3)]
    objects = "".join(OBJECT.format(*one) for one in odd)
    (voc / "Annotations/a.xml").write_text(f"<annotation>{objects}</annotation>")
    (voc / "Annotations/b.xml").write_text("<annotation>")
    (voc / "JPEGImages/c.jpg").unlink()
    (voc / "ImageSets/Main/train.txt").write_text("a\nb\nc\nd\nc\n")
    found = [(one.kind, one.record) for one in check_all(f"{voc}:train").findings]
    for one in [
        ("key-missing", "a"),
        ("box-malformed", "a, object 0"),
        ("class-unknown", "a, object 1"),
        ("not-a-number", "a, object 3"),
        ("not-finite", "a, object 4"),
        ("xml-invalid", "b"),
        ("image-missing", "c"),
        ("file-unreadable", "d"),
        ("file-name-twice", "c"),
    ]:
        assert one in found


def test_a_voc_box_out_of_its_image_is_named(voc: Path):
    text = f"<annotation>{SIZE}{OBJECT.format('cat', 1, 40)}</annotation>"
    (voc / "Annotations/a.xml").write_text(text)
    (voc / "JPEGImages/b.jpg").write_bytes(b"")
    Image.new("RGB", (10, 20)).save(voc / "JPEGImages/c.jpg")
    found = [(one.kind, one.record) for one in check_all(f"{voc}:train").findings]
    assert {("box-past-border", "a, object 0"), ("size-differs", "c")} <= {*found}
    assert ("image-unreadable", "b") in found


def test_an_absent_voc_list_is_named(voc: Path):
    kinds = {one.kind for one in check_all(f"{voc}:val").findings}
    assert kinds == {"file-unreadable", "nothing-to-train-on"}


@pytest.fixture
def cityscapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEGDET_DATASETS", str(tmp_path))
    for kind in ("leftImg8bit", "gtFine"):
        (tmp_path / f"cityscapes/{kind}/val/ulm").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in "ab":
        picture = Image.fromarray(rng.integers(0, 255, (10, 20, 3), dtype=np.uint8))
        picture.save(tmp_path / f"cityscapes/leftImg8bit/val/ulm/{name}_leftImg8bit.png")
        write_objects(tmp_path, name, [{"label": "car", "polygon": [[1, 1], [9, 1], [9, 8]]}])
        labels = np.array([[0, 255] * 10] * 10, np.uint8)
        Image.fromarray(labels).save(truth(tmp_path, name, "labelTrainIds.png"))
    return tmp_path


def truth(root: Path, name: str, kind: str) -> Path:
    return root / f"cityscapes/gtFine/val/ulm/{name}_gtFine_{kind}"


def write_objects(root: Path, name: str, objects: list) -> None:
    tree = {"imgHeight": 10, "imgWidth": 20, "objects": objects}
    truth(root, name, "polygons.json").write_text(json.dumps(tree))


@pytest.mark.parametrize("task", ["instance_seg", "sem_seg"])
def test_cityscapes_without_a_defect(cityscapes: Path, task: str):
    checked = check_all(f"cityscapes_fine_{task}_val")
    assert checked.findings == []
    assert checked.summary.images == 2


def test_every_object_of_cityscapes_with_a_defect_is_named(cityscapes: Path):
    car = {"label": "car", "polygon": [[1, 1], [9, 1], [9, 8]]}
    odd = [{"label": "unicorn"}, {"label": 5}, {**car, "polygon": [[1, 2]]}]
    write_objects(cityscapes, "a", [*odd, {**car, "polygon": [[1, 1], [99, 1], [9, 8]]}])
    truth(cityscapes, "b", "polygons.json").write_text("{")
    found = [(f.kind, f.record) for f in check_all("cityscapes_fine_instance_seg_val").findings]
    name = "a_leftImg8bit.png"
    assert found[:4] == [
        ("class-unknown", f"{name}, objects[0]"),
        ("name-invalid", f"{name}, objects[1]"),
        ("segmentation-malformed", f"{name}, objects[2]"),
        ("polygon-past-border", f"{name}, objects[3]"),
    ]
    assert ("json-invalid", "b_leftImg8bit.png") in found


def test_cityscapes_label_maps_with_defects(cityscapes: Path):
    Image.fromarray(np.full((10, 20), 19, np.uint8)).save(
        truth(cityscapes, "a", "labelTrainIds.png")
    )
    truth(cityscapes, "b", "labelTrainIds.png").unlink()
    found = [(f.kind, f.record) for f in check_all("cityscapes_fine_sem_seg_val").findings]
    assert ("label-unknown", "a_leftImg8bit.png") in found
    assert ("file-missing", "b_leftImg8bit.png") in found


def test_the_sample_in_cityscapes_layout(shared_data: Path, tmp_path, monkeypatch):
    monkeypatch.setenv("SEGDET_DATASETS", str(tmp_path))
    root = tmp_path / "cityscapes"
    shutil.copytree(shared_data / "cityscapes_layout", root)
    write_cityscapes(root / "leftImg8bit/val", root / "gtFine/val")
    for task in ("instance_seg", "sem_seg", "panoptic"):
        found = {one.kind for one in check_all(f"cityscapes_fine_{task}_val").findings}
        assert found <= {"category-ids-with-gaps"}, task
