"""VOC evaluation against the development kit's procedure, written out in plain Python."""

import numpy as np
import pytest
import torch

from segdet.data import DatasetCatalog, MetadataCatalog
from segdet.data.datasets import register_pascal_voc
from segdet.errors import DataError
from segdet.evaluation import PascalVOCDetectionEvaluator
from segdet.evaluation.pascal_voc import class_ap
from segdet.structures import Boxes, Instances
from tests.data.readers.test_pascal_voc import write_voc


def kit_iou(a, b) -> float:
    w = min(a[2], b[2]) - max(a[0], b[0]) + 1
    h = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if w <= 0 or h <= 0:
        return 0
    area_a, area_b = ((c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b))
    return w * h / (area_a + area_b - w * h)


def kit_ap(found, objects, threshold, is_2007) -> float:
    taken, rows = set(), []
    total = sum(1 for o in objects if not o[1])
    for image, _score, *box in sorted(found.tolist(), key=lambda row: -row[1]):
        best, at = -1, None
        for i, (where, _, *other) in enumerate(objects.tolist()):
            if where == image and kit_iou(box, other) > best:
                best, at = kit_iou(box, other), i
        if at is None or best <= threshold:
            rows.append(False)
        elif not objects[at, 1]:
            rows.append(at not in taken)
            taken.add(at)
    hits = np.cumsum(rows)
    recall, precision = hits / total, hits / np.arange(1, len(rows) + 1)
    if is_2007:
        return sum(max(precision[recall >= t], default=0) for t in np.arange(0, 1.1, 0.1)) / 11
    area, before = 0.0, 0.0
    for r in sorted(set(recall)):
        area += (r - before) * max(precision[recall >= r])
        before = r
    return area


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("is_2007", [True, False])
def test_matches_the_kit(seed, is_2007):
    rng = np.random.default_rng(seed)
    number, images = 25, 6
    low = rng.integers(1, 40, (number, 2))
    boxes = np.hstack([low, low + rng.integers(3, 30, (number, 2))]).astype(float)
    objects = np.hstack(
        [rng.integers(0, images, (number, 1)), rng.random((number, 1)) < 0.2, boxes]
    )
    chosen = rng.integers(0, number, 60)
    moved = boxes[chosen] + rng.normal(0, 1.5, (60, 4)).round(1)
    scores = rng.permutation(60)[:, None] / 60
    found = np.hstack([objects[chosen, :1], scores, moved])
    found[:8, 0] = images  # an image without objects
    expected = [kit_ap(found, objects, t / 100, is_2007) for t in range(50, 100, 5)]
    assert class_ap(found, objects, is_2007) == pytest.approx(expected)


def test_edges_of_a_class():
    objects = np.array([[0, 0, 1, 1, 10, 10], [0, 1, 30, 30, 40, 40]], float)
    assert class_ap(np.zeros((0, 6)), objects, True).tolist() == [0] * 10
    assert np.isnan(class_ap(np.zeros((0, 6)), objects[1:], True)).all()
    # Found twice: the second is false. The difficult one found: neither.
    rows = [[0, 0.9, 30, 30, 40, 40], [0, 0.8, 1, 1, 10, 10], [0, 0.7, 1, 1, 10, 10]]
    assert class_ap(np.array(rows), objects, False).tolist() == [1] * 10
    # IoU of exactly one half is no hit: 5 x 10 of 10 x 10 pixels.
    half = np.array([[0, 0.9, 1, 1, 5, 10]])
    assert class_ap(half, objects, False)[0] == 0


@pytest.fixture
def registered(tmp_path, monkeypatch):
    monkeypatch.setattr(DatasetCatalog, "_loaders", {})
    monkeypatch.setattr(MetadataCatalog, "_metadata", {})
    images = {
        "a": [("egg", [11, 11, 30, 30], 0), ("hen", [41, 41, 60, 60], 0)],
        "b": [("egg", [11, 11, 30, 30], 0)],
    }
    write_voc(tmp_path, "test", images)
    return tmp_path


def found_in(boxes, classes, scores=0.9):
    return {
        "instances": Instances(
            (60, 80),
            pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
            scores=torch.full((len(classes),), scores),
            pred_classes=torch.tensor(classes, dtype=torch.int64),
        )
    }


@pytest.mark.parametrize("year, ap", [(2007, 6 / 11), (2012, 0.5)])
def test_evaluator(registered, year, ap):
    register_pascal_voc("eggs", registered, "test", year, ["hen", "egg", "cat"])
    evaluator = PascalVOCDetectionEvaluator("eggs")
    for _ in range(2):
        evaluator.reset()
        evaluator.process([{"image_id": "a"}], [found_in([[10, 10, 30, 30], [0, 0, 5, 5]], [1, 2])])
        evaluator.process([{"image_id": "b"}], [found_in([], [])])
    results = evaluator.evaluate()["bbox"]
    # Of two eggs one is found, the hen is not; there is no cat.
    assert results["AP-egg"] == pytest.approx(100 * ap) and results["AP-hen"] == 0
    assert np.isnan(results["AP-cat"])
    assert results["AP"] == results["AP50"] == results["AP75"] == pytest.approx(50 * ap)


def test_errors_name_the_image(registered):
    register_pascal_voc("eggs", registered, "test", 2007, ["hen", "egg"])
    evaluator = PascalVOCDetectionEvaluator("eggs")
    with pytest.raises(DataError, match=r"image c: .* NaN or infinite"):
        evaluator.process([{"image_id": "c"}], [found_in([[0, 0, 5, 5]], [0], float("nan"))])
    with pytest.raises(DataError, match=r"image c: the model gives sem_seg; .* needs a model"):
        evaluator.process([{"image_id": "c"}], [{"sem_seg": torch.zeros(1, 2, 2)}])
    evaluator.process([{"image_id": "c"}], [found_in([[0, 0, 5, 5]], [0])])
    with pytest.raises(DataError, match="no image of the predicted image_id 'c'"):
        evaluator.evaluate()
    register_pascal_voc("hens", registered, "test", 2007, ["hen"])
    with pytest.raises(DataError, match=r"a\.xml: class 'egg' is none of hen"):
        PascalVOCDetectionEvaluator("hens")
