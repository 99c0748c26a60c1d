from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdet.data import DatasetMapper
from segdet.data.coco_classes import coco_panoptic_categories
from segdet.data.readers import panoptic_json
from segdet.data.readers.coco_json import parse_json
from segdet.data.readers.panoptic_json import (
    read_panoptic_categories,
    read_panoptic_json,
    separated_metadata,
    standard_metadata,
)
from segdet.data.rle import decode_rle
from segdet.data.segment_ids import write_segment_ids
from segdet.errors import DataError

from ..conftest import PanopticFolder

SEPARATED = {
    "thing_classes": ["cat", "dog"],
    "thing_colors": [[10, 11, 12], [4, 5, 6]],
    "thing_dataset_id_to_contiguous_id": {1: 0, 3: 1},
    "stuff_classes": ["things", "sky", "grass"],
    "stuff_colors": [[82, 18, 128], [1, 2, 3], [7, 8, 9]],
    "stuff_dataset_id_to_contiguous_id": {0: 0, 9: 1, 5: 2},
}
STANDARD = {
    "thing_classes": ["sky-other-merged", "dog", "grass", "cat"],
    "stuff_classes": ["sky-other-merged", "dog", "grass", "cat"],
    "thing_dataset_id_to_contiguous_id": {3: 1, 1: 3},
    "stuff_dataset_id_to_contiguous_id": {9: 0, 5: 2},
}


def test_separated(panoptic_folder: PanopticFolder):
    data = read_panoptic_json(*panoptic_folder.write())
    assert data.metadata == SEPARATED
    first, second = data.records
    assert first.keys() == {
        *("file_name", "height", "width", "image_id", "pan_seg_file_name", "segments_info")
    }
    assert first["pan_seg_file_name"] == str(panoptic_folder.pngs / "a.png")
    sky, dog, cat = first["segments_info"]
    assert sky == panoptic_folder.segments[0] | {
        "category_id": 1,
        "isthing": False,
        "sem_seg_label": 1,
    }
    assert (dog["category_id"], dog["isthing"], dog["sem_seg_label"]) == (1, True, 0)
    assert (cat["category_id"], cat["isthing"], cat["iscrowd"]) == (0, True, 1)
    assert second["segments_info"] == []


def test_standard(panoptic_folder: PanopticFolder):
    data = read_panoptic_json(*panoptic_folder.write(), separated=False)
    assert data.metadata.items() >= STANDARD.items()
    segments = data.records[0]["segments_info"]
    assert [s["category_id"] for s in segments] == [0, 1, 3]
    assert [s["sem_seg_label"] for s in segments] == [0, 1, 3]
    assert [s["isthing"] for s in segments] == [False, True, True]


def test_objects_come_from_the_segments(panoptic_folder: PanopticFolder):
    first, second = read_panoptic_json(*panoptic_folder.write(), with_objects=True).records
    dog, cat = first["annotations"]
    assert (dog["category_id"], dog["iscrowd"], cat["category_id"], cat["iscrowd"]) == (1, 0, 0, 1)
    assert dog["bbox"] == [10, 40, 30, 50]
    assert (decode_rle(dog["segmentation"]) == (panoptic_folder.ids == 70_000)).all()
    assert second["annotations"] == []
    mapper = DatasetMapper(True, augmentations=[], image_format="RGB", use_instance_mask=True)
    targets = mapper(first)["instances"]
    assert targets.gt_classes.tolist() == [1], "a crowd is no target"
    assert targets.gt_boxes.tensor.tolist() == [[10, 40, 30, 50]]


def test_pictures_are_decoded_once_as_long_as_they_stay(
    panoptic_folder: PanopticFolder, monkeypatch: pytest.MonkeyPatch
):
    decoded = []
    read = panoptic_json.read_segment_ids
    monkeypatch.setattr(
        panoptic_json, "read_segment_ids", lambda file: decoded.append(file) or read(file)
    )
    files = panoptic_folder.write()
    first = read_panoptic_json(*files, with_objects=True).records[0]["annotations"]
    expected = [dict(one) for one in first]
    first[0].clear()
    assert read_panoptic_json(*files, with_objects=True).records[0]["annotations"] == expected
    assert len(decoded) == 2, "one for each picture"
    standard = read_panoptic_json(*files, with_objects=True, separated=False).records[0]
    assert [one["category_id"] for one in standard["annotations"]] == [1, 3]
    ids = np.where(panoptic_folder.ids == 7, 0, panoptic_folder.ids)
    ids[0, 0] = 7
    write_segment_ids(panoptic_folder.pngs / "a.png", ids)
    moved = read_panoptic_json(*files, with_objects=True).records[0]["annotations"]
    assert moved[1]["bbox"] == [0, 0, 1, 1] and len(decoded) == 6


