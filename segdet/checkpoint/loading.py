"""From tensors by name into a model, with a report of what went where."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Size, Tensor, nn

from segdet.checkpoint.names import (
    find_family,
    match_suffixes,
    strip_data_parallel,
    to_official,
)
from segdet.errors import CheckpointError

_log = logging.getLogger("segdet.checkpoint")

# Derived from the config, or counters that nothing reads: in some files, in others not.
UNREPORTED = ("pixel_mean", "pixel_std", "num_batches_tracked")
# Likewise; and what BlendMask only trains with, which releases for inference leave out.
UNREPORTED_PARTS = ("anchor_generator.cell_anchors", "basis_module.seg_head.")


@dataclass(frozen=True)
class LoadReport:
    """What became of every name of the model and of the file.

    Attributes:
        file: where the weights came from.
        loaded: names of the model that got a value.
        renamed: those whose name in the file differs: model's name -> file's.
        missing: names of the model that got none.
        unexpected: names of the file that went nowhere.
        wrong_shape: model's name -> shapes in the file and in the model; left as initialised.
        trained_with: config key -> the value that the weights need, as far as the file tells.
    """

    file: str
    loaded: list[str]
    renamed: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    wrong_shape: dict[str, tuple[Size, Size]] = field(default_factory=dict)
    trained_with: dict[str, Any] = field(default_factory=dict)

    def problems(self) -> str:
        """The names that do not fit, grouped by module; "" when all do."""
        lines = [
            f"wrong shape: {name} is {tuple(theirs)} in the file, {tuple(ours)} in the model"
            for name, (theirs, ours) in self.wrong_shape.items()
        ]
        lines += [f"not in the file: {group}" for group in group_names(self.missing)]
        lines += [f"not in the model: {group}" for group in group_names(self.unexpected)]
        return "\n".join(lines)

    def log(self) -> None:
        """Log counts as info, problems as a warning, and every other name as debug."""
        total = len(self.loaded) + len(self.missing) + len(self.wrong_shape)
        _log.info("%s: loaded %d of the model's %d tensors", self.file, len(self.loaded), total)
        if self.renamed:
            lines = group_renamed(self.renamed)
            _log.info(
                "%d of them have other names in the file: %s ...", len(self.renamed), lines[0]
            )
            _log.debug("all of the other names:\n%s", "\n".join(lines))
        if problems := self.problems():
            _log.warning("%s does not fit the model everywhere:\n%s", self.file, problems)


def load_weights(
    model: nn.Module,
    weights: dict[str, Tensor],
    *,
    file: str,
    by_suffix: bool = False,
    strict: bool = False,
) -> LoadReport:
    """Copy weights into a model.

    The names of other programs (`segdet.checkpoint.families`) are recognised and translated.

    Args:
        model: its state dict's names are the official ones.
        weights: tensors by name.
        file: for messages.
        by_suffix: a name of the file may leave out leading parts of the model's name.
        strict: every name and shape must fit.

    Raises:
        CheckpointError: nothing fits; a tensor fits two parameters; or, when strict, a name or
            shape does not fit.
    """
    ours = model.state_dict(keep_vars=True)
    given = strip_data_parallel(weights)
    origins = {name: name for name in given}
    family = find_family(given, ours)
    if family is not None:
        _log.info("%s has %s names", file, family.title)
        given, origins = to_official(family, given, file)
    sources = {name: name for name in given}  # name to load under -> name in `given`
    if by_suffix or family is not None:
        sources = _match(ours, given, file)
    wrong_shape = {
        name: (given[source].shape, ours[name].shape)
        for name, source in sources.items()
        if name in ours and given[source].shape != ours[name].shape
    }
    if strict and wrong_shape:
        _refuse(LoadReport(file, [], wrong_shape=wrong_shape))
    loaded = [name for name in ours if name in sources and name not in wrong_shape]
    if ours and not loaded:
        raise CheckpointError(_nothing_fits(file, weights, ours, wrong_shape, by_suffix))
    state = OrderedDict((n, given[s]) for n, s in sources.items() if n not in wrong_shape)
    versions = getattr(weights, "_metadata", {})  # of modules, whose load hooks ask for them
    state._metadata = versions  # pyright: ignore[reportAttributeAccessIssue]
    left_over = model.load_state_dict(state, strict=False)
    origins = {name: origins[source] for name, source in sources.items()}
    report = LoadReport(
        file,
        loaded,
        renamed={name: origins[name] for name in loaded if origins[name] != name},
        missing=_missing(left_over.missing_keys, ours, {*loaded, *wrong_shape}),
        unexpected=[str(origins.get(n, n)) for n in left_over.unexpected_keys if _is_reported(n)],
        wrong_shape=wrong_shape,
        trained_with=family.settings(strip_data_parallel(weights)) if family is not None else {},
    )
    if strict and report.problems():
        _refuse(report)
    return report


def _match(ours: Mapping[str, Tensor], given: Mapping[str, Tensor], file: str) -> dict[str, str]:
    """The model's names that match a given one -> that one; and given ones that match none."""
    matches = match_suffixes(ours, given)
    users: dict[str, str] = {}
    for name, source in matches.items():
        if given[source].shape == ours[name].shape:
            if source in users:
                raise CheckpointError(
                    f"{file}: {source} fits two of the model's parameters, {users[source]} and "
                    f"{name}; save it under the full name"
                )
            users[source] = name
    matched = {name: source for name, source in matches.items() if users.get(source, name) == name}
    unmatched = set(given) - set(matches.values())
    return matched | {source: source for source in given if source in unmatched}


