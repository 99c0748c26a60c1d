import os
import pickle
import struct
from collections import OrderedDict

import numpy as np
import pytest
import safetensors.torch
import torch

from segdet.checkpoint.reading import read_checkpoint
from segdet.errors import CheckpointError

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
    "c": np.float64(0.5),
    "d": np.zeros((0, 4), np.float16),
    "e": np.array([True, False]),
}


class Payload:
    """Touches a file when unpickled by a careless reader."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def write_pickle(path, content, protocol=2):
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("numpy_module", [b"numpy.core", b"numpy._core"])
def test_pickled_arrays(tmp_path, protocol, numpy_module):
    data = pickle.dumps({"model": ARRAYS, "__author__": "Detectron2 Model Zoo"}, protocol)
    if protocol < 4:  # later ones store the length of a module's name
        data = data.replace(b"numpy._core", b"numpy.core").replace(b"numpy.core", numpy_module)
    path = tmp_path / "model.pkl"
    path.write_bytes(data)
    checkpoint = read_checkpoint(path)
    assert checkpoint["__author__"] == "Detectron2 Model Zoo"
    for name, array in ARRAYS.items():
        tensor = checkpoint["model"][name]
        assert tensor.shape == array.shape
        np.testing.assert_array_equal(tensor.numpy(), array)
        assert tensor.numpy().dtype == array.dtype


def test_numpy_archive(tmp_path):
    np.savez(tmp_path / "a.npz", **ARRAYS)
    weights = read_checkpoint(tmp_path / "a.npz")["model"]
    assert weights.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(weights[name].numpy(), array)
    marker = tmp_path / "ran"
    np.savez(tmp_path / "b.npz", a=np.array([Payload(marker)], dtype=object))
    with pytest.raises(CheckpointError, match=r"b.npz: cannot be read.*allow_pickle=False"):
        read_checkpoint(tmp_path / "b.npz")
    assert not marker.exists()


def test_array_pickled_by_python_2(tmp_path):
    """Its bytes are a `str` there, which Python 3 reads as text in latin1."""
    values = np.array([1.5, -2.5, 1e-30], np.float32)

    def text(value: bytes) -> bytes:
        return b"U" + struct.pack("<B", len(value)) + value  # SHORT_BINSTRING

    dtype = b"cnumpy\ndtype\n(" + text(b"f4") + b"K\x00K\x01tR(K\x03" + text(b"<") + b"NNNJ"
    dtype += struct.pack("<i", -1) + b"J" + struct.pack("<i", -1) + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
    array += b"(K\x01(K\x03t" + dtype + b"\x89" + text(values.tobytes()) + b"tb"
    data = b"\x80\x02}(" + text(b"conv1_w") + array + b"u."
    path = tmp_path / "R-50.pkl"
    path.write_bytes(data)
    np.testing.assert_array_equal(read_checkpoint(path)["model"]["conv1_w"].numpy(), values)


@pytest.mark.parametrize(
    "content, flag",
    [
        ({"model": ARRAYS, "matching_heuristics": True, "__author__": "torchvision"}, True),
        ({"model": ARRAYS, "matching_heuristics": "yes"}, False),
        ({"model": ARRAYS}, False),
        ({"model_state": ARRAYS, "epoch": 3}, True),  # pycls
        ({"state_dict": ARRAYS, "epoch": 3}, False),
        ({"blobs": ARRAYS, "cfg": "NUM_GPUS: 8"}, False),  # Detectron
        (ARRAYS, False),
        (OrderedDict(ARRAYS), False),
    ],
)
@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_layouts(tmp_path, content, flag, suffix):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pkl":
        write_pickle(path, content)
    else:
        torch.save(content, path)
    checkpoint = read_checkpoint(path)
    assert list(checkpoint["model"]) == list(ARRAYS)
    assert all(isinstance(value, torch.Tensor) for value in checkpoint["model"].values())
    assert checkpoint["matching_heuristics"] is flag


def test_torch_files(tmp_path):
    state = torch.nn.BatchNorm2d(3).state_dict()
    trainer = {"best": np.float64(0.5), "count": np.int64(3), "history": np.arange(3)}
    content = {"model": state, "iteration": 9, "trainer": trainer}
    for name, zipped in (("new.pth", True), ("old.pt", False)):
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
        checkpoint = read_checkpoint(tmp_path / name)
        torch.testing.assert_close(checkpoint["model"], state)
        assert checkpoint["model"]._metadata == state._metadata
        assert checkpoint["iteration"] == 9
        assert checkpoint["trainer"]["best"] == 0.5
        assert checkpoint["trainer"]["history"].tolist() == [0, 1, 2]


def test_safetensors(tmp_path):
    weights = {"a.weight": torch.randn(2, 3), "a.bias": torch.randn(2).half()}
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    torch.testing.assert_close(read_checkpoint(tmp_path / "model.safetensors")["model"], weights)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_in_a_pickle_is_refused(tmp_path, protocol):
    marker = tmp_path / "executed"
    path = write_pickle(tmp_path / "evil.pkl", {"model": Payload(marker)}, protocol)
    with pytest.raises(
        CheckpointError, match=rf"{path}: refers to .* {os.system.__module__}.system"
    ):
        read_checkpoint(path)
    assert not marker.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_torch_file_is_refused(tmp_path, zipped):
    marker, path = tmp_path / "executed", tmp_path / "evil.pth"
    content = {"model": Payload(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        CheckpointError, match=rf"{path}: refers to .* {os.system.__module__}.system"
    ):
        read_checkpoint(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "module, name",
    [
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("numpy", "load"),
        ("numpy.core.multiarray", "fromfile"),
        ("torch", "load"),
        ("torch.storage", "_load_from_bytes"),
        ("collections", "OrderedDict.fromkeys"),
        ("segdet.errors", "CheckpointError"),
    ],
)
def test_only_listed_objects_are_known(tmp_path, module, name):
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x02c" + f"{module}\n{name}\n".encode() + b".")
    with pytest.raises(CheckpointError, match=f"refers to the Python object {module}.{name}"):
        read_checkpoint(path)


def test_arrays_of_objects_are_refused(tmp_path):
    path = write_pickle(tmp_path / "a.pkl", {"w": np.array([{}, []], object)})
    with pytest.raises(CheckpointError, match=r"refers to the Python object numpy\.dtype"):
        read_checkpoint(path)


def cut(data: bytes, keep: float) -> bytes:
    return data[: int(len(data) * keep)]


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["zip.pth", "old.pth", "a.pkl", "a.safetensors"])
def test_cut_files_are_named(tmp_path, kind, keep):
    path = tmp_path / kind
    weights = {"a": torch.randn(50, 50)}
    if kind == "a.pkl":
        write_pickle(path, {"a": weights["a"].numpy()})
    elif kind == "a.safetensors":
        safetensors.torch.save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=kind == "zip.pth")
    path.write_bytes(cut(path.read_bytes(), keep))
    with pytest.raises(CheckpointError, match=f"{path}: cannot be read"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["a.pth", "a.pkl", "a.safetensors"])
def test_foreign_files_are_named(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"MODEL:\n  WEIGHTS: a.pth\n")
    with pytest.raises(CheckpointError, match=f"{path}: cannot be read"):
        read_checkpoint(path)


def test_a_folder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "content, message",
    [
        ([1, 2], "holds a list, not a dict of weights"),
        ({"epoch": 3}, "'epoch' is of type int, not a tensor"),
        ({"model": {"a": "text"}}, "'a' is of type str, not a tensor"),
        ({"model": {"a": np.array(["text"])}}, "'a' is of type ndarray, not a tensor"),
    ],
)
def test_other_content_is_named(tmp_path, content, message):
    path = write_pickle(tmp_path / "a.pkl", content)
    with pytest.raises(CheckpointError, match=f"{path}: {message}"):
        read_checkpoint(path)
