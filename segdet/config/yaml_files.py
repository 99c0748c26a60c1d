"""Reading config files: plain YAML, and the chain of files that `_BASE_` names."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import IO, Any, TypeGuard, cast

import yaml

from segdet.config.arithmetic import evaluate
from segdet.errors import ConfigError

BASE_KEY = "_BASE_"
MOST_LAYERS = 100  # files that one config is made of
MOST_VALUES = 100_000  # of one file


class _Loader(yaml.SafeLoader):
    """Plain YAML, and `!!python/object/apply:eval ["..."]` where the text is arithmetic."""

    def arithmetic(self, node: yaml.Node) -> Any:
        """The value of a node with that tag; nothing in it is executed."""
        match node:
            case yaml.SequenceNode(value=[yaml.ScalarNode(value=str() as text)]):
                pass
            case _:
                raise self._refusal("takes one text of arithmetic in brackets", node)
        try:
            return evaluate(text)
        except ConfigError as error:
            raise self._refusal(f"of {text[:80]!r} {error}", node) from None

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node; PyYAML meets `!!bool maybe` and its like with bare exceptions."""
        try:
            return super().construct_object(node, deep)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            tag, value = node.tag.rpartition(":")[2], str(node.value)[:80]
            where = f"{node.start_mark.name}, line {node.start_mark.line + 1}"
            raise ConfigError(f"{where}: {value!r} is no {tag} ({error!r})") from None

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Write out what `<<` names; a few lines that name each other twice mean any number."""
        super().flatten_mapping(node)
        if len(node.value) > MOST_VALUES:
            where = f"{node.start_mark.name}, line {node.start_mark.line + 1}"
            raise ConfigError(f"{where}: << merges more than {MOST_VALUES} values")

    @staticmethod
    def _refusal(reason: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
        problem = f"the tag python/object/apply:eval {reason}"
        return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


_Loader.add_constructor("tag:yaml.org,2002:python/object/apply:eval", _Loader.arithmetic)


def is_mapping(value: Any) -> TypeGuard[Mapping[str, Any]]:
    """Whether `value` is a mapping, a section among them."""
    return isinstance(value, Mapping)


def is_sequence(value: Any) -> TypeGuard[list[Any] | tuple[Any, ...]]:
    """Whether `value` is a list or a tuple."""
    return isinstance(value, (list, tuple))


def yaml_layers(file: str, chain: tuple[str, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    """A config file behind everything its `_BASE_` names, in merging order (later overrides).

    Args:
        file: a local path; `~` is the home folder.
        chain: the files that led here, outermost first.

    Returns:
        Pairs of file and its mapping without `_BASE_`. A base is looked for beside the file that
        names it.

    Raises:
        ConfigError: a file that is missing, no local path, no plain YAML or no mapping, a cycle; a
            base that is no regular file (a device has no end); more files or values than a config
            can mean.
    """
    named_by = f" (named by {BASE_KEY} in {chain[-1]})" if chain else ""
    if "://" in file:
        raise ConfigError(
            f"{file}: configs are read from local files only; download it first{named_by}"
        )
    file = os.path.normpath(os.path.expanduser(file))
    if file in chain:
        raise ConfigError(f"{BASE_KEY} runs in a circle: {' -> '.join((*chain, file))}")
    mapping = _read_mapping(file, named_by)
    bases = mapping.pop(BASE_KEY, [])
    layers: list[tuple[str, dict[str, Any]]] = []
    for base in bases if is_sequence(bases) else [bases]:
        if not isinstance(base, str):
            raise ConfigError(f"{file}: {BASE_KEY} must be a path or a list of paths, is {bases!r}")
        beside = base if "://" in base else _beside(file, base)
        layers += yaml_layers(beside, (*chain, file))
        if len(layers) > MOST_LAYERS:
            raise ConfigError(f"{file}: {BASE_KEY} leads to more than {MOST_LAYERS} files")
    return [*layers, (file, mapping)]


def _beside(file: str, base: str) -> str:
    return os.path.join(os.path.dirname(file), os.path.expanduser(base))


def _read_mapping(file: str, named_by: str) -> dict[str, Any]:
    if named_by and os.path.exists(file) and not os.path.isfile(file):
        raise ConfigError(f"{file}: cannot be read{named_by}: it is no regular file")
    return _mapping_in(partial(open, file, encoding="utf-8"), file, named_by)


def yaml_text(text: str, name: str) -> dict[str, Any]:
    """The mapping of a config that lies in another file.

    Args:
        text: YAML, without `_BASE_`.
        name: of that file, for messages.

    Raises:
        ConfigError: as of `yaml_layers`.
    """
    stream = io.StringIO(text)
    stream.name = name  # which errors of YAML quote
    return _mapping_in(lambda: stream, name)


def _mapping_in(
    open_stream: Callable[[], IO[str]], file: str, named_by: str = ""
) -> dict[str, Any]:
    try:
        with open_stream() as stream:
            content = yaml.load(stream, _Loader)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: cannot be read{named_by}: {error}") from None
    except yaml.constructor.ConstructorError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ConfigError(
            f"{file}, line {line}: {error.problem}; configs are plain YAML and never build"
            " Python objects: write numbers, strings and lists"
        ) from None
    except yaml.YAMLError as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = error.problem if isinstance(error, yaml.MarkedYAMLError) else error
        raise ConfigError(f"{file}{where}: not YAML: {what}") from None
    if not is_mapping(content):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise ConfigError(f"{file}: a config is a mapping of keys to values; found {found}")
    _check_keys(content, file)
    return dict(content)


def _check_keys(mapping: Mapping[Any, Any], file: str) -> None:
    waiting: list[Any] = [mapping]
    seen = 0
    while waiting:
        value = waiting.pop()
        seen += 1
        if seen > MOST_VALUES:  # a few lines of YAML anchors can mean any number of values
            raise ConfigError(f"{file}: holds more than {MOST_VALUES} values, aliases written out")
        if is_sequence(value):
            waiting += value
        if not isinstance(value, Mapping):
            continue
        for key in cast("Mapping[Any, Any]", value):
            if not isinstance(key, str):
                raise ConfigError(f"{file}: keys are words, found {key!r}")
            if "." in key:
                raise ConfigError(f"{file}: {key} must be nested, one mapping per dot")
        waiting += value.values()
