import pytest

from segdet.errors import CheckpointError
from segdet.utils.file_io import PathManager


def test_files_by_path(tmp_path):
    folder = tmp_path / "a" / "b"
    PathManager.mkdirs(folder)
    with PathManager.open(folder / "x.txt", "w") as file:
        file.write("hello")
    assert PathManager.isfile(str(folder / "x.txt")) and PathManager.isdir(folder)
    assert PathManager.copy(folder / "x.txt", folder / "y.txt")
    assert not PathManager.copy(folder / "x.txt", folder / "y.txt")
    assert sorted(PathManager.ls(folder)) == ["x.txt", "y.txt"]
    PathManager.rm(folder / "x.txt")
    assert not PathManager.exists(folder / "x.txt") and PathManager.exists(folder)
    assert PathManager.get_local_path(folder / "x.txt") == str(folder / "x.txt")


def test_addresses_mean_the_files_of_the_mirror(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGDET_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("SEGDET_CACHE", str(tmp_path / "cache"))
    (tmp_path / "R-50.pkl").write_bytes(b"weights")
    address = "detectron2://R-50.pkl"
    assert PathManager.get_local_path(address) == str(tmp_path / "R-50.pkl")
    assert PathManager.exists(address) and PathManager.isfile(address)
    with PathManager.open(address, "rb") as file:
        assert file.read() == b"weights"
    assert not PathManager.exists("detectron2://R-51.pkl")
    with pytest.raises(CheckpointError, match="R-51"):
        PathManager.get_local_path("detectron2://R-51.pkl")
