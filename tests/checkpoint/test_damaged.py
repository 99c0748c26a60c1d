"""Files that are damaged, or that ask for more than the machine has."""

import io
import pickle
import pickletools
import struct
import tarfile
import time
import zipfile

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from segdet.checkpoint import DetectionCheckpointer
from segdet.checkpoint.reading import read_checkpoint
from segdet.errors import CheckpointError
from tests.checkpoint.opcodes import (
    CONTAINERS,
    FLOAT,
    STORAGE,
    args,
    array_of,
    call,
    name,
    number,
    tensor,
    text,
    write,
)


def archive_of(path, entries: dict[str, bytes], **options) -> None:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)


HONEST = b"\x80\x02}" + text("a") + tensor(4, 1, 0) + b"s."


@pytest.mark.parametrize(
    "entries, options, message",
    [
        ({"a/data.pkl": HONEST, "a/data/../../0": b"x"}, {}, "There is no item named"),
        ({"a/data.pkl": HONEST, "b/data.pkl": HONEST}, {}, r"without the data\.pkl"),
        ({"a/other.pkl": HONEST}, {}, r"without the data\.pkl"),
        ({"a/data.pkl": HONEST, "a/code/a.py": b""}, {}, "TorchScript archive, which holds code"),
        ({"a/data.pkl": HONEST, "a/constants.pkl": b""}, {}, "TorchScript archive"),
        ({"a/data.pkl": HONEST, "a/data/0": bytes(8)}, {}, "storage 0 ends early"),
        ({"a/data.pkl": HONEST, "a/data/0": bytes(16), "a/byteorder": b"big"}, {}, "byte order"),
        (
            {"a/data.pkl": HONEST, "a/data/0": bytes(10**8)},
            {"compression": zipfile.ZIP_DEFLATED},
            "has compressed parts",
        ),
    ],
)
def test_odd_archives_are_refused(tmp_path, entries, options, message):
    path = tmp_path / "in" / "a.pth"
    path.parent.mkdir()
    archive_of(path, entries, **options)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)
    assert [one.name for one in tmp_path.rglob("*")] == ["in", "a.pth"]  # nothing was unpacked


def test_entries_outside_of_the_archive_are_never_written(tmp_path):
    path = tmp_path / "in" / "a.pth"
    path.parent.mkdir()
    outside = {"../../escaped": b"x", "/segdet_escaped": b"x", "a/../../escaped": b"x"}
    archive_of(path, {"a/data.pkl": HONEST, "a/data/0": bytes(16)} | outside)
    assert read_checkpoint(path)["model"]["a"].tolist() == [0] * 4
    assert [one.name for one in tmp_path.rglob("*")] == ["in", "a.pth"]


def test_tar_files_of_old_torch_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.pth", "w") as archive:
        archive.addfile(tarfile.TarInfo("../../storages"), io.BytesIO())
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_checkpoint(tmp_path / "a.pth")


def doubled(start: bytes, pair: bytes, times: int) -> bytes:
    """`start`, then `times` times a container of the last one twice."""
    steps = (pair + b"r" + struct.pack("<I", i + 1) for i in range(times))
    return start + b"q\0" + b"".join(steps)


def bombs() -> dict[str, bytes]:
    blob = b"B" + struct.pack("<I", 1 << 20) + b"x" * (1 << 20)
    again = b"h\1" + args(b"h\0") + b"R0"
    deep = b"]" * 5000 + b"a" * 4999
    return {
        "key of doubled tuples": b"}" + doubled(b")", b"2\x86", 60) + b"Ns",
        "set of doubled tuples": call(
            "builtins", "set", b"](" + doubled(b")", b"2\x86", 60) + b"e"
        ),
        "contains itself": b"]q\0h\0a",
        "deep": deep,
        "memo at 4e9": b"Nr\xff\xff\xff\xff",
        "text of 4 GB": b"X\xff\xff\xff\xff",
        "bytes of an exabyte": b"\x8e" + struct.pack("<Q", 1 << 60),
        "bytearray of 60 GB": b"\x96" + struct.pack("<Q", 60 << 30),
        "frame of an exabyte": b"\x95" + struct.pack("<Q", 1 << 60),
        "integer of 2 GB": b"\x8b\xff\xff\xff\x7f",
        "bytearray by number": call("builtins", "bytearray", number(1 << 40)),
        "bytes by number": call("_codecs", "encode", number(1 << 40), text("latin1")),
        "array by number": call(
            "numpy.core.numeric", "_frombuffer", number(1 << 40), FLOAT, args(b"K\4"), text("C")
        ),
        "the same text encoded again and again": blob
        + b"q\0"
        + name("builtins", "bytearray")
        + b"q\1"
        + again * 100_000,
        "array larger than its bytes": array_of(FLOAT, text("abcd" * 5)),
        "text dtype of an exabyte": array_of(
            call("numpy", "dtype", text("S1000000000000000000"), b"\x89", b"\x88"), text("a")
        ),
        "integer of many digits": b"L" + b"9" * 100_000 + b"L\n",
    }


