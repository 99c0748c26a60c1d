"""The config: detectron2's keys in a `CfgNode`, safe YAML, strict reading into sections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from segdet.config.configurable import configurable
from segdet.config.node import CfgNode

if TYPE_CHECKING:
    from segdet.config.defaults import get_cfg

__all__ = ["CfgNode", "configurable", "get_cfg"]


def __getattr__(name: str) -> Any:
    # The default tree is gathered from every part's section, and the parts' builders import the
    # reader from this package: it can only be imported when someone asks for it.
    if name == "get_cfg":
        from segdet.config.defaults import get_cfg

        return get_cfg
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
