from pathlib import Path

import numpy as np
import pytest

from segdet.data.readers.mat_file import read_mat_struct
from segdet.errors import DataError
from tests.data.readers.mat_writer import CELL, CHAR, array, element, numbers, structure, write_mat

SEGMENTS = np.arange(12, dtype="u1").reshape(3, 4)


def a_struct(order: str = "<") -> bytes:
    cells = array(CELL, (1, 1), "", numbers(SEGMENTS, order=order), order)
    text = array(CHAR, (1, 2), "", element(4, b"a\0b\0", order), order)
    fields = {
        "Boundaries": cells,
        "Segmentation": numbers(SEGMENTS, order=order),
        "Text": text,
        "Absent": element(14, b"", order),
        "Categories": numbers(np.array([[3.0], [20.0]]), "u1", order),
        "Large": numbers(np.array([[1e300, -2.5]]), order=order),
    }
    return structure("GT", fields, order)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("order", ["<", ">"])
def test_arrays_of_numbers_are_read(tmp_path: Path, packed, order):
    file = tmp_path / "a.mat"
    other = structure("Other", {"Segmentation": numbers(SEGMENTS, order=order)}, order)
    write_mat(file, other, a_struct(order), packed=packed, order=order)
    found = read_mat_struct(file, "GT")
    assert list(found) == ["Segmentation", "Categories", "Large"]
    assert (found["Segmentation"] == SEGMENTS).all()
    assert found["Categories"].tolist() == [[3], [20]]
    assert found["Large"].tolist() == [[1e300, -2.5]]


def test_what_is_no_such_file_is_named(tmp_path: Path):
    file = tmp_path / "a.mat"
    with pytest.raises(DataError, match=r"a.mat: cannot be read \(No such file"):
        read_mat_struct(file, "GT")
    file.write_bytes(b"MATLAB 7.3 MAT-file".ljust(200))
    with pytest.raises(DataError, match="it is no MATLAB file of version 5; save with -v6"):
        read_mat_struct(file, "GT")
    write_mat(file, a_struct())
    with pytest.raises(DataError, match="it has no 1 x 1 structure Else"):
        read_mat_struct(file, "Else")


@pytest.mark.parametrize("packed", [True, False])
def test_a_damaged_file_ends_in_a_message(tmp_path: Path, packed):
    file = tmp_path / "a.mat"
    write_mat(file, a_struct(), packed=packed)
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(3000):
        content = bytearray(whole[: rng.integers(120, len(whole) + 1)])
        for place in rng.integers(124, len(content), 3) if len(content) > 124 else ():
            content[place] = rng.integers(256)
        file.write_bytes(content)
        try:
            read_mat_struct(file, "GT")
        except DataError as error:
            refused += 1
            assert str(error).startswith(str(file))
    assert refused > 100
