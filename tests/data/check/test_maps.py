import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdet.data.check.sources import check_dataset
from segdet.data.segment_ids import write_segment_ids
from tests.data.conftest import PanopticFolder


def findings_in(name: str, **options) -> list[tuple[str, str, str]]:
    return [
        (f.kind, f.record, f.message) for c in check_dataset(name, **options) for f in c.findings
    ]


def named(folder: PanopticFolder) -> str:
    return ":".join(map(str, folder.write()))


@pytest.mark.parametrize(
    "name, kind, says",
    [
        ("segment_missing_in_json", "segment-unknown", "pixels of segment 300"),
        ("segment_missing_in_png", "segment-without-pixels", "segment 12345"),
        ("unknown_category", "category-unknown", "segment 300: category_id 999"),
        ("duplicate_segment_ids", "id-twice", "two segments have the id 300"),
        ("png_missing", "file-missing", "nope.png does not exist"),
        ("png_half_size", "map-size", "80 x 60"),
        ("png_gray", "map-malformed", "mode L"),
    ],
)
def test_nasty_panoptic_files(nasty: Path, name: str, kind: str, says: str):
    found = findings_in(f"{nasty}/panoptic/{name}.json:{nasty}/images:{nasty}/panoptic/png")
    (one,) = found
    assert one[:2] == (kind, "image 1") and says in one[2]


@pytest.mark.parametrize("name", ["ok", "all_void", "crowd_segment", "png_rgba", "stuff_twice"])
def test_panoptic_files_that_can_be_read_get_no_complaint(nasty: Path, name: str):
    assert findings_in(f"{nasty}/panoptic/{name}.json:{nasty}/images:{nasty}/panoptic/png") == []


def test_every_segment_with_a_defect_is_named(panoptic_folder: PanopticFolder):
    segments = panoptic_folder.segments
    segments[0] |= {"area": 5}
    segments[1] |= {"bbox": [30, 40, 20, 10]}
    segments.append({"id": 7, "category_id": 1, "iscrowd": 0})
    segments.append({"id": 8, "category_id": 1, "iscrowd": 3})
    panoptic_folder.tree["annotations"].append(panoptic_folder.tree["annotations"][0])
    panoptic_folder.tree["images"].append({"id": 3, "file_name": "c.jpg", "width": 8, "height": 6})
    kinds = [(kind, record) for kind, record, _ in findings_in(named(panoptic_folder))]
    for one in [
        ("area-off-its-mask", "image 1"),
        ("box-off-its-mask", "image 1"),
        ("id-twice", "image 1"),
        ("iscrowd-invalid", "image 1"),
        ("annotated-twice", "image 1"),
        ("image-without-annotation", "image 3"),
    ]:
        assert one in kinds


def test_pictures_of_segments_stay_closed_where_that_is_wanted(panoptic_folder: PanopticFolder):
    write_segment_ids(panoptic_folder.pngs / "a.png", np.full((60, 80), 4))
    kinds = [one[0] for one in findings_in(named(panoptic_folder))]
    assert "segment-unknown" in kinds
    kinds = [one[0] for one in findings_in(named(panoptic_folder), open_images=False)]
    assert "segment-unknown" not in kinds


def test_panoptic_summary_counts_things(panoptic_folder: PanopticFolder):
    (checked,) = check_dataset(named(panoptic_folder))
    summary = checked.summary
    assert (summary.images, summary.objects, summary.crowds) == (2, 1, 1)
    assert summary.objects_of_class == {1: 1}  # cat, dog, grass, sky by their ids 1, 3, 5, 9
    assert summary.classes[1] == "dog"


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    for name in ("labels", "images"):
        (tmp_path / name).mkdir()
    for i in range(3):
        Image.new("RGB", (8, 6)).save(tmp_path / f"images/{i}.jpg")
        values = np.array([[0, 1, 1, 255, 0, 1, 0, 0]] * 6, np.uint8)
        Image.fromarray(values).save(tmp_path / f"labels/{i}.png")
    (tmp_path / "labels/classes.txt").write_text("sky\ngrass\n")
    return tmp_path


def test_label_maps_without_a_defect(labels: Path):
    (checked,) = check_dataset(f"{labels}/labels:{labels}/images")
    assert checked.findings == []
    assert checked.summary.pixels_of_class == {0: 72, 1: 54}


def test_label_maps_with_defects(labels: Path):
    Image.fromarray(np.full((6, 8), 2, np.uint8)).save(labels / "labels/0.png")
    Image.fromarray(np.zeros((3, 8), np.uint8)).save(labels / "labels/1.png")
    Image.new("RGB", (8, 6)).save(labels / "labels/2.png")
    Image.new("RGB", (8, 6)).save(labels / "images/3.jpg")
    found = findings_in(f"{labels}/labels:{labels}/images")
    assert [one[:2] for one in found] == [
        ("partner-missing", "3"),
        ("label-unknown", "0"),
        ("map-size", "1"),
        ("map-malformed", "2"),
    ]


def test_folders_that_do_not_pair(labels: Path):
    for file in (labels / "images").iterdir():
        file.rename(file.with_stem(f"x{file.stem}"))
    kinds = {one[0] for one in findings_in(f"{labels}/labels:{labels}/images")}
    assert kinds == {"nothing-pairs", "partner-missing"}


def test_builtin_panoptic_names_have_their_instances_checked(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SEGDET_DATASETS", str(tmp_path))
    folder = tmp_path / "demo/annotations"
    (tmp_path / "demo/val").mkdir(parents=True)
    folder.mkdir()
    empty = {"images": [], "categories": [], "annotations": []}
    (folder / "panoptic_val.json").write_text(json.dumps(empty))
    (folder / "instances_val.json").write_text("{}")
    checks = check_dataset("demo_panoptic_val")
    assert [[f.kind for f in checked.findings] for checked in checks] == [[], ["key-missing"]]
