"""Loads the compiled ops, and says once when slower code stands in for them."""

# pyright: reportUnknownMemberType=false
from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def load_libraries(folder: Path) -> tuple[frozenset[str], str]:
    """Load the compiled ops of a folder.

    Args:
        folder: where `setup.py` leaves the libraries.

    Returns:
        The device types that the ops now run on (empty: none could be loaded; "meta" stands for
        shape inference), and why the set is not larger.
    """
    devices: set[str] = set()
    parts = [("libsegdet_ops.so", {"cpu", "meta"})]
    if torch.version.cuda is not None:
        parts.append(("libsegdet_ops_cuda.so", {"cuda"}))
    for name, served in parts:
        if not (folder / name).is_file():
            return frozenset(
                devices
            ), f"{folder / name} does not exist; `pip install -e .` builds it"
        try:
            torch.ops.load_library(folder / name)
        except OSError as error:
            return frozenset(devices), f"{folder / name} does not load: {error}"
        devices |= served
    return frozenset(devices), ""


BINARY_DEVICES, _MISSING = load_libraries(Path(__file__).parent)


def has_binary(device: torch.device) -> bool:
    """Whether the compiled ops serve a device; says so, once per device type, where not."""
    if device.type in BINARY_DEVICES:
        return True
    _warn_of_fallback(device.type)
    return False


def has_op(name: str) -> bool:
    """Whether there is a compiled op for the CPU; says so, once, where a build is too old for it.

    Args:
        name: without `segdet::`.
    """
    if not has_binary(torch.device("cpu")):
        return False
    if not hasattr(torch.ops.segdet, name):
        _warn_of_old_build(name)
        return False
    return True


@functools.cache
def _warn_of_old_build(name: str) -> None:
    warnings.warn(
        f"segdet: the compiled ops are older than the package and lack {name}, slower code stands "
        "in; `pip install -e .` builds it",
        stacklevel=4,
    )


@functools.cache
def _warn_of_fallback(device_type: str) -> None:
    reason = _MISSING or "they are compiled for CPU and CUDA only"
    warnings.warn(
        f"segdet: no compiled ops for {device_type}, slower code stands in ({reason})", stacklevel=4
    )


def memory_format_of(map: torch.Tensor) -> torch.memory_format:
    """Channels-last where the channels of each cell of a (B, C, H, W) lie next to each other."""
    channels_last = map.shape[1] > 1 and map.stride(1) == 1 and not map.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


def register(
    name: str,
    fake: Callable[..., Any],
    *,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
    autocast: Callable[..., tuple[Any, ...]] | None = None,
) -> None:
    """Tell torch what it needs to trace and differentiate a compiled op.

    Does nothing where there is no binary, or an older one that lacks the op.

    Args:
        name: of the op, without `segdet::`.
        fake: what the op returns, in shape, type and memory format.
        backward: gradients of its inputs from those of its outputs.
        setup_context: what of the inputs `backward` needs.
        autocast: `(dtype, *inputs)` to the inputs that the op shall get under `torch.autocast` of
            that type. Without it autocast changes nothing.
    """
    if not BINARY_DEVICES or not hasattr(torch.ops.segdet, name):
        return
    torch.library.register_fake(f"segdet::{name}", fake)
    if backward is not None:
        torch.library.register_autograd(f"segdet::{name}", backward, setup_context=setup_context)
    if autocast is not None:
        for device_type in ("cpu", "cuda"):
            _register_autocast(name, autocast, device_type)


def register_last_gradient(name: str, fake: Callable[..., Any]) -> None:
    """`register` for a backward that has no gradient of its own: asking for it is an error."""

    def refuse(ctx: Any, *grads: Any) -> None:
        raise RuntimeError(f"segdet::{name} is not differentiable")

    register(name, fake, backward=refuse)


# A registration lasts as long as its library.
_AUTOCAST_RULES: list[torch.library.Library] = []


def _register_autocast(name: str, rule: Callable[..., tuple[Any, ...]], device_type: str) -> None:
    def cast_and_call(*inputs: Any) -> Any:
        dtype = torch.get_autocast_dtype(device_type)
        with torch.autocast(device_type, enabled=False):
            return getattr(torch.ops.segdet, name)(*rule(dtype, *inputs))

    rules = torch.library.Library("segdet", "FRAGMENT")
    rules.impl(name, cast_and_call, f"Autocast{device_type.upper()}")
    _AUTOCAST_RULES.append(rules)
