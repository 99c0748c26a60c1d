"""A table of objects by name that a decorator fills, as detectron2's users write their plug-ins."""

from __future__ import annotations

import pydoc
from collections.abc import Callable, Iterator
from typing import Any

from segdet.errors import ConfigError, did_you_mean


def locate(name: str) -> Any:
    """The object of a dotted name, such as "torch.nn.Linear"; imports what stands before it.

    Raises:
        ConfigError: there is none.
    """
    found = pydoc.locate(name)
    if found is None:
        raise ConfigError(f"there is no {name!r} to import")
    return found


class Registry:
    """Objects by name.

    Args:
        name: what messages call it.

    Examples:
        >>> HEADS = Registry("HEADS")
        >>> @HEADS.register()
        ... class MyHead: ...
        >>> HEADS.get("MyHead")
        <class 'segdet.utils.registry.MyHead'>
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._objects: dict[str, Any] = {}

    def register(self, obj: Any = None) -> Any:
        """Add a function or class under its own name: a call, or `@REGISTRY.register()`.

        Raises:
            ConfigError: the name is taken.
        """
        if obj is not None:
            self._add(obj.__name__, obj)
            return obj

        def decorate(decorated: Any) -> Any:
            self._add(decorated.__name__, decorated)
            return decorated

        return decorate

    def get(self, name: str) -> Any:
        """The object of a name.

        Raises:
            ConfigError: there is none.
        """
        if name not in self._objects:
            raise ConfigError(
                f"{self._name} has no {name!r}{did_you_mean(name, list(self._objects))}"
            )
        return self._objects[name]

    def _add(self, name: str, obj: Any) -> None:
        if name in self._objects:
            raise ConfigError(f"{self._name} has {name!r} already; give yours another name")
        self._objects[name] = obj

    def __contains__(self, name: str) -> bool:
        return name in self._objects

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(self._objects.items())

    def __repr__(self) -> str:
        return f"Registry {self._name}: {', '.join(self._objects) or 'empty'}"


class TableRegistry(Registry):
    """A registry whose objects also go into one of our own tables of names.

    Args:
        name: what messages call it.
        table: name -> what stands for an object there; a name in it is taken.
        entry: name and object -> what to put into the table.
    """

    def __init__(self, name: str, table: dict[str, Any], entry: Callable[[str, Any], Any]) -> None:
        super().__init__(name)
        self._table = table
        self._entry = entry

    def _add(self, name: str, obj: Any) -> None:
        if name in self._table:
            raise ConfigError(f"{self._name} has {name!r} already; give yours another name")
        super()._add(name, obj)
        self._table[name] = self._entry(name, obj)
