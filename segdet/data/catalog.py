"""Data sets by name: `DatasetCatalog` loads them, `MetadataCatalog` knows facts about them.

The built-in names, and names made of paths such as `FILE.json:IMAGE_FOLDER`, need no registration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from segdet.data.builtin import BUILTIN, SAMPLES, BuiltinFiles, find_builtin
from segdet.errors import DataError, did_you_mean

Records = list[dict[str, Any]]


# Names that detectron2 gave up, and what they became.
_RENAMED = {
    "class_names": "thing_classes",
    "dataset_id_to_contiguous_id": "thing_dataset_id_to_contiguous_id",
    "stuff_class_names": "stuff_classes",
}


class Metadata:
    """Facts about a data set, as attributes that keep their first value.

    Attributes:
        name: the data set's name.
    """

    name: str = "N/A"

    def __getattr__(self, key: str) -> Any:
        if key in _RENAMED:
            return getattr(self, _RENAMED[key])
        known = ", ".join(sorted(vars(self)))
        raise AttributeError(f"metadata of data set {self.name!r} has no {key} (it has {known})")

    def __setattr__(self, key: str, value: Any) -> None:
        key = _RENAMED.get(key, key)
        if key in vars(self) and vars(self)[key] != value:
            raise DataError(
                f"metadata {key} of data set {self.name!r} is already {vars(self)[key]!r:.200}, "
                f"cannot become {value!r:.200}; give the new data another name"
            )
        super().__setattr__(key, value)

    def as_dict(self) -> dict[str, Any]:
        """All facts; changing the dict changes nothing here."""
        return dict(vars(self))

    def set(self, **kwargs: Any) -> Metadata:
        """Set several facts.

        Returns:
            Itself.

        Raises:
            DataError: one of them is set and has another value.
        """
        for key, value in kwargs.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """A fact, or `default` where it is not set."""
        return getattr(self, key, default)

    def __repr__(self) -> str:
        return f"Metadata({self.as_dict()})"


class _MetadataCatalog:
    """Metadata by data set name; `MetadataCatalog` is the one instance."""

    def __init__(self) -> None:
        self._metadata: dict[str, Metadata] = {}

    def get(self, name: str) -> Metadata:
        """The metadata of a name, made on first use.

        Args:
            name: any name; no data set needs to have it.
        """
        if not name:
            raise DataError("metadata needs the name of a data set, got an empty one")
        if name not in self._metadata:
            self._metadata[name] = Metadata().set(name=name)
            if (files := DatasetCatalog.files_of(name)) is not None:
                self._metadata[name].set(**files.metadata())
        return self._metadata[name]

    def list(self) -> list[str]:
        """The names that have metadata."""
        return list(self._metadata)

    def __contains__(self, name: str) -> bool:
        return name in self._metadata

    def remove(self, name: str) -> None:
        """Forget a name's metadata.

        Raises:
            DataError: it has none.
        """
        if name not in self._metadata:
            raise DataError(f"data set {name!r} has no metadata to remove")
        del self._metadata[name]

    pop = remove

    def forget_facts(self, name: str, keys: Iterable[str]) -> None:
        """Unset facts of a name, where they are set."""
        if name in self._metadata:
            for key in keys:
                vars(self._metadata[name]).pop(key, None)


class _DatasetCatalog:
    """Loading functions by data set name; `DatasetCatalog` is the one instance."""

    def __init__(self) -> None:
        self._loaders: dict[str, Callable[[], Records]] = {}

    def register(self, name: str, func: Callable[[], Records]) -> None:
        """Name a function that loads a data set.

        Args:
            name: not registered yet; the sample sets' names may be taken, official ones may not.
            func: takes nothing, returns the standard dicts, in the same order at every call.

        Raises:
            DataError: the name is in use.
        """
        if not callable(func):
            raise DataError(f"data set {name!r} needs a function that loads it, got {func!r}")
        if name in self._loaders or (name in BUILTIN and name not in SAMPLES):
            raise DataError(f"data set {name!r} is registered already; take another name")
        self._loaders[name] = func
        if name in SAMPLES:
            MetadataCatalog.forget_facts(name, SAMPLES[name].metadata())

    def get(self, name: str) -> Records:
        """Load a data set.

        Raises:
            DataError: no such name, or a file of it cannot be used.
        """
        if name in self._loaders:
            return self._loaders[name]()
        files = self.files_of(name)
        if files is None:
            raise DataError(_unknown(name, self.list()))
        data = files.read()
        MetadataCatalog.get(name).set(**data.metadata)
        return data.records

    def files_of(self, name: str) -> BuiltinFiles | None:
        """The files of a name that needs no registration; None for any other, registered or not."""
        return None if name in self._loaders else find_builtin(name)

    def list(self) -> list[str]:
        """All names, the built-in ones too."""
        return sorted({*self._loaders, *BUILTIN})

    def __contains__(self, name: str) -> bool:
        return name in self._loaders or name in BUILTIN

    def remove(self, name: str) -> None:
        """Forget a registered name; a sample set's name means the sample set again.

        Raises:
            DataError: it is not registered.
        """
        if name not in self._loaders:
            if name in BUILTIN:
                raise DataError(f"data set {name!r} is built in: it cannot be removed")
            raise DataError(_unknown(name, self.list()))
        del self._loaders[name]
        if name in BUILTIN and name in MetadataCatalog:
            MetadataCatalog.remove(name)

    pop = remove

    def clear(self) -> None:
        """Forget all registered names; the built-in ones stay."""
        for name in list(self._loaders):
            self.remove(name)


def _unknown(name: str, known: list[str]) -> str:
    hint = did_you_mean(name, known)
    paths = "FILE.json:IMAGE_FOLDER or LABEL_FOLDER:IMAGE_FOLDER"
    return f"no data set is named {name!r}{hint} (or give {paths})"


MetadataCatalog = _MetadataCatalog()
DatasetCatalog = _DatasetCatalog()
