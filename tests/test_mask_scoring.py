"""`benchmarks.trained.mask_scoring`, which a trained model's page quotes."""

import pytest
import torch

from benchmarks.trained.mask_scoring import correlation, scores_and_ious
from segdet.errors import ConfigError
from segdet.structures import Boxes, Instances


def rectangle(x0: int, y0: int, x1: int, y1: int) -> list[list[float]]:
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def detections(*boxes: tuple[int, ...], classes: list[int], **fields) -> Instances:
    masks = torch.zeros(len(boxes), 20, 20, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    found = Instances((20, 20), pred_boxes=Boxes(torch.tensor(boxes).float().reshape(-1, 4)))
    found.pred_masks, found.pred_classes = masks, torch.tensor(classes, dtype=torch.int64)
    found.scores = torch.linspace(0.9, 0.1, len(boxes))
    for name, value in fields.items():
        found.set(name, value)
    return found


RECORD = {
    "height": 20,
    "width": 20,
    "annotations": [
        {"segmentation": rectangle(0, 0, 4, 4), "category_id": 0},
        {"segmentation": rectangle(0, 0, 8, 4), "category_id": 1},
        {"segmentation": rectangle(10, 10, 20, 20), "category_id": 0, "iscrowd": 1},
    ],
}


def test_an_iou_is_the_best_with_an_object_of_the_class_and_crowds_are_left_out():
    boxes = [(0, 0, 4, 4), (0, 0, 4, 4), (0, 0, 2, 4), (12, 12, 16, 16), (5, 5, 9, 9)]
    found = detections(*boxes, classes=[0, 1, 0, 0, 0])
    _, scores, ious = scores_and_ious(found, RECORD)
    assert ious.tolist() == pytest.approx([1, 0.5, 0.5, 0])
    assert torch.equal(scores, found.scores[[0, 1, 2, 4]])
    own = torch.tensor([0.1, 0.2, 0.3, 0.4, -0.5])
    found.mask_scores = own
    assert torch.equal(scores_and_ious(found, RECORD)[0], own[[0, 1, 2, 4]])


def test_images_without_objects_and_without_detections():
    empty = RECORD | {"annotations": []}
    assert scores_and_ious(detections((0, 0, 4, 4), classes=[0]), empty)[2].tolist() == [0]
    assert scores_and_ious(detections(classes=[]), RECORD)[2].shape == (0,)


def test_correlation():
    ious = torch.tensor([0.1, 0.5, 0.6])
    assert correlation(2 * ious - 1, ious) == pytest.approx(1)
    assert correlation(-ious, ious) == pytest.approx(-1)
    with pytest.raises(ConfigError, match="needs detections, there are 1"):
        correlation(ious[:1], ious[:1])
