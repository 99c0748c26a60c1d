import pytest

from segdet.checkpoint.writing import write_atomically


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
