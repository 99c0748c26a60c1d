"""CfgNode: the tree of settings under detectron2's keys, and where each value came from."""

from __future__ import annotations

import ast
import copy
import os
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, cast

import yaml

from segdet.config.compat import upgrade
from segdet.config.yaml_files import BASE_KEY, is_mapping, is_sequence, yaml_layers, yaml_text
from segdet.errors import ConfigError, did_you_mean

DEFAULT = "default"
CODE = "code"
COMMAND_LINE = "command line"

_LEAF_TYPES = (str, int, float, bool, type(None), list, tuple)


class CfgNode(dict[str, Any]):
    """A section of the config: `cfg.MODEL.MASK_ON` or `cfg["MODEL"]["MASK_ON"]`.

    The calls are detectron2's. Assigning by attribute may add keys (that is how a project declares
    its own); merging may not, unless a section is open to new keys. A frozen tree refuses writing
    with AttributeError.

    Args:
        init_dict: nested mappings become nodes; their values count as defaults.
        key_list: not used; detectron2's constructor has it.
        new_allowed: whether files and other trees may bring new keys into this section.
    """

    __slots__ = ("_frozen", "_new_allowed", "_sources")
    _frozen: bool
    _new_allowed: bool
    _sources: dict[str, str]  # of the values here that are no longer the default

    def __init__(
        self,
        init_dict: Mapping[str, Any] | None = None,
        key_list: list[str] | None = None,
        new_allowed: bool = False,
    ) -> None:
        super().__init__({key: _as_node(value) for key, value in (init_dict or {}).items()})
        object.__setattr__(self, "_frozen", False)
        object.__setattr__(self, "_new_allowed", new_allowed)
        object.__setattr__(self, "_sources", {})

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"the config has no {name} here{did_you_mean(name, list(self))}")

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        del self[name]

    def __setitem__(self, key: str, value: Any) -> None:
        self._put(key, _as_node(value), CODE)

    def __delitem__(self, key: str) -> None:
        self._refuse_if_frozen(key)
        super().__delitem__(key)
        self._sources.pop(key, None)

    # dict's own versions would not pass through the two methods above.
    update = MutableMapping[str, Any].update
    setdefault = MutableMapping[str, Any].setdefault
    pop: Any = MutableMapping[str, Any].pop
    popitem = MutableMapping[str, Any].popitem
    clear = MutableMapping[str, Any].clear

    def __reduce__(self) -> tuple[Any, ...]:
        state = dict(self), self._frozen, self._sources, self._new_allowed
        return type(self)._restore, state

    @classmethod
    def _restore(
        cls, values: dict[str, Any], frozen: bool, sources: dict[str, str], new_allowed: bool
    ) -> CfgNode:
        node = cls(values, new_allowed=new_allowed)
        node._sources.update(sources)
        object.__setattr__(node, "_frozen", frozen)
        return node

    def __str__(self) -> str:
        return self.dump()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({super().__repr__()})"

    def leaves(self, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
        """(key path, value, where it was set) of every value, in the tree's order."""
        for key, value in self.items():
            if isinstance(value, CfgNode):
                yield from value.leaves(f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value, self._sources.get(key, DEFAULT)

    def source_of(self, path: str) -> str:
        """What set a value last: a file's path, "command line", "code" or "default".

        Args:
            path: as "MODEL.ROI_HEADS.NUM_CLASSES".
        """
        node, key = self._find(path, source="source_of")
        if isinstance(node[key], CfgNode):
            raise ConfigError(f"{path} is a section; each of its keys has its own source")
        return node._sources.get(key, DEFAULT)

    @classmethod
    def load_yaml_with_base(
        cls, filename: str | os.PathLike[str], allow_unsafe: bool = False
    ) -> CfgNode:
        """A YAML file merged over the files its `_BASE_` names, before any defaults.

        Args:
            filename: a local path.
            allow_unsafe: must be False.
        """
        if allow_unsafe:
            raise ConfigError(
                f"{os.fspath(filename)}: allow_unsafe would run code from the file; leave it False"
            )
        tree = cls()
        for file, mapping in yaml_layers(os.fspath(filename)):
            tree._overlay(mapping, file, prefix="")
        return tree

    def merge_from_file(
        self, cfg_filename: str | os.PathLike[str], allow_unsafe: bool = False
    ) -> None:
        """Take over the values of a YAML file and its `_BASE_` files.

        Args:
            cfg_filename: a local path.
            allow_unsafe: must be False.

        Raises:
            ConfigError: a file that cannot be read, an unknown key, a value of a wrong type.
        """
        self._merge(self.load_yaml_with_base(cfg_filename, allow_unsafe), os.fspath(cfg_filename))

    def merge_from_text(self, text: str, name: str) -> None:
        """Take over the values of YAML that lies in another file, as a dump's config does.

        Args:
            text: as `dump` gives it.
            name: of that file, for messages and `source_of`.

        Raises:
            ConfigError: as of `merge_from_file`.
        """
        tree = CfgNode()
        tree._overlay(yaml_text(text, name), name, prefix="")
        self._merge(tree, name)

    def _merge(self, tree: CfgNode, file: str) -> None:
        leaves = list(tree.leaves())
        if "VERSION" in self:
            leaves = upgrade(leaves, file)
        for path, value, source in leaves:
            self._make_room(path, source)
            self._assign(path, value, source)

    def merge_from_other_cfg(self, cfg_other: CfgNode) -> None:
        """Take over the values of another tree, and what set them."""
        for path, value, source in cfg_other.leaves():
            origin = CODE if source == DEFAULT else source
            self._make_room(path, origin)
            node, key = self._find(path, origin)
            if source != DEFAULT or node[key] != value:
                self._assign(path, value, origin)

    def merge_from_list(self, cfg_list: list[Any]) -> None:
        """Take over [KEY, VALUE, KEY, VALUE, ...], as given behind a command.

        Values may be text of Python literals: "0.01", "(1, 2)", "True", "None".
        """
        if len(cfg_list) % 2:
            raise ConfigError(
                f"options are pairs of KEY VALUE; {cfg_list[-1]!r} stands alone in {cfg_list}"
            )
        for path, value in zip(cfg_list[::2], cfg_list[1::2], strict=True):
            if path.split(".")[-1] == BASE_KEY:
                raise ConfigError(f"{BASE_KEY} belongs into a config file, not on the command line")
            self._assign(path, value, COMMAND_LINE)

    def _overlay(self, mapping: Mapping[str, Any], file: str, prefix: str) -> None:
        """Merge one file of a `_BASE_` chain; new keys are welcome, changed shapes are not."""
        for key, value in mapping.items():
            present = self.get(key)
            if is_mapping(value):
                if key not in self:
                    present = CfgNode()
                    self._put(key, present, file)
                if not isinstance(present, CfgNode):
                    raise _not_a_section(f"{prefix}{key}", present, file)
                present._overlay(value, file, f"{prefix}{key}.")
            elif isinstance(present, CfgNode):
                raise _is_a_section(f"{prefix}{key}", value, file)
            else:
                self._put(key, value, file)

    def _assign(self, path: str, value: Any, source: str) -> None:
        node, key = self._find(path, source)
        present = node[key]
        value = _decode(value, present)
        if is_mapping(value) and isinstance(present, CfgNode):
            for name, part in value.items():
                self._assign(f"{path}.{name}", part, source)
        elif isinstance(present, CfgNode):
            raise _is_a_section(path, value, source)
        else:
            node._put(key, copy.deepcopy(_fit(value, present, path, source)), source)

    def _find(self, path: str, source: str) -> tuple[CfgNode, str]:
        """The node that holds the last key of `path`, and that key."""
        node = self
        *sections, last = path.split(".")
        for depth, name in enumerate(sections):
            child = node.get(name, CfgNode())
            if not isinstance(child, CfgNode):
                raise _not_a_section(".".join(sections[: depth + 1]), child, source)
            node = child
        if last not in node:
            known = [leaf for leaf, _, _ in self.leaves()]
            raise ConfigError(
                f"{source}: unknown key {path}{did_you_mean(path, known)} "
                "(keys of a plug-in need --project, or load_project)"
            )
        return node, last

    def _make_room(self, path: str, source: str) -> None:
        """Add the key where it is absent from a section open to new ones."""
        node = self
        *sections, last = path.split(".")
        for name in sections:
            if name not in node and node._new_allowed:
                node._put(name, CfgNode(new_allowed=True), source)
            child = node.get(name)
            if not isinstance(child, CfgNode):
                return  # unknown, or a value: `_find` tells
            node = child
        if last not in node and node._new_allowed:
            node._put(last, None, source)

    def _put(self, key: str, value: Any, source: str) -> None:
        self._refuse_if_frozen(key)
        super().__setitem__(key, value)
        if isinstance(value, CfgNode):
            self._sources.pop(key, None)
        else:
            self._sources[key] = source

    def freeze(self) -> None:
        """Refuse writing from now on, here and below."""
        self._set_frozen(True)

    def defrost(self) -> None:
        """Allow writing again."""
        self._set_frozen(False)

    def is_frozen(self) -> bool:
        """Whether writing is refused."""
        return self._frozen

    def _set_frozen(self, frozen: bool) -> None:
        object.__setattr__(self, "_frozen", frozen)
        for value in self.values():
            if isinstance(value, CfgNode):
                value._set_frozen(frozen)

    def set_new_allowed(self, is_new_allowed: bool) -> None:
        """Whether merging may bring new keys, here and below."""
        object.__setattr__(self, "_new_allowed", is_new_allowed)
        for value in self.values():
            if isinstance(value, CfgNode):
                value.set_new_allowed(is_new_allowed)

    def is_new_allowed(self) -> bool:
        """Whether merging may bring new keys into this section."""
        return self._new_allowed

    def _refuse_if_frozen(self, key: str) -> None:
        if self._frozen:
            raise AttributeError(f"the config is frozen: {key} cannot be set; defrost() it first")

    def clone(self) -> CfgNode:
        """An independent copy."""
        return copy.deepcopy(self)

    def dump(self, **kwargs: Any) -> str:
        """The tree as YAML, which `merge_from_file` reads back.

        Args:
            kwargs: of `yaml.safe_dump`.
        """
        for path, value, _ in self.leaves():
            if not isinstance(value, _LEAF_TYPES):
                raise ConfigError(f"{path} holds a {type(value).__name__}, which YAML cannot write")
        return cast(str, yaml.safe_dump(_plain(self), **kwargs))

    def dump_with_sources(self, indent: str = "") -> str:
        """The tree as YAML, one line for each key; a comment says what set it, if anything did.

        Args:
            indent: before each line.
        """
        lines: list[str] = []
        for key, value in self.items():
            if isinstance(value, CfgNode):
                lines.append(f"{indent}{key}:\n{value.dump_with_sources(indent + '  ')}")
            else:
                text = yaml.safe_dump({key: value}, default_flow_style=True, width=sys.maxsize)
                source = self._sources.get(key, DEFAULT)
                comment = "" if source == DEFAULT else f"  # {source}"
                lines.append(f"{indent}{text.strip()[1:-1]}{comment}\n")
        return "".join(lines)


def _as_node(value: Any) -> Any:
    return CfgNode(value) if is_mapping(value) and not isinstance(value, CfgNode) else value


def _plain(value: Any) -> Any:
    """The same value with dicts for sections."""
    if is_mapping(value):
        return {key: _plain(one) for key, one in value.items()}
    return value


def _decode(value: Any, present: Any) -> Any:
    """Text of a Python literal becomes its value; text for a text key stays as it is."""
    if not isinstance(value, str):
        return value
    try:
        decoded = ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError):
        return value
    keeps_text = isinstance(present, str) and not isinstance(decoded, (str, type(None)))
    return value if keeps_text else decoded


def _fit(value: Any, present: Any, path: str, source: str) -> Any:
    """`value` as the type of the value that it replaces, by detectron2's rules.

    Lists and tuples stand for each other, None for anything, and (looser than the original) an
    int for a float.
    """
    if value is None or present is None or type(value) is type(present):
        return value
    if is_sequence(present) and is_sequence(value):
        return tuple(value) if isinstance(present, tuple) else list(value)
    if type(present) is float and type(value) is int:
        return float(value)
    raise ConfigError(
        f"{source}: {path} must be {_type_name(present)} (as {present!r}),"
        f" is {_type_name(value)} {value!r}"
    )


def _type_name(value: Any) -> str:
    return type(value).__name__


def _not_a_section(path: str, present: Any, source: str) -> ConfigError:
    return ConfigError(
        f"{source}: {path} is a value ({present!r}), not a section: no keys can stand below it"
    )


def _is_a_section(path: str, value: Any, source: str) -> ConfigError:
    return ConfigError(
        f"{source}: {path} is a section of keys and cannot become {value!r}; set keys below it"
    )
