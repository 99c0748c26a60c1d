"""From the names of foreign weight files to official parameter names."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from segdet.checkpoint.families import FAMILIES, Family
from segdet.errors import CheckpointError


def find_family(file_names: Collection[str], model_names: Collection[str]) -> Family | None:
    """The family of a file, None when it has official names (or unknown ones)."""
    foreign = set(file_names) - set(model_names)
    return next((family for family in FAMILIES if family.recognises(foreign)), None)


def to_official(
    family: Family, weights: Mapping[str, Tensor], file: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights under official names, without what is no parameter.

    Returns:
        The weights, and for each official name the file's.

    Raises:
        CheckpointError: two names of the file mean the same parameter.
    """
    official: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    for old, value in weights.items():
        new = family.official_name(old)
        if new is None:
            continue
        if new in official:
            raise CheckpointError(
                f"{file}: {origins[new]} and {old} both mean {new}, read as {family.title} names"
            )
        official[new] = family.official_value(new, value)
        origins[new] = old
    return official, origins


def match_suffixes(model_names: Collection[str], file_names: Collection[str]) -> dict[str, str]:
    """Match a model's names to a file's names that leave out leading parts.

    `backbone.bottom_up.res2.0.conv1.weight` matches `res2.0.conv1.weight`; `a.xb.c` does not match
    `b.c`. The longest match counts.

    Returns:
        The file's name for each name of the model that has one.
    """
    known = set(file_names)
    matches = {}
    for name in model_names:
        parts = name.split(".")
        suffixes = (".".join(parts[start:]) for start in range(len(parts)))
        found = next((suffix for suffix in suffixes if suffix in known), None)
        if found is not None:
            matches[name] = found
    return matches


def strip_data_parallel(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the `module.` that DataParallel puts before every name."""
    if weights and all(name.startswith("module.") for name in weights):
        return {name.removeprefix("module."): value for name, value in weights.items()}
    return weights
