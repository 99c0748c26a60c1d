"""The settings of runs beside the defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from segdet.config import get_cfg
from segdet.config.yaml_files import is_sequence
from segdet.report.run import Run

_ABSENT = object()


def settings_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each key: the value in each run, the default, and what differs.

    Texts are as YAML has them, None where a run lacks the key or there is no default. A run that
    lacks a key, which may be younger than it, counts as one with the default.
    """
    defaults = {path: value for path, value, _ in get_cfg().leaves()}
    keys = sorted({key for run in runs for key in run.config})
    return [_row(key, [run.config.get(key, _ABSENT) for run in runs], defaults) for key in keys]


def _row(key: str, values: Sequence[Any], defaults: dict[str, Any]) -> dict[str, Any]:
    texts = [None if value is _ABSENT else _text(value) for value in values]
    default = _text(defaults[key]) if key in defaults else None
    meant = {default if text is None else text for text in texts}
    return {
        "key": key,
        "values": texts,
        "default": default,
        "changed": any(text is not None and text != default for text in texts),
        "differs": len(meant) > 1,
    }


def _text(value: Any) -> str:
    """A value as a line of YAML would show it; lists and tuples are the same."""
    if is_sequence(value):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int | float):
        return f"{value:g}" if abs(value) < 1e6 else repr(value)
    return str(value) or '""'