def test_a_class_of_id_0_is_a_class(panoptic_folder: PanopticFolder):
    panoptic_folder.tree["categories"][2]["id"] = 0
    metadata = read_panoptic_json(*panoptic_folder.write()).metadata
    assert metadata["stuff_dataset_id_to_contiguous_id"] == {-1: 0, 9: 1, 0: 2}


def test_without_colours_there_are_none(panoptic_folder: PanopticFolder):
    del panoptic_folder.tree["categories"][0]["color"]
    for separated in (True, False):
        data = read_panoptic_json(*panoptic_folder.write(), separated=separated)
        assert not {"thing_colors", "stuff_colors"} & data.metadata.keys()


def test_images_without_annotation_are_left_out(panoptic_folder: PanopticFolder, caplog):
    del panoptic_folder.tree["annotations"][1]
    with caplog.at_level(logging.WARNING, "segdet.data"):
        assert len(read_panoptic_json(*panoptic_folder.write()).records) == 1
    assert "left out 1 images without annotation" in caplog.text


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: f.tree.pop("annotations"), "has no key 'annotations'"),
        (lambda f: f.tree["categories"][1].pop("isthing"), r"category 3 \(dog\): isthing must be"),
        (lambda f: f.tree["categories"][1].update(id=9), "two categories have the id 9"),
        (lambda f: f.tree["annotations"][1].update(image_id=7), r"annotations\[1\]: image_id 7 is"),
        (lambda f: f.tree["annotations"][1].update(image_id=1), "image 1: has two annotations"),
        (lambda f: f.tree["annotations"][0].update(file_name=3), "image 1: file_name must be text"),
        (lambda f: f.tree["annotations"][0].update(file_name="../a.png"), "image 1: file_name"),
        (lambda f: f.tree["annotations"][0].update(file_name="c.png"), r"image 1: .*/c\.png does"),
        (lambda f: f.tree["annotations"][0].pop("segments_info"), "image 1: segments_info must be"),
        (lambda f: f.segments[0].update(id=2**24), r"image 1: the id of a segment must be in \[1"),
        (lambda f: f.segments[0].update(id=0), r"image 1: the id of a segment must be in \[1"),
        (lambda f: f.segments[0].update(id="x"), "image 1: the id of a segment must be a whole"),
        (lambda f: f.segments[0].update(id=7), "image 1: two segments have the id 7"),
        (
            lambda f: f.segments[0].update(category_id=8),
            "segment 300: category_id 8 is no",
        ),
        (
            lambda f: f.segments[0].update(category_id=[]),
            "segment 300: category_id must be",
        ),
        (lambda f: f.segments[0].update(iscrowd=2), "segment 300: iscrowd must be 0 or 1, is 2"),
        (
            lambda f: f.segments[0].update(id=301),
            "pixels of segment 300, which",
        ),
        (lambda f: f.segments.pop(), r"a\.png: has pixels of segment 7, which"),
        (
            lambda f: write_segment_ids(f.pngs / "a.png", f.ids[::2, ::2]),
            r"image 1: .*a\.png: the map is 40 x 30 .*, its picture is 80 x 60",
        ),
    ],
)
def test_defects_are_named(panoptic_folder: PanopticFolder, change, message):
    change(panoptic_folder)
    files = panoptic_folder.write()
    with pytest.raises(DataError, match=rf"^{files[0]}: .*({message})"):
        read_panoptic_json(*files, with_objects=True)


def test_more_classes_than_labels_are_refused():
    rows = [{"id": i, "name": str(i), "isthing": 0} for i in range(256)]
    with pytest.raises(DataError, match="room for 254 classes of stuff, there are 255"):
        separated_metadata(rows[:255])
    with pytest.raises(DataError, match="room for 255 classes, there are 256"):
        standard_metadata(rows)
    assert len(separated_metadata(rows[:254])["stuff_classes"]) == 255
    assert len(standard_metadata(rows[:255])["stuff_classes"]) == 255


