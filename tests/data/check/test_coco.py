import json
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from segdet.data.check import json_parts
from segdet.data.check.coco import check_coco
from segdet.data.check.pictures import check_pictures
from segdet.data.check.sources import check_dataset
from segdet.data.defects import KINDS, Severity
from segdet.data.readers.coco_json import read_coco_json
from segdet.errors import DataError
from tests.data.conftest import SQUARE, CocoFolder, annotation
from tests.data.readers.test_coco_json import NASTY, WARNED

REFUSED_BY_THE_SYSTEM = {"no_segmentation.json"}  # by models with masks alone


def kinds_in(nasty: Path, name: str) -> Counter[str]:
    (checked,) = check_dataset(f"{nasty}/json/{name}:{nasty}/images")
    check_pictures([checked], 1)
    return Counter(one.kind for one in checked.findings)


@pytest.mark.parametrize("name", NASTY)
def test_what_training_refuses_is_an_error_and_what_it_drops_a_warning(nasty: Path, name: str):
    kinds = kinds_in(nasty, name)
    severity = max((KINDS[kind].severity for kind in kinds), default=None)
    if isinstance(NASTY[name], str) and name not in REFUSED_BY_THE_SYSTEM:
        assert severity == Severity.ERROR
    else:
        assert severity != Severity.ERROR
        assert (severity is not None) >= (name in WARNED)


def test_files_without_a_defect_get_no_complaint(nasty: Path):
    for name in ("ok", "no_iscrowd", "float_ids", "huge_ids", "string_image_ids", "utf16"):
        assert kinds_in(nasty, f"{name}.json") == {}


@pytest.mark.parametrize(
    "name, kinds",
    [
        ("string_numbers", {"not-a-number": 2, "area-invalid": 1}),
        ("polygon_outside_image", {"box-outside": 1, "mask-outside": 1}),
        ("image_exif_rotated", {"image-rotated": 1}),
        ("duplicate_category_ids", {"id-twice": 1, "category-ids-with-gaps": 1}),
        ("polygon_self_intersecting", {"polygon-crosses-itself": 1}),
        ("polygon_collinear", {"polygon-without-area": 1, "box-off-its-mask": 1}),
        ("invalid_truncated", {"json-invalid": 1}),
    ],
)
def test_all_defects_of_a_record_are_named(nasty: Path, name: str, kinds: dict[str, int]):
    assert kinds_in(nasty, f"{name}.json") >= Counter(kinds)


@pytest.mark.parametrize("name", ["coco_mini", "fruits_nuts", "nuclei", "camvid_small"])
def test_of_real_sets_there_is_nothing_but_notes(shared_data: Path, name: str):
    for split in ("train", "val"):
        checked = check_coco(shared_data / name / f"annotations/instances_{split}.json", None)
        assert {one.kind for one in checked.findings} <= {
            *("category-unused", "category-ids-with-gaps", "image-without-objects")
        }


def test_the_message_is_the_readers(coco_folder: CocoFolder):
    coco_folder.tree["annotations"] = [annotation(bbox=[1, 2, 3])]
    json_file, images = coco_folder.write()
    with pytest.raises(DataError) as caught:
        read_coco_json(json_file, images)
    found = check_coco(json_file, str(images)).findings
    (finding,) = (one for one in found if one.row is not None)
    assert f"{finding.file}: {finding.record}: {finding.message}" == str(caught.value)
    assert (finding.kind, finding.field, finding.row) == ("box-malformed", "bbox", 0)


def test_a_file_in_parts_gives_the_findings_of_the_whole(
    coco_folder: CocoFolder, monkeypatch: pytest.MonkeyPatch
):
    rows = [annotation(id=i, bbox=[20, 10, 30 + i / 9, 30]) for i in range(60)]
    rows[7] |= {"bbox": None}
    rows[31] |= {"id": 7, "segmentation": [SQUARE[:5]]}
    rows[50] |= {"bbox": rows[49]["bbox"]}
    del rows[59]["id"]
    coco_folder.tree["annotations"] = rows
    json_file, images = coco_folder.write()
    expected = check_coco(json_file, str(images))
    assert {"annotations[59]", "annotation 7", "annotation 50"} <= {
        one.record for one in expected.findings
    }
    monkeypatch.setattr(json_parts, "PART", 500)
    assert len((json_parts.in_parts(json_file) or pytest.fail()).lists["annotations"]) > 3
    for workers in (1, 2):
        checked = check_coco(json_file, str(images), workers=workers)
        assert checked.findings == expected.findings
        assert checked.summary == expected.summary


