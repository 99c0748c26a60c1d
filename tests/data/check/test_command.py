import json
import re
from pathlib import Path

import pytest

from benchmarks.planted_defects import make_set
from segdet.cli import run_command
from segdet.data.check.command import main
from segdet.data.defects import KINDS
from segdet.data.readers.coco_json import read_coco_json
from tests.data.conftest import SQUARE, CocoFolder, annotation


def exit_code(*argv: object) -> int:
    try:
        run_command(main, [str(one) for one in argv])
    except SystemExit as exit:
        return int(exit.code or 0)
    return 0


def name_of(folder: CocoFolder) -> str:
    json_file, images = folder.write()
    return f"{json_file}:{images}"


@pytest.mark.parametrize(
    "changes, code, says",
    [
        ({}, 0, "category-unused"),
        ({"bbox": [20, 10, 0, 30]}, 1, "annotation 1, bbox: box without area"),
        ({"bbox": [1, 2, 3]}, 2, "annotation 1, bbox: bbox must be four numbers"),
    ],
)
def test_the_exit_code_is_that_of_the_worst(coco_folder: CocoFolder, capsys, changes, code, says):
    coco_folder.tree["annotations"] = [annotation(**changes), annotation(id=2, category_id=1)]
    assert exit_code(name_of(coco_folder), "--workers", 1) == code
    out = capsys.readouterr().out
    assert (says in out) == (code > 0)
    assert "2 images" in out


def test_what_is_no_data_set_is_said_in_one_message(capsys):
    assert exit_code("nowhere") == 2
    assert capsys.readouterr().err.startswith("error: 'nowhere' is no data set; give FILE.json")


def test_help_explains(capsys):
    assert exit_code("--help") == 0
    out = capsys.readouterr().out
    for word in ("exit code", "FILE.json:IMAGES:PNGS", "VOC_FOLDER:SPLIT", "--fix", "--no-images"):
        assert word in out


def test_pictures_stay_closed_where_that_is_wanted(coco_folder: CocoFolder, capsys):
    coco_folder.tree["annotations"].append(annotation(id=2, category_id=1))
    (coco_folder.images / "0.png").write_text("no picture")
    assert exit_code(name_of(coco_folder), "--no-images") == 0
    assert exit_code(name_of(coco_folder)) == 2
    assert "image-unreadable" in capsys.readouterr().out


def test_json_and_page_hold_all_findings(coco_folder: CocoFolder, tmp_path: Path):
    odd = "<b>cat & co</b>"
    coco_folder.tree["categories"][0]["name"] = odd
    coco_folder.tree["annotations"] = [
        annotation(id=i, bbox=[i, 2, 3], category_id=1) for i in range(8)
    ]
    page, file = tmp_path / "r.html", tmp_path / "r.json"
    assert exit_code(name_of(coco_folder), "--json", file, "--html", page, "--shown", 2) == 2
    (checked,) = json.loads(file.read_text())["datasets"]
    named = [f for f in checked["findings"] if f["kind"] == "box-malformed"]
    assert [f["record"] for f in named] == [f"annotation {i}" for i in range(8)]
    assert named[0]["training"] == KINDS["box-malformed"].training
    assert named[0]["field"] == "bbox" and named[0]["severity"] == "error"
    text = page.read_text()
    assert all(f"annotation {i}" in text for i in range(8))
    assert "&lt;b&gt;cat &amp; co" in text and odd not in text
    assert re.findall(r"https?:|src=|@import|url\(", text) == []