NASTY = {
    "segment_missing_in_json.json": r"image 1: .*ok_1\.png: has pixels of segment \d+, which",
    "segment_missing_in_png.json": r"image 1: .*ok_1\.png: segment 12345 of segments_info has no",
    "unknown_category.json": r"image 1: segment \d+: category_id 999 is no category",
    "duplicate_segment_ids.json": r"image 1: two segments have the id \d+",
    "png_missing.json": r"image 1: .*png/nope\.png does not exist",
    "png_half_size.json": r"image 1: .*half_size\.png: the map is 80 x 60 .* is 160 x 120",
    "png_gray.json": r"image 1: .*gray\.png.* mode L",
    "no_isthing.json": r"category 1 \(date\): isthing must be 1 for things",
}


@pytest.mark.parametrize("name", NASTY)
def test_nasty_files_are_refused(nasty: Path, name: str):
    folder = nasty / "panoptic"
    with pytest.raises(DataError, match=rf"{name}: {NASTY[name]}"):
        read_panoptic_json(folder / name, nasty / "images", folder / "png", with_objects=True)


@pytest.mark.parametrize(
    "name, objects",
    [
        ("ok.json", 6),
        ("png_rgba.json", 6),  # alpha is dropped
        ("png_palette.json", 6),  # expanded
        ("all_void.json", 0),
        ("crowd_segment.json", 6),
        ("stuff_twice.json", 4),  # both are the same stuff
    ],
)
def test_odd_files_are_read(nasty: Path, name: str, objects: int):
    folder = nasty / "panoptic"
    files = folder / name, nasty / "images", folder / "png"
    record = read_panoptic_json(*files, with_objects=True).records[0]
    assert len(record["annotations"]) == objects
    assert sum(a["iscrowd"] for a in record["annotations"]) == (name == "crowd_segment.json")
    mapper = DatasetMapper(True, augmentations=[], image_format="RGB", use_instance_mask=True)
    out = mapper(record)
    assert len(out["instances"]) == objects - (name == "crowd_segment.json")
    labels = {"all_void.json": {255}}.get(name, {0, 1})
    assert set(out["sem_seg"].unique().tolist()) == labels


def test_coco_is_in_the_table(shared_data: Path):
    file = shared_data / "coco_panoptic_sample/annotations/panoptic_examples.json"
    rows = read_panoptic_categories(file, parse_json(file))
    keys = ("id", "name", "isthing", "color")
    assert [{key: row[key] for key in keys} for row in rows] == coco_panoptic_categories()
    metadata = separated_metadata(rows)
    assert (len(metadata["thing_classes"]), len(metadata["stuff_classes"])) == (80, 54)
    assert metadata["stuff_classes"][-1] == "rug" and metadata["stuff_classes"][1] == "banner"


def test_coco_detection_format_is_what_we_derive(shared_data: Path):
    """panopticapi's own conversion of the same file."""
    folder = shared_data / "coco_panoptic_sample"
    file = folder / "annotations/panoptic_examples.json"
    data = read_panoptic_json(file, folder / "images", file.with_suffix(""), with_objects=True)
    tree = parse_json(folder / "annotations/panoptic_coco_detection_format.json")
    number = data.metadata["thing_dataset_id_to_contiguous_id"]
    for record in data.records:
        rows = [
            row
            for row in tree["annotations"]
            if row["image_id"] == record["image_id"] and row["category_id"] in number
        ]
        masks = {decode_rle(row["segmentation"]).tobytes(): row for row in rows}
        assert len(masks) == len(record["annotations"]) > 0
        for one in record["annotations"]:
            row = masks[decode_rle(one["segmentation"]).tobytes()]
            x, y, w, h = row["bbox"]
            assert one["bbox"] == [x, y, x + w, y + h]
            assert (number[row["category_id"]], row["iscrowd"]) == (
                one["category_id"],
                one["iscrowd"],
            )


def test_pictures_are_looked_for_when_read(panoptic_folder: PanopticFolder):
    files = panoptic_folder.write()
    Image.fromarray(np.zeros((60, 80), np.uint8)).save(panoptic_folder.pngs / "b.png")
    assert len(read_panoptic_json(*files).records) == 2, "pictures are not read"
    with pytest.raises(DataError, match=r"image 2: .*b\.png"):
        read_panoptic_json(*files, with_objects=True)
