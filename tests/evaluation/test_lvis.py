"""LVIS evaluation against its definition, written out in plain Python."""

import json

import numpy as np
import pytest
import torch

from segdet.data import DatasetCatalog, MetadataCatalog
from segdet.data.datasets import register_lvis_instances
from segdet.errors import ConfigError, DataError
from segdet.evaluation import LVISEvaluator
from segdet.evaluation.coco_records import Predictions
from segdet.evaluation.lvis import REPORTED, LVISGroundTruth, lvis_metrics
from segdet.structures import Boxes, Instances
from tests.evaluation.sets import found_of, random_boxes, truth_of

THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREAS = ((0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10))


def federated(seed: int) -> tuple[LVISGroundTruth, Predictions]:
    """Classes that an image shows, is known not to show, or was not searched for."""
    rng = np.random.default_rng(seed)
    images, categories, number = 5, 6, int(rng.integers(5, 30))
    boxes = random_boxes(rng, number)
    image, category = rng.integers(0, images, number), rng.integers(0, categories - 1, number)
    plain = truth_of(image, category, boxes, images=images, categories=categories)
    shown = [{*category[image == i].tolist()} for i in range(images)]
    absent = [[k for k in range(categories) if k not in shown[i]] for i in range(images)]
    truth = LVISGroundTruth(
        **vars(plain),
        negative=[[k for k in ks if rng.random() < 0.4] for ks in absent],
        not_exhaustive=[[k for k in range(categories) if rng.random() < 0.3] for _ in shown],
        frequency=[*"rrccff"],
    )
    chosen = rng.integers(0, number, 2 * number)
    jitter = rng.normal(0, 0.06, (len(chosen), 4)) * boxes[chosen][:, [2, 3, 2, 3]]
    moved = np.concatenate([boxes[chosen] + jitter.round(1), random_boxes(rng, number)])
    moved[:, 2:] = moved[:, 2:].clip(min=0.1)
    where = np.concatenate([image[chosen], rng.integers(0, images, number)])
    what = np.concatenate([category[chosen], rng.integers(0, categories, number)])
    what = np.where(rng.random(len(what)) < 0.2, rng.integers(0, categories, len(what)), what)
    return truth, found_of(where, what, rng.random(len(what)).round(1), moved)


def iou_of(a, b) -> float:
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    inter = max(w, 0) * max(h, 0)
    return inter / (a[2] * a[3] + b[2] * b[3] - inter)


def match(gts, dts, threshold, low, high, is_open):
    """(score, is true, is ignored) of each find, and the number of objects that count."""
    gts = sorted(gts, key=lambda g: not low <= g["area"] <= high)  # those that count first
    ignored = [not low <= g["area"] <= high for g in gts]
    taken, rows = set(), []
    for d in dts:
        best, at = min(threshold, 1 - 1e-10), None
        for i, g in enumerate(gts):
            if i in taken:
                continue
            if at is not None and not ignored[at] and ignored[i]:
                break
            if (iou := iou_of(d["box"], g["box"])) >= best:
                best, at = iou, i
        if at is None:
            area = d["box"][2] * d["box"][3]
            rows.append((d["score"], False, is_open or not low <= area <= high))
        else:
            taken.add(at)
            rows.append((d["score"], True, ignored[at]))
    return rows, len(gts) - sum(ignored)


def lvis_by_definition(truth, found, limit) -> dict[str, float]:
    precision = np.full((10, 101, len(truth.category_ids), 4), -1.0)
    finds = [
        dict(zip(("image", "category", "score", "box"), row, strict=True))
        for row in zip(found.image, found.category, found.scores, found.boxes, strict=True)
    ]
    kept = []
    for image in range(len(truth.image_ids)):
        mine = [d for d in finds if d["image"] == image]
        kept += sorted(mine, key=lambda d: -d["score"])[:limit]
    for k in range(len(truth.category_ids)):
        for t, threshold in enumerate(THRESHOLDS):
            for a, (low, high) in enumerate(AREAS):
                rows, total = [], 0
                for image in range(len(truth.image_ids)):
                    of_both = (truth.image == image) & (truth.category == k)
                    gts = [
                        {"box": truth.boxes[i], "area": truth.areas[i]}
                        for i in np.flatnonzero(of_both)
                    ]
                    if not gts and k not in truth.negative[image]:
                        continue  # was not looked for
                    dts = [d for d in kept if d["image"] == image and d["category"] == k]
                    is_open = k in truth.not_exhaustive[image]
                    part, count = match(gts, dts, threshold, low, high, is_open)
                    rows, total = rows + part, total + count
                if total:
                    precision[t, :, k, a] = curve(rows, total)

    def mean(values):
        values = values[values > -1]
        return values.mean() if values.size else -1

    stats = {"AP": mean(precision[..., 0]), "AP50": mean(precision[0, ..., 0])}
    stats["AP75"] = mean(precision[5, ..., 0])
    stats |= {f"AP{s}": mean(precision[..., i]) for i, s in enumerate("sml", 1)}
    for name in "rcf":
        group = [k for k, f in enumerate(truth.frequency) if f == name]
        stats[f"AP{name}"] = mean(precision[:, :, group, 0])
    return stats


