import json
import random
from pathlib import Path
from typing import Any

import pytest

from segdet.data.check import json_parts
from segdet.data.check.json_parts import BrokenPartError, in_parts, whole
from segdet.errors import DataError

ODD = ['a"b\\', "\\\\", "[{", '}]"', 'x\\"', "é", ", ", "", 1, -2.5, None, True]


def random_value(rng: random.Random, depth: int) -> Any:
    kind = rng.random()
    if kind < 0.4 or depth > 3:
        return rng.choice(ODD)
    if kind < 0.7:
        return [random_value(rng, depth + 1) for _ in range(rng.randint(0, 4))]
    keys = [f"k{i}{rng.choice(['', '[', chr(34), chr(92)])}" for i in range(rng.randint(0, 4))]
    return {key: random_value(rng, depth + 1) for key in keys}


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(json_parts, "PART", 40)
    return monkeypatch


def test_parts_hold_what_the_file_holds(small_parts: pytest.MonkeyPatch, tmp_path: Path):
    rng, file = random.Random(0), tmp_path / "a.json"
    for _ in range(300):
        small_parts.setattr(json_parts, "_BLOCK", rng.choice([7, 13, 64, 1000]))
        tree = {f"k{i}{rng.choice(['', chr(34)])}": random_value(rng, 0) for i in range(4)}
        tree["rows"] = [{"id": i, "v": random_value(rng, 2)} for i in range(10)]
        ascii_only, indent = rng.random() < 0.5, rng.choice([None, 1])
        file.write_text(json.dumps(tree, ensure_ascii=ascii_only, indent=indent), "utf-8")
        parts = in_parts(file)
        assert parts is not None
        lists = {k: [row for p in some for row in p.read()] for k, some in parts.lists.items()}
        assert {**parts.tree, **lists} == tree and [*parts.tree] == [*tree]
        assert len(parts.lists["rows"]) > 1
        for part in parts.lists["rows"]:
            assert [row["id"] for row in part.read()][:1] in ([part.first], [])


ROWS = ", ".join(['{"id": 1}'] * 50)


@pytest.mark.parametrize("end", ["", "]", "]}}", '"]}', '], "a": "}'])
def test_a_file_whose_brackets_do_not_pair_is_not_cut(small_parts, tmp_path: Path, end: str):
    file = tmp_path / "a.json"
    file.write_text('{"rows": [' + ROWS + end)
    assert in_parts(file) is None
    with pytest.raises(DataError, match=r"a\.json: is not valid JSON .*line 1 column"):
        whole(file)


@pytest.mark.parametrize("broken", ['{"id": }', '{"id": 1, "id": 2}', '{"id": 1},', '{"id": [1}}'])
def test_a_broken_row_breaks_its_part_alone(small_parts, tmp_path: Path, broken: str):
    file = tmp_path / "a.json"
    file.write_text('{"rows": [' + ROWS + ", " + broken + "]}")
    parts = in_parts(file)
    assert parts is not None
    first, *_, last = parts.lists["rows"]
    assert first.read()[0] == {"id": 1}
    with pytest.raises(BrokenPartError):
        last.read()
    with pytest.raises(DataError, match=r"a\.json: "):
        whole(file)


def test_small_files_and_other_encodings_are_taken_whole(small_parts, tmp_path: Path):
    file = tmp_path / "a.json"
    file.write_text("{}")
    assert in_parts(file) is None
    file.write_text('{"rows": [' + ROWS + "]}", "utf-16")
    assert in_parts(file) is None
    (part,) = whole(file).lists["rows"]
    assert len(part.read()) == 50
    assert in_parts(tmp_path / "absent.json") is None
