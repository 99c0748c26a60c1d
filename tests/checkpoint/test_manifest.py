import hashlib
import json
import os
from pathlib import Path

import pytest
import torch

from segdet.checkpoint.manifest import (
    MANIFEST,
    defect_of,
    numbered_before,
    read_manifest,
    save_whole,
)

CONTENT = {"model": {"weight": torch.arange(1000.0)}}


def test_the_hash_is_that_of_the_file(tmp_path):
    path = tmp_path / "model_0000001.pth"
    save_whole(path, CONTENT)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert json.loads((tmp_path / MANIFEST).read_text()) == {"sha256": {path.name: [digest]}}
    assert defect_of(path) == ""
    assert torch.load(path)["model"]["weight"].equal(CONTENT["model"]["weight"])


@pytest.mark.parametrize("known", [True, False])
def test_every_byte_counts_where_the_hash_is_known_and_the_end_always(tmp_path, known):
    path = tmp_path / "model_0000001.pth"
    save_whole(path, CONTENT)
    if not known:
        (tmp_path / MANIFEST).unlink()
    whole = path.read_bytes()
    for size in range(0, len(whole), 777):
        path.write_bytes(whole[:size])
        assert "model_0000001.pth" in defect_of(path)
    for place in range(0, len(whole), 777):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert not known or "is damaged: its hash is not" in defect_of(path)
    path.unlink()
    assert "No such file" in defect_of(path)


def test_writers_killed_before_the_file_is_replaced_leave_the_old_one_good(tmp_path, monkeypatch):
    path = tmp_path / "model_final.pth"
    save_whole(path, CONTENT)
    old = path.read_bytes()

    class Killed(BaseException):
        pass

    def kill(self, target):
        if target == path:
            raise Killed
        os.replace(self, target)

    monkeypatch.setattr(Path, "replace", kill)
    for size in range(3):
        with pytest.raises(Killed):
            save_whole(path, {"model": {"weight": torch.zeros(size)}})
        assert path.read_bytes() == old and defect_of(path) == ""
    monkeypatch.undo()
    assert len(read_manifest(tmp_path)[path.name]) == 4
    save_whole(path, {"model": {}})
    assert len(read_manifest(tmp_path)[path.name]) == 1
    assert defect_of(path) == ""


def test_deleted_files_are_forgotten(tmp_path):
    save_whole(tmp_path / "model_best.pth", CONTENT)
    (tmp_path / "model_best.pth").unlink()
    save_whole(tmp_path / "model_0000001.pth", CONTENT)
    assert list(read_manifest(tmp_path)) == ["model_0000001.pth"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"sha256": 1}', '{"sha256": {"a": 1}}', "\0"])
def test_a_damaged_manifest_is_done_without(tmp_path, text, caplog):
    path = tmp_path / "model_0000001.pth"
    save_whole(path, CONTENT)
    (tmp_path / MANIFEST).write_text(text)
    assert read_manifest(tmp_path) == {}
    assert "is damaged" in caplog.text
    assert defect_of(path) == ""


def test_those_saved_last_come_first_whatever_an_earlier_run_has_left(tmp_path):
    for number in (90, 95, 1, 3, 5):
        save_whole(tmp_path / f"model_{number:07d}.pth", CONTENT)
    save_whole(tmp_path / "model_best.pth", CONTENT)
    (tmp_path / "model_0000002.pth").touch()  # of another program

    def numbers(name: str) -> list[int]:
        return [int(path.stem[-7:]) for path in numbered_before(tmp_path, name)]

    assert numbers("model_0000005.pth") == [3, 1, 2]
    assert numbers("model_final.pth") == numbers("") == [5, 3, 1, 95, 90, 2]


def test_a_full_disk_is_an_oserror_and_leaves_no_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("segdet.checkpoint.manifest._Hashing.flush", full)
    with pytest.raises(OSError, match="No space left"):
        save_whole(tmp_path / "a.pth", CONTENT)
    assert list(tmp_path.iterdir()) == []
