"""Keypoint AP: both evaluators, the definition of OKS, and the way from outputs to numbers."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from segdet.data import DatasetCatalog, MetadataCatalog
from segdet.data.datasets import register_coco_instances
from segdet.errors import ConfigError, DataError
from segdet.evaluation import COCOEvaluator, evaluate_results
from segdet.evaluation.coco_metrics import BACKENDS, OKS_SIGMAS, coco_metrics
from segdet.structures import Boxes, Instances
from tests.evaluation.sets import found_of, random_boxes, truth_of

NAMES = ["AP", "AP50", "AP75", "APm", "APl", "AR"]


def random_people(seed: int):
    """People with hidden and absent points, some without any, crowds, jittered finds."""
    rng = np.random.default_rng(seed)
    images, number = 5, int(rng.integers(5, 25))
    boxes = random_boxes(rng, number)
    truth = truth_of(
        rng.integers(0, images - 1, number),
        [0] * number,
        boxes,
        rng.random(number) < 0.1,
        images=images,
    )
    points = boxes[:, None, :2] + rng.random((number, 17, 2)) * boxes[:, None, 2:]
    shown = rng.integers(0, 3, (number, 17)) * (rng.random((number, 1)) < 0.8)
    truth = replace(truth, keypoints=np.dstack([points.round(), shown]))
    chosen = rng.integers(0, number, 3 * number)
    noise = rng.normal(0, rng.uniform(0, 0.1, (len(chosen), 1, 1)), (len(chosen), 17, 2))
    moved = points[chosen] + noise * boxes[chosen][:, None, 2:]
    poses = np.dstack([moved, np.ones(moved.shape[:2])])
    found = found_of(
        truth.image[chosen], [0] * len(chosen), rng.random(len(chosen)).round(1), boxes[chosen]
    )
    return truth, replace(found, keypoints=poses)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("sigmas", [OKS_SIGMAS, (0.05,) * 17])
def test_backends_give_equal_numbers(seed, sigmas):
    truth, found = random_people(seed)
    first, second = (
        coco_metrics(truth, found, "keypoints", sigmas=sigmas, backend=backend)
        for backend in sorted(BACKENDS)
    )
    assert list(first.stats) == NAMES and -1 <= first.stats["AP"] < 1
    assert first.stats == pytest.approx(second.stats, abs=1e-12)
    assert first.category_ap == pytest.approx(second.category_ap)


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_oks_by_hand(backend):
    """exp(-d^2 / (2 area (2 sigma)^2)), mean over labelled points."""
    truth = truth_of([0], [0], [[10, 10, 100, 100]])  # its area is 8000
    points = np.array([[[20, 20, 2], [60, 60, 1], [0, 0, 0]]], float)
    truth = replace(truth, keypoints=points)
    distance = np.sqrt(-2 * 8000 * (2 * 0.1) ** 2 * np.log(0.53))  # OKS of that point: 0.53
    moved = points + np.array([[[distance, 0, 0], [0, distance, 0], [500, 500, 0]]])
    found = replace(found_of([0], [0], [0.9], [[10, 10, 100, 100]]), keypoints=moved)
    stats = coco_metrics(truth, found, "keypoints", sigmas=(0.1,) * 3, backend=backend).stats
    assert stats["AP50"] == pytest.approx(1) and stats["AP"] == pytest.approx(0.1)


def test_what_does_not_fit_is_refused():
    truth, found = random_people(0)
    with pytest.raises(ConfigError, match="have 17 keypoints, there are 3 sigmas; set TEST"):
        coco_metrics(truth, found, "keypoints", sigmas=(0.1,) * 3)
    with pytest.raises(DataError, match="predicts 5 keypoints, the objects of here have 17"):
        coco_metrics(truth, replace(found, keypoints=found.keypoints[:, :5]), "keypoints")
    with pytest.raises(DataError, match="no object has keypoints"):
        coco_metrics(replace(truth, keypoints=np.zeros((9, 0, 3))), found, "keypoints")


@pytest.fixture
def people(tmp_path, monkeypatch):
    monkeypatch.setattr(DatasetCatalog, "_loaders", {})
    monkeypatch.setattr(MetadataCatalog, "_metadata", {})
    person = {"image_id": 3, "category_id": 1, "bbox": [0, 0, 100, 100], "area": 5000}
    tree = {
        "images": [{"id": 3, "file_name": "a.png", "height": 200, "width": 200}],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [
            {"id": 1, **person, "keypoints": [10, 20, 2, 30, 40, 2]},
            {"id": 2, **person, "bbox": [100, 100, 50, 50]},
        ],
    }
    (tmp_path / "gt.json").write_text(json.dumps(tree))
    register_coco_instances("people", {}, tmp_path / "gt.json", tmp_path)
    return tmp_path


def output(points) -> dict:
    instances = Instances(
        (200, 200),
        pred_boxes=Boxes(torch.tensor([[0.0, 0, 100, 100]] * len(points))),
        scores=torch.ones(len(points)),
        pred_classes=torch.zeros(len(points), dtype=torch.int64),
        pred_keypoints=torch.tensor(points).reshape(len(points), 2, 3),
    )
    return {"instances": instances}


def test_evaluator(people):
    evaluator = COCOEvaluator("people", output_dir=people, kpt_oks_sigmas=(0.01, 0.01))
    evaluator.reset()
    evaluator.process([{"image_id": 3}], [output([[[10.5, 20.5, 0.9], [30.5, 40.5, 0.8]]])])
    results = evaluator.evaluate()
    assert list(results) == ["bbox", "keypoints"]
    assert list(results["keypoints"]) == ["AP", "AP50", "AP75", "APm", "APl"]
    # Both points are hit; a person without points is no miss.
    assert results["keypoints"]["AP"] == pytest.approx(100)
    file = people / "coco_instances_results.json"
    row = json.loads(file.read_text())[0]
    assert row["keypoints"] == pytest.approx([10, 20, 0.9, 30, 40, 0.8])
    again = evaluate_results(people / "gt.json", file, kpt_oks_sigmas=(0.01, 0.01))
    assert again["keypoints"] == pytest.approx(results["keypoints"], nan_ok=True)
    file.write_text(json.dumps([{**row, "keypoints": [1, 2, 3]}]))
    with pytest.raises(DataError, match=r"results\[0\] .*: keypoints must be 2 triples"):
        evaluate_results(people / "gt.json", file, kpt_oks_sigmas=(0.01, 0.01))


def test_evaluator_where_nothing_is_found_or_points_are_broken(people):
    evaluator = COCOEvaluator("people")
    evaluator.reset()
    evaluator.process([{"image_id": 3}], [output([])])
    assert np.isnan(evaluator.evaluate()["keypoints"]["AP"])
    with pytest.raises(DataError, match="NaN or infinite"):
        evaluator.process([{"image_id": 3}], [output([[[float("nan"), 2, 1], [1, 2, 1]]])])


def test_sigmas_are_checked_before_inference(people):
    with pytest.raises(ConfigError, match="have 2 keypoints, there are 3 sigmas"):
        COCOEvaluator("people", kpt_oks_sigmas=(0.1, 0.1, 0.1))


def test_data_without_keypoints_evaluates_the_rest(people, caplog):
    file = people / "gt.json"
    tree = json.loads(file.read_text())
    del tree["annotations"][0]["keypoints"]
    file.write_text(json.dumps(tree))
    evaluator = COCOEvaluator("people")
    evaluator.reset()
    evaluator.process([{"image_id": 3}], [output([[[1.0, 2, 1], [1, 2, 1]]])])
    assert list(evaluator.evaluate()) == ["bbox"]
    assert "has no keypoints" in caplog.text
