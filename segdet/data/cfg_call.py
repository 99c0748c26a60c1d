"""Lets what takes keyword arguments also be called with a config, as detectron2's users do."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from segdet.config.node import CfgNode


def takes_cfg(from_config: Callable[..., dict[str, Any]] | None = None) -> Callable[..., Any]:
    """Decorate a function, or a class' `__init__`, to accept a config as its first argument.

    Called with a `CfgNode`, the arguments come from `from_config(cfg, ...)`, which gets what it
    names of the call's arguments; all others override its result. Called without, nothing changes.

    Args:
        from_config: config -> keyword arguments; None takes the class' own `from_config`.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            bound = args[:1] if from_config is None else ()  # self
            rest = args[len(bound) :]
            if isinstance(kwargs.get("cfg"), CfgNode):
                rest = (kwargs.pop("cfg"), *rest)
            if not rest or not isinstance(rest[0], CfgNode):
                return function(*args, **kwargs)
            read = from_config or args[0].from_config
            named = inspect.signature(read).parameters
            settings = read(*rest, **{k: v for k, v in kwargs.items() if k in named})
            return function(
                *bound, **settings | {k: v for k, v in kwargs.items() if k not in named}
            )

        return call

    return decorate