def _missing(names: Iterable[str], ours: Mapping[str, Tensor], known: set[str]) -> list[str]:
    """Of `names`, those without a value: not told otherwise, not shared with one that has it."""
    present = {id(ours[name]) for name in known}
    return [n for n in names if n not in known and _is_reported(n) and id(ours[n]) not in present]


def _is_reported(name: str) -> bool:
    return not (name.endswith(UNREPORTED) or any(part in name for part in UNREPORTED_PARTS))


def _nothing_fits(
    file: str,
    weights: Mapping[str, Tensor],
    ours: Mapping[str, Tensor],
    wrong_shape: Mapping[str, object],
    by_suffix: bool,
) -> str:
    message = f"{file}: none of its {len(weights)} tensors fits the model"
    if wrong_shape:
        return f"{message}: the shapes differ, as of {next(iter(wrong_shape))}"
    message += f"; its names are like {_first(weights)}, the model's like {_first(ours)}"
    if by_suffix:
        return message
    return f"{message}. If only leading parts differ, add ?matching_heuristics=True to the path"


def _first(names: Iterable[str]) -> str:
    return next(iter(names), "(none)")


def _refuse(report: LoadReport) -> None:
    raise CheckpointError(
        f"{report.file}: does not fit the model in every name and shape, as strict loading "
        f"asks for\n{report.problems()}"
    )


def group_names(names: Iterable[str]) -> list[str]:
    """`a.b.weight`, `a.b.bias` and `c` are ["a.b.{weight, bias}", "c"]."""
    groups: dict[str, list[str]] = {}
    for name in names:
        module, _, last = name.rpartition(".")
        groups.setdefault(module, []).append(last)
    return [_group(module, tensors) for module, tensors in groups.items()]


def group_renamed(renamed: Mapping[str, str]) -> list[str]:
    """One line a module: its tensors and their names in the file."""
    groups: dict[str, list[str]] = {}
    for name in renamed:
        groups.setdefault(name.rpartition(".")[0], []).append(name)
    return [
        f"{_group(module, [n.rpartition('.')[2] for n in names])} <- "
        f"{', '.join(group_names(renamed[n] for n in names))}"
        for module, names in groups.items()
    ]


def _group(module: str, tensors: list[str]) -> str:
    dotted = f"{module}." if module else ""
    return dotted + (tensors[0] if len(tensors) == 1 else f"{{{', '.join(tensors)}}}")
