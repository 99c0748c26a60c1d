"""The bar of check-data: every planted defect is named, and nothing else is."""

from pathlib import Path

import pytest

from benchmarks.planted_defects import make_set, named_in


def check_planted(root: Path, count: int) -> None:
    data = make_set(root / "set", count)
    assert [one for checked in data.check() for one in checked.findings] == []
    data.plant(count)
    found = named_in(*data.check(workers=2))
    assert [one for one in data.planted if one not in found] == []
    records = {record for _, record in data.planted}
    assert {one for one in found if one[1] not in records} == set()
    assert len(data.planted) >= count - 10
    assert len({kind for kind, _ in data.planted}) >= 50


def test_one_defect_of_each_kind_is_named(tmp_path: Path):
    check_planted(tmp_path, 71)


@pytest.mark.slow
def test_a_thousand_defects_are_named(tmp_path: Path):
    check_planted(tmp_path, 1000)
