"""Lets what takes keyword arguments also be called with a config, as detectron2's users do."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from segdet.config.node import CfgNode

Settings = dict[str, Any]


def configurable(
    function: Callable[..., Any] | None = None,
    *,
    from_config: Callable[..., Settings] | None = None,
) -> Callable[..., Any]:
    """Decorate a class' `__init__`, or a function, to accept a config as its first argument.

    Called with a `CfgNode`, the arguments come from `from_config(cfg, ...)`, which gets what it
    names of the call's arguments; all others override its result. Called without, nothing changes.

    Args:
        function: an `__init__`, whose class has a class method `from_config`.
        from_config: config -> keyword arguments, for any other function.

    Examples:
        >>> class Head:
        ...     @configurable
        ...     def __init__(self, channels): self.channels = channels
        ...     @classmethod
        ...     def from_config(cls, cfg): return {"channels": cfg.CHANNELS}
        >>> Head(CfgNode({"CHANNELS": 8})).channels
        8
        >>> @configurable(from_config=lambda cfg: {"size": cfg.SIZE})
        ... def square(size): return size**2
        >>> square(CfgNode({"SIZE": 3})), square(size=4)
        (9, 16)
    """
    if function is not None:
        return _accept_cfg(function, None)
    if from_config is None:
        raise TypeError("configurable needs the function to decorate, or from_config=...")
    return functools.partial(_accept_cfg, read=from_config)


def _accept_cfg(
    function: Callable[..., Any], read: Callable[..., Settings] | None
) -> Callable[..., Any]:
    if read is None and function.__name__ != "__init__":
        raise TypeError(
            f"{function.__qualname__} is no __init__: write @configurable(from_config=...)"
        )

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        bound = args[:1] if read is None else ()  # self
        rest = args[len(bound) :]
        if isinstance(kwargs.get("cfg"), CfgNode):
            rest = (kwargs.pop("cfg"), *rest)
        if not rest or not isinstance(rest[0], CfgNode):
            return function(*args, **kwargs)
        reader = read or args[0].from_config
        parameters = inspect.signature(reader).parameters
        takes_all = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
        told = {k: v for k, v in kwargs.items() if takes_all or k in parameters}
        override = {k: v for k, v in kwargs.items() if k not in told}
        return function(*bound, **reader(*rest, **told) | override)

    return call
