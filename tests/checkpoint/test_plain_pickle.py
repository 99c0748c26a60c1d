import pickle
from pathlib import Path

import numpy as np
import pytest

from segdet.checkpoint.plain_pickle import read_plain_pickle
from segdet.errors import CheckpointError


class Harmful:
    def __reduce__(self):
        return print, ("a pickle ran this",)


def test_reads_containers_numbers_and_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "proposals.pkl"
    file.write_bytes(pickle.dumps({"ids": [1, "b"], "boxes": [np.eye(2, dtype=np.float32)]}))
    content, path = read_plain_pickle(str(file))
    assert content["ids"] == [1, "b"] and path == file
    np.testing.assert_array_equal(content["boxes"][0], np.eye(2))
    monkeypatch.setenv("SEGDET_WEIGHTS", str(tmp_path))
    assert read_plain_pickle("detectron2://proposals.pkl")[1] == file


def test_anything_else_is_refused_by_name(tmp_path: Path, capsys):
    file = tmp_path / "proposals.pkl"
    file.write_bytes(pickle.dumps({"ids": [Harmful()]}))
    with pytest.raises(
        CheckpointError, match=r"proposals\.pkl: refers to the Python object .*print"
    ):
        read_plain_pickle(str(file))
    file.write_bytes(b"no pickle")
    with pytest.raises(CheckpointError, match=r"proposals\.pkl: cannot be read; it is cut short"):
        read_plain_pickle(str(file))
    with pytest.raises(CheckpointError, match="no such file"):
        read_plain_pickle(str(tmp_path / "none.pkl"))
    assert "ran this" not in capsys.readouterr().out