@pytest.mark.parametrize("bomb", list(bombs()))
def test_bombs_are_refused_at_once(tmp_path, bomb):
    write(tmp_path / "a.pkl", bombs()[bomb])
    start = time.process_time()
    with pytest.raises(CheckpointError, match=r"a\.pkl") as error:
        read_checkpoint(tmp_path / "a.pkl")
    assert not isinstance(error.value.__cause__, MemoryError)  # it was not even tried
    assert time.process_time() - start < 5


def test_doubled_tuples_are_read_in_no_time(tmp_path):
    """They are 2^60 items to whoever copies or prints them; the message prints no values."""
    write(tmp_path / "a.pkl", doubled(b")", b"2\x86", 60))
    with pytest.raises(CheckpointError, match=r"a\.pkl: .* is of type"):
        read_checkpoint(tmp_path / "a.pkl")


@pytest.mark.parametrize("container", CONTAINERS[1:])
def test_a_tensor_of_one_number_repeated_is_no_way_to_exhaust_memory(tmp_path, container):
    write(tmp_path / container, tensor(1 << 50, 0, 0))
    with pytest.raises(CheckpointError, match="asks for far more memory"):
        read_checkpoint(tmp_path / container)
    write(tmp_path / container, tensor(100, 0, 0))  # as expand() makes it
    assert read_checkpoint(tmp_path / container)["model"]["a"].shape == (100,)


def test_a_legacy_storage_of_an_exabyte_is_refused(tmp_path):
    storage = STORAGE.replace(b"K\4", number(1 << 58))
    write(tmp_path / "legacy.pth", tensor(4, 1, 0).replace(STORAGE, storage))
    with pytest.raises(CheckpointError, match="ends early"):
        read_checkpoint(tmp_path / "legacy.pth")


def test_many_empty_storages_are_read_in_no_time(tmp_path):
    empty = (
        args(text("storage"), name("torch", "FloatStorage"), text(f"e{i}"), text("cpu"), b"K\0")
        for i in range(20_000)
    )
    write(tmp_path / "legacy.pth", b"".join(one + b"Q0" for one in empty) + tensor(4, 1, 0))
    start = time.process_time()
    assert read_checkpoint(tmp_path / "legacy.pth")["model"]["a"].tolist() == [0, 1, 2, 3]
    assert time.process_time() - start < 5


@pytest.mark.parametrize("container", CONTAINERS[1:])
@pytest.mark.parametrize("key", [b"K\0", b"]", b")"])
def test_keys_of_storages_are_text(tmp_path, container, key):
    write(tmp_path / container, tensor(4, 1, 0).replace(text("0"), key))
    with pytest.raises(CheckpointError, match="persistent id"):
        read_checkpoint(tmp_path / container)


@pytest.mark.parametrize("container", CONTAINERS[1:])
def test_a_device_of_doubled_tuples_is_refused_at_once(tmp_path, container):
    write(tmp_path / container, call("torch", "device", doubled(b")", b"2\x86", 60)))
    with pytest.raises(CheckpointError, match=r"torch\.device of other objects"):
        read_checkpoint(tmp_path / container)


@pytest.fixture(scope="module")
def real_files() -> dict[str, bytes]:
    """One file of each format, with weights, an optimizer's state and counters."""
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.zeros(1, 2, 2, 2)).sum().backward()
    optimizer.step()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iteration": 9}
    files = {}
    for kind, zipped in (("zipped.pth", True), ("legacy.pth", False)):
        buffer = io.BytesIO()
        torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
        files[kind] = buffer.getvalue()
    arrays = {key: value.numpy() for key, value in model.state_dict().items()}
    for protocol in (0, 2, 5):
        files[f"{protocol}.pkl"] = pickle.dumps({"model": arrays, "__author__": "a"}, protocol)
    files["a.safetensors"] = safetensors.torch.save(dict(model.state_dict()))
    return files


@settings(
    max_examples=300,
    deadline=2000,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_damaged_files_are_read_or_named(real_files, tmp_path, data):
    kind = data.draw(st.sampled_from(sorted(real_files)))
    content = bytearray(real_files[kind])
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[place] ^= data.draw(st.integers(1, 255))
    end = data.draw(st.none() | st.integers(0, len(content)))
    path = tmp_path / kind
    path.write_bytes(content[:end])
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    optimizer = torch.optim.Adam(model.parameters())
    checkpointer = DetectionCheckpointer(model, optimizer=optimizer)
    try:
        checkpointer.load(path)
    except CheckpointError as error:
        assert str(path) in str(error)


@settings(
    max_examples=300,
    deadline=2000,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.sampled_from([op.code.encode("latin1") for op in pickletools.opcodes])
        | st.binary(max_size=4),
        max_size=60,
    )
)
def test_arbitrary_opcodes_are_read_or_named(tmp_path, codes):
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x02" + b"".join(codes) + b".")
    try:
        read_checkpoint(path)
    except CheckpointError as error:
        assert str(path) in str(error)
