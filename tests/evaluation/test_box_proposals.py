import json
import pickle

import numpy as np
import pytest
import torch

from segdet.data import DatasetCatalog, MetadataCatalog
from segdet.data.datasets import register_coco_instances
from segdet.errors import DataError
from segdet.evaluation import COCOEvaluator
from segdet.evaluation.box_proposals import ImageProposals, average_recalls
from segdet.structures import Boxes, Instances
from tests.evaluation.sets import truth_of


def proposals_of(image_id, boxes, logits) -> ImageProposals:
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return ImageProposals(image_id=image_id, boxes=boxes, logits=np.array(logits, np.float32))


def test_recall_by_hand():
    boxes = [[0, 0, 10, 10], [20, 20, 50, 50], [0, 0, 100, 100]]
    truth = truth_of([0, 0, 0], [0, 0, 0], boxes, [False, False, True], images=2)
    # IoU 0.8 with the first object, 1 with the second; the crowd does not count.
    found = proposals_of(0, [[0, 0, 10, 8], [20, 20, 70, 70]], [1, 2])
    results = average_recalls([found], truth)
    assert results["AR@100"] == results["AR@1000"] == pytest.approx((7 + 10) / 20 * 100)
    assert results["ARs@100"] == pytest.approx(70) and results["ARm@100"] == pytest.approx(100)
    assert np.isnan(results["ARl@1000"])


def test_a_proposal_covers_one_object_and_the_best_come_first():
    truth = truth_of([0, 0], [0, 0], [[0, 0, 10, 10], [0, 0, 10, 9]], images=1)
    assert average_recalls([proposals_of(0, [[0, 0, 10, 10]], [0])], truth)["AR@100"] == 50
    far = [[50, 50, 60, 60]] * 100
    found = proposals_of(0, [*far, [0, 0, 10, 10]], [*range(1, 101), 0])
    results = average_recalls([found], truth)
    assert results["AR@100"] == 0 and results["AR@1000"] == 50


def test_images_without_proposals_are_left_out_and_unknown_ones_refused():
    truth = truth_of([0, 1], [0, 0], [[0, 0, 10, 10]] * 2, images=2)
    found = [proposals_of(0, [[0, 0, 10, 10]], [0]), proposals_of(1, [], [])]
    assert average_recalls(found, truth)["AR@100"] == 100
    with pytest.raises(DataError, match="no image of the predicted image_id 7"):
        average_recalls([proposals_of(7, [[0, 0, 1, 1]], [0])], truth)


def test_evaluator_takes_proposals(tmp_path, monkeypatch):
    monkeypatch.setattr(DatasetCatalog, "_loaders", {})
    monkeypatch.setattr(MetadataCatalog, "_metadata", {})
    tree = {
        "images": [{"id": 3, "file_name": "a.png", "height": 50, "width": 50}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 1, "image_id": 3, "category_id": 1, "bbox": [0, 0, 20, 10]}],
    }
    (tmp_path / "gt.json").write_text(json.dumps(tree))
    register_coco_instances("mine", {}, tmp_path / "gt.json", tmp_path)
    evaluator = COCOEvaluator("mine", output_dir=tmp_path)
    evaluator.reset()
    boxes = Boxes(torch.tensor([[0.0, 0, 20, 10], [5, 5, 9, 9]]))
    proposals = Instances((50, 50), proposal_boxes=boxes, objectness_logits=torch.tensor([2.0, 1]))
    evaluator.process([{"image_id": 3}], [{"proposals": proposals}])
    results = evaluator.evaluate()
    assert list(results) == ["box_proposals"] and results["box_proposals"]["AR@100"] == 100
    written = pickle.loads((tmp_path / "box_proposals.pkl").read_bytes())
    assert written["ids"] == [3] and written["bbox_mode"] == 0
    assert written["boxes"][0].tolist() == boxes.tensor.tolist()
    assert written["objectness_logits"][0].tolist() == [2, 1]
