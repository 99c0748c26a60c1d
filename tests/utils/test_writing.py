import pytest

from segdet.errors import ConfigError
from segdet.utils.writing import make_room_for, write_atomically, write_text_atomically


def test_replaces_the_old_file(tmp_path):
    path = tmp_path / "a"
    for content in (b"old", b"new"):
        write_atomically(path, lambda file, content=content: file.write(content))
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failing_write_leaves_the_old_file(tmp_path, failure):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"half of the n")
        raise failure

    with pytest.raises(type(failure)):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_name_appears_after_the_content(tmp_path):
    path = tmp_path / "a"

    def write(file):
        file.write(b"content")
        file.flush()
        assert not path.exists()
        assert [p.parent for p in tmp_path.iterdir()] == [tmp_path]

    write_atomically(path, write)
    assert path.read_bytes() == b"content"


def test_a_text_becomes_utf_8(tmp_path):
    write_text_atomically(tmp_path / "a", "ä\n")
    assert (tmp_path / "a").read_bytes() == b"\xc3\xa4\n"


def test_there_is_room_for_a_file_before_the_work_begins(tmp_path):
    assert make_room_for(tmp_path / "new/er/a.json", "--json").parent.is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--json .*b\.json: its folder .*it is a file"):
        make_room_for(tmp_path / "file/b.json", "--json")
    with pytest.raises(ConfigError, match=r"--json .*new cannot be used: it is a folder"):
        make_room_for(tmp_path / "new", "--json")
