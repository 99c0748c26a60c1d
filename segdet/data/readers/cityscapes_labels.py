"""Cityscapes' classes.

Source: mcordts/cityscapesScripts, helpers/labels.py.
"""

from __future__ import annotations

from typing import NamedTuple


class Label(NamedTuple):
    """A class as the ground truth's pictures write it."""

    name: str
    id: int  # in labelIds.png; objects have id * 1000 + number in instanceIds.png
    train_id: int  # in labelTrainIds.png; 255 is not trained on
    category: str  # of classes
    has_instances: bool
    is_ignored: bool  # in evaluation


LABELS = [
    Label("unlabeled", 0, 255, "void", False, True),
    Label("ego vehicle", 1, 255, "void", False, True),
    Label("rectification border", 2, 255, "void", False, True),
    Label("out of roi", 3, 255, "void", False, True),
    Label("static", 4, 255, "void", False, True),
    Label("dynamic", 5, 255, "void", False, True),
    Label("ground", 6, 255, "void", False, True),
    Label("road", 7, 0, "flat", False, False),
    Label("sidewalk", 8, 1, "flat", False, False),
    Label("parking", 9, 255, "flat", False, True),
    Label("rail track", 10, 255, "flat", False, True),
    Label("building", 11, 2, "construction", False, False),
    Label("wall", 12, 3, "construction", False, False),
    Label("fence", 13, 4, "construction", False, False),
    Label("guard rail", 14, 255, "construction", False, True),
    Label("bridge", 15, 255, "construction", False, True),
    Label("tunnel", 16, 255, "construction", False, True),
    Label("pole", 17, 5, "object", False, False),
    Label("polegroup", 18, 255, "object", False, True),
    Label("traffic light", 19, 6, "object", False, False),
    Label("traffic sign", 20, 7, "object", False, False),
    Label("vegetation", 21, 8, "nature", False, False),
    Label("terrain", 22, 9, "nature", False, False),
    Label("sky", 23, 10, "sky", False, False),
    Label("person", 24, 11, "human", True, False),
    Label("rider", 25, 12, "human", True, False),
    Label("car", 26, 13, "vehicle", True, False),
    Label("truck", 27, 14, "vehicle", True, False),
    Label("bus", 28, 15, "vehicle", True, False),
    Label("caravan", 29, 255, "vehicle", True, True),
    Label("trailer", 30, 255, "vehicle", True, True),
    Label("train", 31, 16, "vehicle", True, False),
    Label("motorcycle", 32, 17, "vehicle", True, False),
    Label("bicycle", 33, 18, "vehicle", True, False),
]

BY_ID = {label.id: label for label in LABELS}
BY_NAME = {label.name: label for label in LABELS}
BY_NAME["license plate"] = Label("license plate", -1, 255, "vehicle", False, True)

THINGS = [label for label in LABELS if label.has_instances and not label.is_ignored]
TRAINED = [label for label in LABELS if not label.is_ignored]  # by train_id

COLORS = (  # RGB, by train_id
    *((128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153)),
    *((153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152)),
    *((70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70)),
    *((0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32)),
)
