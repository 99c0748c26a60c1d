"""Reading weight files of every known format without running anything that they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from segdet.checkpoint.torch_files import ZIP_START, is_legacy, read_legacy, read_zip
from segdet.checkpoint.unpickling import PLAIN, Refused, Unpickler
from segdet.errors import CheckpointError


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a weight file.

    `.safetensors` and `.npz` go by their suffix; files of torch and pickles of arrays by what they
    begin with.

    Returns:
        `model`: the tensors by name, on the CPU; `matching_heuristics`: whether the file asks for
        suffix matching; and what else the file holds (`iteration`, `trainer`, ...).

    Raises:
        CheckpointError: the file is damaged, of another kind, or refers to code.
    """
    try:
        content = _read(path)
    except Refused as error:
        raise CheckpointError(
            f"{path}: refers to the Python object {error}, which weights have no need of; the file "
            f"was not loaded. Save a plain dict of tensors with the program that it comes from"
        ) from None
    except Exception as error:  # a damaged file can fail in any way
        reason = (str(error).splitlines() or [""])[0]
        raise CheckpointError(
            f"{path}: cannot be read; it is cut short, damaged or no weight file "
            f"({type(error).__name__}: {reason})"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dict of weights")
    checkpoint = _unwrap(content)
    checkpoint["model"] = to_tensors(checkpoint["model"], path)
    checkpoint["matching_heuristics"] = checkpoint.get("matching_heuristics") is True
    return checkpoint


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    with path.open("rb") as file:
        if file.read(len(ZIP_START)) == ZIP_START:
            return read_zip(path)
        file.seek(0)
        first = Unpickler(file, PLAIN).load()
        return read_legacy(file) if is_legacy(first) else first


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safetensors.safe_open(path, "pt") as file:
        told = file.metadata() or {}
    content: dict[str, Any] = {"model": safetensors.torch.load_file(path)}
    content["matching_heuristics"] = told.get("matching_heuristics") == "True"
    if "__author__" in told:
        content["__author__"] = told["__author__"]
    return content


def _unwrap(content: dict[str, Any]) -> dict[str, Any]:
    """Bring the known layouts to one, with the weights under `model`."""
    if isinstance(content.get("model"), dict):  # segdet, detectron2, its zoo
        return dict(content)
    if isinstance(content.get("model_state"), dict):  # pycls
        return {"model": content["model_state"], "matching_heuristics": True}
    for wrapper in ("state_dict", "blobs"):  # many training scripts; Detectron
        if isinstance(content.get(wrapper), dict):
            return {"model": content[wrapper]}
    return {"model": content}


def to_tensors(weights: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The same dict (torch keeps module versions in an attribute of it), holding tensors.

    Raises:
        CheckpointError: it holds anything else.
    """
    for name, value in weights.items():
        if not isinstance(name, str):
            raise CheckpointError(
                f"{path}: has a tensor without a name; this is no file of weights"
            )
        if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc":
            native = np.asarray(value, value.dtype.newbyteorder("="))
            weights[name] = torch.from_numpy(native)
        elif not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: {name[:200]!r} is of type {type(value).__name__}, not a tensor; "
                f"this is no file of weights"
            )
    return weights
