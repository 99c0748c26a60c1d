"""Config files of detectron2's earlier key names (VERSION 0 and 1) in today's names."""

from __future__ import annotations

import logging
from typing import Any

from segdet.errors import ConfigError

logger = logging.getLogger(__name__)

VERSION = 2

_RENAMED = {
    "MODEL.RPN_HEAD.NAME": "MODEL.RPN.HEAD_NAME",
    "MODEL.WEIGHT": "MODEL.WEIGHTS",
    "MODEL.PANOPTIC_FPN.SEMANTIC_LOSS_SCALE": "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT",
    "MODEL.PANOPTIC_FPN.RPN_LOSS_SCALE": "MODEL.RPN.LOSS_WEIGHT",
    "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_SCALE": "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT",
    "MODEL.PANOPTIC_FPN.COMBINE_ON": "MODEL.PANOPTIC_FPN.COMBINE.ENABLED",
    "MODEL.PANOPTIC_FPN.COMBINE_OVERLAP_THRESHOLD": "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH",
    "MODEL.PANOPTIC_FPN.COMBINE_STUFF_AREA_LIMIT": "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT",
    "MODEL.PANOPTIC_FPN.COMBINE_INSTANCES_CONFIDENCE_THRESHOLD": (
        "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH"
    ),
    "MODEL.ROI_HEADS.SCORE_THRESH": "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    "MODEL.ROI_HEADS.NMS": "MODEL.ROI_HEADS.NMS_THRESH_TEST",
    "MODEL.RETINANET.INFERENCE_SCORE_THRESHOLD": "MODEL.RETINANET.SCORE_THRESH_TEST",
    "MODEL.RETINANET.INFERENCE_TOPK_CANDIDATES": "MODEL.RETINANET.TOPK_CANDIDATES_TEST",
    "MODEL.RETINANET.INFERENCE_NMS_THRESHOLD": "MODEL.RETINANET.NMS_THRESH_TEST",
    "TEST.DETECTIONS_PER_IMG": "TEST.DETECTIONS_PER_IMAGE",
    "TEST.AUG_ON": "TEST.AUG.ENABLED",
    "TEST.AUG_MIN_SIZES": "TEST.AUG.MIN_SIZES",
    "TEST.AUG_MAX_SIZE": "TEST.AUG.MAX_SIZE",
    "TEST.AUG_FLIP": "TEST.AUG.FLIP",
}
_RENAMED_ANCHORS = {
    "MODEL.RPN.ANCHOR_SIZES": "MODEL.ANCHOR_GENERATOR.SIZES",
    "MODEL.RPN.ANCHOR_ASPECT_RATIOS": "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
    "MODEL.RETINANET.ANCHOR_SIZES": "MODEL.ANCHOR_GENERATOR.SIZES",
    "MODEL.RETINANET.ANCHOR_ASPECT_RATIOS": "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
}

Leaf = tuple[str, Any, str]


def upgrade(leaves: list[Leaf], file: str) -> list[Leaf]:
    """The values of a config file under today's keys.

    A file without VERSION is taken for version 1 if it has one of that version's tell-tale keys.

    Args:
        leaves: (key path, value, where it was set) of the file and its bases.
        file: for messages.

    Raises:
        ConfigError: VERSION is no number, or newer than this package.
    """
    values = {path: value for path, value, _ in leaves}
    looks_old = "MODEL.WEIGHT" in values or "TEST.AUG_ON" in values
    version = values.get("VERSION", 1 if looks_old else VERSION)
    if not isinstance(version, int) or version > VERSION:
        raise ConfigError(f"{file}: VERSION is {version!r}; this segdet reads up to {VERSION}")
    if version == VERSION:
        return leaves
    logger.warning("%s has the keys of config version %d, read as today's", file, version)
    # RPN and RetinaNet had anchors of their own; in a file that sets both, its system's count.
    retinanet = values.get("MODEL.META_ARCHITECTURE") == "RetinaNet"
    unused = "MODEL.RPN.ANCHOR_" if retinanet else "MODEL.RETINANET.ANCHOR_"
    today = _RENAMED | _RENAMED_ANCHORS
    return [
        (today.get(path, path), VERSION if path == "VERSION" else value, source)
        for path, value, source in leaves
        if not path.startswith(unused)
    ]