def test_a_fixed_copy_can_be_trained_on(tmp_path: Path, capsys):
    data = make_set(tmp_path / "set", 71)
    data.plant(71)
    # Two categories of one id, with two names: nobody knows which one is meant.
    data.tree["categories"] = [c for c in data.tree["categories"] if c != {"id": 2, "name": "plum"}]
    (data.root / "train.json").write_text(json.dumps(data.tree))
    fixed = tmp_path / "fixed.json"
    assert exit_code(f"{data.root}/train.json:{data.root}/train", "--fix", fixed) == 2
    assert re.search(
        r"fixed\.json: \d+ changes, 5 findings are left; see .*changes\.txt",
        capsys.readouterr().out,
    )
    assert exit_code(f"{fixed}:{data.root}/train") == 1
    kept = read_coco_json(fixed, data.root / "train").records
    assert len(kept) > 0.75 * data.images
    log = (tmp_path / "fixed.changes.txt").read_text().splitlines()
    assert "image 5: width and height set to 96 and 72 (size-invalid)" in log
    assert sum(line.startswith("left: ") for line in log) == 5


def test_a_fix_changes_nothing_else(coco_folder: CocoFolder, tmp_path: Path):
    whole = annotation(id=2, category_id=1, bbox=[20.5, 10, 39.5, 30], extra={"kept": 1})
    bow = [20, 10, 60, 40, 60, 10, 20, 40]
    broken = annotation(id=3, segmentation=[SQUARE, bow], bbox=None, area=1)
    coco_folder.tree |= {"info": {"year": 2020}, "annotations": [whole, broken]}
    fixed = tmp_path / "fixed.json"
    assert exit_code(name_of(coco_folder), "--no-images", "--fix", fixed) == 1
    tree = json.loads(fixed.read_text())
    assert {**tree, "annotations": 0} == {**coco_folder.tree, "annotations": 0}
    assert tree["annotations"][0] == whole
    mended = tree["annotations"][1]
    assert mended["bbox"] == [20, 10, 40, 30]
    assert len(mended["segmentation"]) == 3  # the square, and both halves of the bow
    assert mended["area"] == 1200 + 600


def test_a_fix_overwrites_no_source_and_needs_coco(coco_folder: CocoFolder, tmp_path, capsys):
    name = name_of(coco_folder)
    there = tmp_path / "there.changes.txt"
    there.write_text("precious")
    before = coco_folder.json.read_text()
    for file, named in ((coco_folder.json, coco_folder.json), (tmp_path / "there.json", there)):
        assert exit_code(name, "--fix", file) == 2
        assert f"--fix {named} exists; name another file" in capsys.readouterr().err
    assert coco_folder.json.read_text() == before and there.read_text() == "precious"
    assert exit_code(name, name, "--fix", tmp_path / "x.json") == 2
    assert "one data set at a time" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--json", "--html", "--fix"])
def test_outputs_have_room_before_the_work_begins(coco_folder: CocoFolder, capsys, flag: str):
    name, file = name_of(coco_folder), coco_folder.images.parent / "new/er/out.json"
    assert exit_code(name, flag, file) in (0, 1)
    assert file.is_file()
    capsys.readouterr()
    assert exit_code(name, flag, file / "below.json") == 2
    said = capsys.readouterr()
    assert f"{flag} {file / 'below.json'}: its folder" in said.err and said.out == ""


def test_a_fix_leaves_out_what_no_json_can_hold(coco_folder: CocoFolder, tmp_path: Path):
    odd = annotation(id=2, bbox=[21, 10, 39, 30], depths=[1.0, {"a": float("nan")}], note="kept")
    coco_folder.tree |= {"info": {"version": float("inf")}}
    coco_folder.tree["annotations"].append(odd)
    coco_folder.tree["images"][0]["time"] = float("nan")
    fixed = tmp_path / "fixed.json"
    assert exit_code(name_of(coco_folder), "--fix", fixed) < 2
    tree = json.loads(fixed.read_text(), parse_constant=pytest.fail)
    assert tree["annotations"][1]["note"] == "kept" and "depths" not in tree["annotations"][1]
    assert "time" not in tree["images"][0] and "info" not in tree
    log = (tmp_path / "fixed.changes.txt").read_text()
    for record, key in (("annotation 2", "depths"), ("image 1", "time"), ("the file", "info")):
        assert f"{record}: {key} left out: it holds NaN or Infinity" in log