def test_a_key_twice_in_a_part_is_said_as_of_the_whole(
    coco_folder: CocoFolder, monkeypatch: pytest.MonkeyPatch
):
    coco_folder.tree["annotations"] = [annotation(id=i) for i in range(30)]
    json_file, _ = coco_folder.write()
    json_file.write_text(json_file.read_text().replace('"id": 29', '"id": 29, "id": 30'))
    monkeypatch.setattr(json_parts, "PART", 500)
    (finding,) = check_coco(json_file, None, workers=2).findings
    assert finding.kind == "key-twice" and "'id' twice" in finding.message


def test_the_summary_counts_what_is_there(coco_folder: CocoFolder):
    coco_folder.tree["annotations"] = [
        annotation(),
        annotation(id=2, category_id=1, segmentation=..., bbox=[0, 0, 8, 8], area=64),
        annotation(id=3, iscrowd=1, bbox=[21, 10, 40, 30]),
    ]
    json_file, images = coco_folder.write()
    summary = check_coco(json_file, str(images)).summary
    assert (summary.images, summary.objects, summary.crowds, summary.with_mask) == (2, 2, 1, 1)
    assert summary.classes == ["dog", "cat"]
    assert summary.objects_of_class == {0: 1, 1: 1} == summary.images_of_class
    assert summary.areas == {"small": 1, "medium": 1}
    assert summary.image_sizes == {(80, 60): 2}


def test_gaps_between_ids_cost_nothing(coco_folder: CocoFolder):
    extra = [{"id": 4, "name": "ant"}, {"id": 3_000_000, "name": "bee"}]
    coco_folder.tree["categories"] += extra
    json_file, _ = coco_folder.write()
    tracemalloc.start()
    found = check_coco(json_file, None).findings
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    (message,) = (one.message for one in found if one.kind == "category-ids-with-gaps")
    assert message == "ids go to 3000000, without 2, 5 to 2999999"


def test_files_beyond_the_limits_are_named(coco_folder: CocoFolder, monkeypatch):
    json_file, images = coco_folder.write()
    monkeypatch.setattr(json_parts, "PART", 100)
    monkeypatch.setenv("SEGDET_MAX_IMAGE_PIXELS", "100")
    (checked,) = check_dataset(f"{json_file}:{images}")
    check_pictures([checked], 1)
    assert [one.kind for one in checked.findings].count("image-too-large") == 2
    monkeypatch.setenv("SEGDET_MAX_JSON_BYTES", "100")
    (finding,) = check_coco(json_file, None).findings
    assert finding.kind == "file-unreadable" and "SEGDET_MAX_JSON_BYTES" in finding.message


def test_lvis_lists_of_classes_are_checked(tmp_path: Path):
    images = [{"id": 1, "width": 80, "height": 60, "coco_url": "http://x/val2017/1.jpg"}]
    images[0] |= {"neg_category_ids": [3, 9], "not_exhaustive_category_ids": []}
    categories = [{"id": 3, "name": "x", "synonyms": ["cat"], "frequency": "often"}]
    tree = {"images": images, "categories": categories, "annotations": [annotation()]}
    file = tmp_path / "lvis.json"
    file.write_text(json.dumps(tree))
    found = [(f.kind, f.record, f.field) for f in check_coco(file, "", is_lvis=True).findings]
    assert ("frequency-invalid", "category 3", "frequency") in found
    assert ("category-unknown", "image 1", "neg_category_ids") in found
    images[0]["neg_category_ids"], categories[0]["frequency"] = [3], "c"
    file.write_text(json.dumps(tree))
    findings = check_coco(file, "", is_lvis=True).findings
    assert ("absent-class-annotated", "annotation 1") in {(f.kind, f.record) for f in findings}


def test_minival_may_repeat_ids(coco_folder: CocoFolder):
    other = annotation(bbox=[21, 10, 39, 30])
    coco_folder.tree["annotations"].append(other)
    json_file, _ = coco_folder.write()
    assert "id-twice" in {one.kind for one in check_coco(json_file, None).findings}
    minival = json_file.rename(json_file.with_name("instances_minival2014.json"))
    assert "id-twice" not in {one.kind for one in check_coco(minival, None).findings}
