"""Where detectron2's modules and names are in this package."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from types import ModuleType
from typing import Any

import segdet

THEIRS, OURS = "detectron2", "segdet"

# Modules of other names here.
MOVED = {
    "detectron2.modeling.backbone": "segdet.modeling.backbones",
    "detectron2.modeling.poolers": "segdet.modeling.roi_pooler",
    "detectron2.modeling.anchor_generator": "segdet.modeling.anchors",
    "detectron2.modeling.box_regression": "segdet.modeling.box_coder",
    "detectron2.modeling.matcher": "segdet.modeling.matching",
    "detectron2.modeling.proposal_generator": "segdet.modeling.rpn",
    "detectron2.projects.point_rend.point_features": "segdet.modeling.point_features",
    "detectron2.data.dataset_mapper": "segdet.data.mapper",
    "detectron2.data.datasets.register_coco": "segdet.data.datasets",
    "detectron2.config.config": "segdet.config",
    "detectron2.checkpoint.detection_checkpoint": "segdet.checkpoint",
    "detectron2.evaluation.coco_evaluation": "segdet.evaluation",
    "fvcore.common.config": "segdet.config",
    "fvcore.common.registry": "segdet.utils.registry",
}

# What is here, but not as a module: a dotted name and all below it -> what to do about it.
ADVICE = {
    "detectron2.projects.point_rend": "PointRend is built in, its keys are in get_cfg(): drop the "
    "import and calls of add_pointrend_config; point_features is in segdet.modeling",
    "detectron2.projects.deeplab": "DeepLab is a plug-in, --project projects/deeplab or "
    "load_project: drop the import and calls of add_deeplab_config",
}

# Names that the module of the same name has too, without a constructor that takes a config.
ELSEWHERE = {("segdet.modeling.roi_heads", "StandardROIHeads"): "segdet.modeling"}


def belongs(module: str) -> bool:
    """Whether a module is one that scripts import for detectron2's sake and is found here."""
    return module == THEIRS or module.startswith(f"{THEIRS}.") or module in MOVED


def our_module(module: str) -> str | None:
    """The module of ours for one of detectron2's; None where there is none."""
    parts = module.split(".")
    for count in range(len(parts), 0, -1):
        moved = MOVED.get(".".join(parts[:count]))
        if moved is not None:
            rest = ".".join([moved, *parts[count:]])
            return rest if load(rest) else None
    same = ".".join([OURS, *parts[1:]])
    return same if load(same) else None


def find(module: str, name: str) -> str | None:
    """The module of ours that has a name which scripts import from one of detectron2's.

    Args:
        module: as "detectron2.modeling.roi_heads".
        name: as "StandardROIHeads"; "*" means all.

    Returns:
        Where `ELSEWHERE` says; else the one in the same place if it has the name; else wherever it
        is public; else None.
    """
    here = our_module(module)
    if here is not None and (name == "*" or has(here, name)):
        return ELSEWHERE.get((here, name), here)
    return None if name == "*" else _public_names().get(name)


def advice(dotted: str) -> str | None:
    """What to do about a name of theirs that is not found here; None where nothing is known."""
    for name, text in ADVICE.items():
        if f"{dotted}.".startswith(f"{name}."):
            return text
    return None


def has(module: str, name: str) -> bool:
    """Whether a module of ours has a name, or a module of that name below it."""
    loaded = load(module)
    return loaded is not None and (hasattr(loaded, name) or load(f"{module}.{name}") is not None)


def member(module: str, path: list[str]) -> Any:
    """What `module.a.b` is, as far as it can be followed: (object or None, names followed)."""
    found: Any = load(module)
    for depth, name in enumerate(path):
        if isinstance(found, ModuleType):
            below = load(f"{found.__name__}.{name}")
            if not hasattr(found, name) and below is None:
                return None, path[: depth + 1]
            found = getattr(found, name, below)
        else:
            return found, path[:depth]
    return found, path


@functools.cache
def load(module: str) -> ModuleType | None:
    """A module of ours; None where there is none."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


@functools.cache
def _public_names() -> dict[str, str]:
    """Every name that a package of ours exports, or a module defines -> the nearest to the top."""
    names: dict[str, str] = {}
    modules = [one.name for one in pkgutil.walk_packages(segdet.__path__, f"{OURS}.")]
    modules = [one for one in modules if not one.startswith((f"{OURS}.migrate", f"{OURS}.cli"))]
    for module in sorted(modules, key=lambda one: (one.count("."), one)):
        loaded = load(module)
        if loaded is None:
            continue
        exported = getattr(loaded, "__all__", None)
        for name, value in vars(loaded).items():
            own = getattr(value, "__module__", None) == module
            if not name.startswith("_") and (name in exported if exported else own):
                names.setdefault(name, module)
    return names
