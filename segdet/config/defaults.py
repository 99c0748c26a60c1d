"""The default config: detectron2's complete key tree, gathered from the sections that own it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from segdet.config.node import CfgNode
from segdet.config.reader import defaults_of, read_section
from segdet.config.run import RunConfig
from segdet.config.yaml_files import is_sequence
from segdet.data.build import DataLoaderConfig, DatasetsConfig
from segdet.data.mapper import InputConfig
from segdet.errors import ConfigError
from segdet.evaluation.testing import TestConfig
from segdet.modeling.compiling import CompileConfig
from segdet.modeling.meta_arch import SYSTEMS
from segdet.solver.build import SolverConfig
from segdet.solver.ema import ModelEMAConfig

SECTIONS: dict[str, type[Any]] = {
    "INPUT": InputConfig,
    "DATASETS": DatasetsConfig,
    "DATALOADER": DataLoaderConfig,
    "SOLVER": SolverConfig,
    "MODEL_EMA": ModelEMAConfig,
    "TEST": TestConfig,
}

# Sections of loaded projects, by the section of the tree that gets their keys.
PROJECT_SECTIONS: list[tuple[str, type[Any]]] = []

# Keys that no part's section owns.
COMMON: dict[str, Any] = {
    **defaults_of(RunConfig),
    "GLOBAL": {"HACK": 1.0},
    "MODEL": {
        "DEVICE": "cuda",
        "META_ARCHITECTURE": "GeneralizedRCNN",
        "WEIGHTS": "",
        "COMPILE": defaults_of(CompileConfig),
    },
}

# Sections hold tuples; detectron2 has lists here, which users' scripts extend and compare.
LISTS = {
    "MODEL.PIXEL_MEAN",
    "MODEL.PIXEL_STD",
    "MODEL.FPN.IN_FEATURES",
    "MODEL.ANCHOR_GENERATOR.SIZES",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
    "MODEL.ANCHOR_GENERATOR.ANGLES",
    "MODEL.RPN.IN_FEATURES",
    "MODEL.RPN.IOU_THRESHOLDS",
    "MODEL.RPN.IOU_LABELS",
    "MODEL.RPN.CONV_DIMS",
    "MODEL.ROI_HEADS.IN_FEATURES",
    "MODEL.ROI_HEADS.IOU_THRESHOLDS",
    "MODEL.ROI_HEADS.IOU_LABELS",
    "MODEL.RETINANET.IN_FEATURES",
    "MODEL.RETINANET.IOU_THRESHOLDS",
    "MODEL.RETINANET.IOU_LABELS",
    "MODEL.FCOS.IN_FEATURES",
    "MODEL.FCOS.FPN_STRIDES",
    "MODEL.FCOS.SIZES_OF_INTEREST",
    "MODEL.BASIS_MODULE.IN_FEATURES",
    "MODEL.BLENDMASK.POOLER_SCALES",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES",
    "MODEL.RESNETS.OUT_FEATURES",
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE",
    "MODEL.VOVNET.OUT_FEATURES",
    "INPUT.CROP.SIZE",
    "TEST.EXPECTED_RESULTS",
    "TEST.KEYPOINT_OKS_SIGMAS",
}


def get_cfg() -> CfgNode:
    """The default config, with detectron2's keys and values, and those of loaded projects."""
    own = trees_of(SYSTEMS.values(), [*SECTIONS.items(), *PROJECT_SECTIONS])
    return gather([CfgNode(COMMON), *own])


def check_values(cfg: CfgNode) -> RunConfig:
    """Read all that is outside of MODEL, so that no bad value shows late; a system reads MODEL.

    Returns:
        The keys that no part owns.

    Raises:
        ConfigError: a value that cannot be used.
    """
    for at, section in SECTIONS.items():
        read_section(section, cfg, at)
    return read_section(RunConfig, cfg)


def trees_of(
    systems: Iterable[type[Any]], sections: Iterable[tuple[str, type[Any]]]
) -> list[CfgNode]:
    """The defaults of systems, below MODEL, and of sections by the names that they go below."""
    trees = [CfgNode({"MODEL": defaults_of(section)}) for section in systems]
    return trees + [CfgNode({key: defaults_of(section)}) for key, section in sections]


def gather(trees: list[CfgNode]) -> CfgNode:
    """One tree of several that may share keys.

    Raises:
        ConfigError: two of them have different defaults for a key.
    """
    gathered: dict[str, Any] = {}
    for tree in trees:
        for path, value, _ in tree.leaves():
            *sections, key = path.split(".")
            node = gathered
            for name in sections:
                node = node.setdefault(name, {})
            value = _as_lists(value) if path in LISTS else value
            if node.setdefault(key, value) != value:
                raise ConfigError(f"{path} has two defaults: {node[key]!r} and {value!r}")
    return CfgNode(gathered)


def _as_lists(value: Any) -> Any:
    return [_as_lists(one) for one in value] if is_sequence(value) else value
