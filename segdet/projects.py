"""Plug-ins: a project is a Python package that hands in tables of its own (docs/add_a_system.md).

What it may hand in are attributes of the package: `SYSTEMS` and `OFFICIAL_NAMES`, tables of parts
(`BACKBONES`, `MASK_HEADS`, ...), `LR_SCHEDULES`, and `SECTIONS` for keys outside of MODEL.
Importing a project does nothing; the functions here add its tables to ours.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from segdet.config.defaults import PROJECT_SECTIONS, gather, get_cfg, trees_of
from segdet.errors import ConfigError
from segdet.modeling.anchors import ANCHOR_GENERATORS
from segdet.modeling.backbones import BACKBONES
from segdet.modeling.box_head import BOX_HEADS
from segdet.modeling.keypoint_head import KEYPOINT_HEADS
from segdet.modeling.mask_head import MASK_HEADS
from segdet.modeling.meta_arch import OFFICIAL_NAMES, SYSTEMS
from segdet.modeling.meta_arch.proposal_network import PROPOSAL_GENERATORS
from segdet.modeling.rpn import RPN_HEADS
from segdet.modeling.sem_seg_head import SEM_SEG_HEADS
from segdet.solver.build import LR_SCHEDULES

GROUP = "segdet.projects"  # entry points of installed projects: NAME = the package

# Attribute of a project -> our table, which gets its entries.
TABLES: dict[str, dict[str, Any]] = {
    "SYSTEMS": SYSTEMS,
    "BACKBONES": BACKBONES,
    "PROPOSAL_GENERATORS": PROPOSAL_GENERATORS,
    "ANCHOR_GENERATORS": ANCHOR_GENERATORS,
    "RPN_HEADS": RPN_HEADS,
    "BOX_HEADS": BOX_HEADS,
    "MASK_HEADS": MASK_HEADS,
    "KEYPOINT_HEADS": KEYPOINT_HEADS,
    "SEM_SEG_HEADS": SEM_SEG_HEADS,
    "LR_SCHEDULES": LR_SCHEDULES,
}
HANDED_IN = (*TABLES, "OFFICIAL_NAMES", "SECTIONS")

_ADDED: dict[Path, ModuleType] = {}  # by their __init__.py


def load_project(folder: str | os.PathLike[str]) -> ModuleType:
    """Import the package in a folder, under the folder's name, and add what it hands in.

    A project that is there already stays as it is. `get_cfg` knows its keys from now on.

    Args:
        folder: has an `__init__.py`.

    Returns:
        The package.

    Raises:
        ConfigError: no package there, or one that cannot be added; see `add_project`.
    """
    file = (Path(folder) / "__init__.py").resolve()
    if file in _ADDED:
        return _ADDED[file]
    if not file.is_file():
        raise ConfigError(f"project {folder}: must be the folder of a package, has no __init__.py")
    name = file.parent.name
    if name in sys.modules and _file_of(sys.modules[name]) != file:
        raise ConfigError(
            f"project {folder}: Python has a module {name} already; rename the folder"
        )
    try:
        project = sys.modules[name] if name in sys.modules else _import(name, file)
        add_project(project)
    except BaseException:
        _forget(name)
        raise
    return project


def unload_project(folder: str | os.PathLike[str]) -> None:
    """Take back what `load_project(folder)` added, for tests and notebooks; it can be loaded anew.

    Raises:
        ConfigError: it is not loaded.
    """
    file = (Path(folder) / "__init__.py").resolve()
    if file not in _ADDED:
        raise ConfigError(f"project {folder}: is not loaded")
    project = _ADDED.pop(file)
    for name, table in TABLES.items():
        for key in getattr(project, name, {}):
            del table[key]
    for row in getattr(project, "OFFICIAL_NAMES", []):
        OFFICIAL_NAMES.remove(row)
    for section in getattr(project, "SECTIONS", {}).items():
        PROJECT_SECTIONS.remove(section)
    _forget(project.__name__)


def load_installed_projects() -> None:
    """Add the projects of installed distributions, by their entry points in `segdet.projects`.

    Raises:
        ConfigError: one of them cannot be added; see `add_project`.
    """
    for entry in entry_points(group=GROUP):
        project = entry.load()
        if not isinstance(project, ModuleType):
            raise ConfigError(f"entry point {entry.name} of {GROUP} must name a package")
        add_project(project)


def add_project(project: ModuleType) -> None:
    """Add the tables of an imported package to ours: all of them, or none where one clashes.

    Raises:
        ConfigError: it hands in nothing, a name is taken, a row of OFFICIAL_NAMES leads nowhere,
            or a key of the config would have two defaults.
    """
    file = _file_of(project)
    if file in _ADDED:
        return
    handed_in = {name: getattr(project, name) for name in HANDED_IN if hasattr(project, name)}
    try:
        _check(handed_in)
    except ConfigError as error:
        raise ConfigError(f"project {file.parent}: {error}") from None
    for name, table in TABLES.items():
        table.update(handed_in.get(name, {}))
    OFFICIAL_NAMES.extend(handed_in.get("OFFICIAL_NAMES", []))
    PROJECT_SECTIONS.extend(handed_in.get("SECTIONS", {}).items())
    _ADDED[file] = project


def _import(name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None, "the file is Python and exists"
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _file_of(module: ModuleType) -> Path:
    return Path(str(getattr(module, "__file__", None))).resolve()


def _forget(package: str) -> None:
    for name in [one for one in sys.modules if f"{one}.".startswith(f"{package}.")]:
        del sys.modules[name]


def _check(handed_in: dict[str, Any]) -> None:
    if not handed_in:
        raise ConfigError(f"hands in nothing; it may have {', '.join(HANDED_IN)}")
    for name, table in TABLES.items():
        for key in handed_in.get(name, {}):
            if key in table:
                raise ConfigError(f"{name} has {key!r} already; give yours another name")
    systems = handed_in.get("SYSTEMS", {})
    for row, system in handed_in.get("OFFICIAL_NAMES", []):
        if any(row == taken for taken, _ in OFFICIAL_NAMES):
            raise ConfigError(f"OFFICIAL_NAMES has {row} already")
        if system not in {*SYSTEMS, *systems}:
            raise ConfigError(f"OFFICIAL_NAMES leads to {system!r}, which is not in SYSTEMS")
    gather([get_cfg(), *trees_of(systems.values(), handed_in.get("SECTIONS", {}).items())])