def curve(rows, total) -> np.ndarray:
    rows = sorted((r for r in rows if not r[2]), key=lambda r: -r[0])
    hits = np.cumsum([r[1] for r in rows])
    recall, precision = hits / total, hits / np.arange(1, len(rows) + 1)
    out = np.zeros(101)
    for i, r in enumerate(np.linspace(0, 1, 101)):
        reached = precision[recall >= r]
        out[i] = reached.max() if len(reached) else 0
    return out


@pytest.mark.parametrize("seed, limit", [(0, 300), (1, 5), (2, 300)])
def test_matches_definition(seed, limit):
    truth, found = federated(seed)
    expected = lvis_by_definition(truth, found, limit)
    actual = lvis_metrics(truth, found, "bbox", max_detections=limit)
    assert list(actual) == list(REPORTED)
    assert actual == pytest.approx(expected, abs=1e-9)


def test_masks_and_frequencies_that_are_not_known():
    truth, found = federated(3)
    segm = lvis_metrics(truth, found, "segm")
    assert 0 < segm["AP"] != lvis_metrics(truth, found, "bbox")["AP"]
    unknown = lvis_metrics(LVISGroundTruth(**vars(truth) | {"frequency": []}), found, "segm")
    assert unknown["AP"] == segm["AP"] and unknown["APr"] == unknown["APf"] == -1


@pytest.fixture
def registered(tmp_path, monkeypatch):
    monkeypatch.setattr(DatasetCatalog, "_loaders", {})
    monkeypatch.setattr(MetadataCatalog, "_metadata", {})
    size = {"height": 100, "width": 100, "coco_url": "http://x/train2017/1.jpg"}
    tree = {
        "images": [
            {"id": 5, **size, "neg_category_ids": [2], "not_exhaustive_category_ids": [1]},
        ],
        "categories": [
            {"id": 1, "name": "a", "frequency": "r"},
            {"id": 2, "name": "b", "frequency": "f"},
        ],
        "annotations": [
            {"id": 0, "image_id": 5, "category_id": 1, "bbox": [10, 10, 20, 20]},
            {"id": 1, "image_id": 5, "category_id": 1, "bbox": [50, 50, 20, 20]},
        ],
    }
    (tmp_path / "lvis.json").write_text(json.dumps(tree))
    register_lvis_instances("some_lvis", {}, tmp_path / "lvis.json", "coco")
    return tmp_path


def test_evaluator(registered):
    boxes = [[10.0, 10, 30, 30], [50, 50, 70, 70], [80, 80, 90, 90], [10, 10, 30, 30]]
    instances = Instances(
        (100, 100),
        pred_boxes=Boxes(torch.tensor(boxes)),
        scores=torch.tensor([0.5, 0.6, 0.9, 0.95]),
        pred_classes=torch.tensor([0, 0, 0, 1]),
    )
    evaluator = LVISEvaluator("some_lvis", output_dir=registered)
    evaluator.reset()
    evaluator.process([{"image_id": 5}], [{"instances": instances}])
    results = evaluator.evaluate()
    # The third find is of a class of which not all is marked; class b is known to be absent.
    assert results["bbox"]["AP"] == results["bbox"]["APr"] == pytest.approx(100)
    assert np.isnan(results["bbox"]["APf"])
    rows = json.loads((registered / "lvis_instances_results.json").read_text())
    assert [row["category_id"] for row in rows] == [1, 1, 1, 2]
    evaluator.reset()
    evaluator.process([{"image_id": 5}], [{"instances": instances[:0]}])
    assert all(np.isnan(value) for value in evaluator.evaluate()["bbox"].values())


def test_refusals(registered, monkeypatch):
    for task in ("keypoints", "boundary"):
        with pytest.raises(ConfigError, match=f"knows the tasks bbox, segm; got .'{task}'"):
            LVISEvaluator("some_lvis", [task])
    with pytest.raises(DataError, match="unregistered has no json_file"):
        LVISEvaluator("unregistered")
    monkeypatch.setattr("segdet.evaluation.lvis.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install hotcoco"):
        lvis_metrics(*federated(0), "bbox")
