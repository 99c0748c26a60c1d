from __future__ import annotations

from pathlib import Path

import pytest

from segdet.data import DatasetCatalog, MetadataCatalog
from segdet.data.datasets import load_voc_instances, register_pascal_voc
from segdet.errors import DataError
from segdet.structures import BoxMode

OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>
<xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox>
</object>"""


def write_voc(
    root: Path, split: str, images: dict[str, list[tuple[str, list[float], int]]]
) -> None:
    """A data set of 80 x 60 pictures (which are not written): per image class, box, difficult."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / f"ImageSets/Main/{split}.txt").write_text("\n".join(images) + "\n")
    for name, objects in images.items():
        rows = [OBJECT.format(name=c, box=box, difficult=d) for c, box, d in objects]
        size = "<size><width>80</width><height>60</height><depth>3</depth></size>"
        text = f"<annotation>{size}{''.join(rows)}</annotation>"
        (root / f"Annotations/{name}.xml").write_text(text)


def test_records(tmp_path: Path):
    objects = [("dog", [1, 2, 30, 40], 0), ("cat", [5.5, 6, 7, 8], 1)]
    write_voc(tmp_path, "train", {"000002": objects, "000001": []})
    records = load_voc_instances(tmp_path, "train")
    assert [r["image_id"] for r in records] == ["000002", "000001"]
    assert records[0] == {
        "file_name": str(tmp_path / "JPEGImages/000002.jpg"),
        "image_id": "000002",
        "height": 60,
        "width": 80,
        "annotations": [
            {"category_id": 11, "bbox": [0, 1, 30, 40], "bbox_mode": BoxMode.XYXY_ABS},
            {"category_id": 7, "bbox": [4.5, 5, 7, 8], "bbox_mode": BoxMode.XYXY_ABS},
        ],
    }
    assert records[1]["annotations"] == []


def test_register(tmp_path: Path):
    write_voc(tmp_path, "val", {"a": [("egg", [1, 1, 2, 2], 0)]})
    register_pascal_voc("eggs", tmp_path, "val", 2012, ["hen", "egg"])
    assert DatasetCatalog.get("eggs")[0]["annotations"][0]["category_id"] == 1
    metadata = MetadataCatalog.get("eggs")
    assert metadata.thing_classes == ["hen", "egg"] and metadata.evaluator_type == "pascal_voc"
    assert (metadata.dirname, metadata.split, metadata.year) == (str(tmp_path), "val", 2012)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("<name>dog</name>", "<name>wolf</name>", "class 'wolf' is none of aeroplane"),
        ("<name>dog</name>", "", "<object> has no <name>"),
        ("<xmin>1</xmin>", "<xmin>nan</xmin>", "xmin> must be a finite number"),
        ("<xmin>1</xmin>", "<xmin>one</xmin>", "xmin> must be a number, is 'one'"),
        ("<xmin>1</xmin>", "<xmin>31</xmin>", r"xmin <= xmax .* is \[31.0, 2.0, 30.0, 40.0\]"),
        ("<width>80</width>", "", "has no <size/width>"),
        ("</annotation>", "", "is not valid XML"),
        ("<annotation>", '<?xml version="1.0" encoding="foo"?><annotation>', "unknown encoding"),
    ],
)
def test_a_broken_annotation_is_named(tmp_path: Path, old: str, new: str, message: str):
    write_voc(tmp_path, "train", {"a": [("dog", [1, 2, 30, 40], 0)]})
    file = tmp_path / "Annotations/a.xml"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(DataError, match=f"{file}: .*{message}"):
        load_voc_instances(tmp_path, "train")


def test_missing_files_are_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"Main/train\.txt: the list of images cannot be read"):
        load_voc_instances(tmp_path, "train")
    write_voc(tmp_path, "train", {"a": []})
    (tmp_path / "Annotations/a.xml").unlink()
    with pytest.raises(DataError, match=r"Annotations/a\.xml: cannot be read"):
        load_voc_instances(tmp_path, "train")
