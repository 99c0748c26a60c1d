"""Between the config tree and sections: frozen dataclasses that hold a part's settings.

A field `num_conv` is the key NUM_CONV; a field whose type is a section is a section below. A field
with `metadata={"key": "TEST.DETECTIONS_PER_IMAGE"}` reads a key that another section owns. A
field's type says what the key may hold (`segdet.config.ranges`).
"""

from __future__ import annotations

import dataclasses
import logging
import re
import types
import typing
from collections.abc import Iterable
from typing import Annotated, Any, TypeVar

from segdet.config.node import DEFAULT, CfgNode
from segdet.errors import ConfigError

_log = logging.getLogger(__name__)

Section = TypeVar("Section")

_TREE = "_tree"  # attribute of a section that was read


def defaults_of(section: Any) -> CfgNode:
    """The keys that a section owns.

    Args:
        section: a section class, for its defaults; or an instance, for its values.
    """
    instance = section() if isinstance(section, type) else section
    keys: dict[str, Any] = {}
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if "key" not in field.metadata:
            is_section = dataclasses.is_dataclass(value)
            keys[field.name.upper()] = defaults_of(value) if is_section else value
    return CfgNode(keys)


def read_section(section: type[Section], cfg: CfgNode, at: str = "") -> Section:
    """Fill a section from the config.

    Args:
        section: the dataclass.
        cfg: the whole tree.
        at: where the section's keys stand in it, as "MODEL.RPN"; "" is the top.

    Raises:
        ConfigError: a value of a wrong type or out of its range, or one that the section itself
            refuses; the message names the key, the value and what set it.
    """
    hints = typing.get_type_hints(section, include_extras=True)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(typing.cast(Any, section)):
        path = field.metadata.get("key") or (f"{at}." if at else "") + field.name.upper()
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            values[field.name] = read_section(typing.cast(type[Any], hint), cfg, path)
        else:
            values[field.name] = value = _read_value(cfg, path, hint)
            why = field.metadata.get("no_effect")
            if why and value != field.default:
                source = cfg.source_of(path)
                _log.warning("%s %r has no effect: %s (set by %s)", path, value, why, source)
    try:
        made = section(**values)
    except ConfigError as error:
        where = f"{at}: " if at else ""
        raise ConfigError(f"{where}{error}{_set_by(cfg, at, str(error))}") from None
    object.__setattr__(made, _TREE, cfg)
    return made


def tree_of(section: Any) -> CfgNode:
    """The tree that a section was read from, for plug-ins whose constructors take a config.

    Raises:
        ConfigError: the section was made by hand.
    """
    if not hasattr(section, _TREE):
        raise ConfigError(
            f"{type(section).__name__} was not read from a config, which a plug-in needs that is "
            "registered by name; use build_model(cfg)"
        )
    return getattr(section, _TREE)


def read_as(kind: type[Section], section: Any, at: str) -> Section:
    """A section with the further keys of a plug-in, whatever system it stands in.

    Args:
        kind: the plug-in's subclass of the section's class.
        section: is returned if it is of this kind; otherwise its keys are read again.
        at: where they stand in the tree, as "MODEL.RESNETS".

    Raises:
        ConfigError: a value that `kind` refuses, or a section made by hand.
    """
    return section if isinstance(section, kind) else read_section(kind, tree_of(section), at)


def _read_value(cfg: CfgNode, path: str, hint: Any) -> Any:
    value: Any = cfg
    for name in path.split("."):
        value = value[name]
    try:
        return _as_type(value, hint)
    except _Misfit:
        raise ConfigError(
            f"{path} must be {_describe(hint)}, is {value!r} (set by {cfg.source_of(path)})"
        ) from None


class _Misfit(Exception):
    """A value that is not of the type asked for."""


def _as_type(value: Any, hint: Any) -> Any:
    """`value` as a field's type: an int stands for a float, a list for a tuple; nothing else."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        made, allowed = _as_type(value, args[0]), args[1]
        if made in allowed:
            return made
    elif origin in (types.UnionType, typing.Union):
        return _as_first_that_fits(value, args)
    elif origin is tuple and isinstance(value, (list, tuple)):
        items: list[Any] = list(typing.cast("list[Any]", value))
        item_types = (args[0],) * len(items) if args[-1] is Ellipsis else args
        if len(item_types) == len(items):
            return tuple(_as_type(one, kind) for one, kind in zip(items, item_types, strict=True))
    elif hint is float and type(value) is int:
        return float(value)
    elif origin is None and type(value) is (type(None) if hint is None else hint):
        return value
    raise _Misfit


def _as_first_that_fits(value: Any, hints: tuple[Any, ...]) -> Any:
    for hint in hints:
        try:
            return _as_type(value, hint)
        except _Misfit:
            continue
    raise _Misfit


def _describe(hint: Any) -> str:
    """As `int`, `float in [0, 1]`, `tuple[int >= 1, ...]`, `one of sum, avg`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return (
            f"{args[0].__name__} {args[1]}" if args[0] is not str else f"one of {_named(args[1])}"
        )
    if origin in (types.UnionType, typing.Union):
        return " | ".join(map(_describe, args))
    if origin is tuple:
        return f"tuple[{', '.join('...' if one is Ellipsis else _describe(one) for one in args)}]"
    return "None" if hint is type(None) else str(hint.__name__)


def _named(names: Iterable[str]) -> str:
    return ", ".join(name or "''" for name in names)


def _set_by(cfg: CfgNode, at: str, message: str) -> str:
    """What set the keys of the section at `at` that `message` names."""
    node = cfg
    for name in at.split(".") if at else ():
        node = node[name]
    told = [
        f"{key} set by {source}"
        for key, _, source in node.leaves()
        if source != DEFAULT and re.search(rf"\b{re.escape(key)}\b", message)
    ]
    return f" ({', '.join(told)})" if told else ""
