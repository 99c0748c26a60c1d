"""AP of rotated boxes, against hand-worked numbers and the upright evaluator."""

import json
import math

import pytest
import torch

from segdet.data.catalog import DatasetCatalog, MetadataCatalog
from segdet.errors import ConfigError, DataError
from segdet.evaluation import COCOEvaluator, RotatedCOCOEvaluator
from segdet.structures import Boxes, BoxMode, Instances, RotatedBoxes

NAME = "rotated_here"


@pytest.fixture(autouse=True)
def _clean_catalog():
    yield
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def register(boxes_of_image, mode=BoxMode.XYWHA_ABS, **fields) -> None:
    records = [
        {
            "file_name": f"{i}.png",
            "image_id": i,
            "height": 200,
            "width": 200,
            "annotations": [
                {"bbox": box, "bbox_mode": mode, "category_id": k % 2, **fields}
                for k, box in enumerate(boxes)
            ],
        }
        for i, boxes in enumerate(boxes_of_image)
    ]
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(thing_classes=["ship", "plane"])


def results(evaluator, boxes_of_image, scores_of_image, kind=RotatedBoxes):
    evaluator.reset()
    for i, (boxes, scores) in enumerate(zip(boxes_of_image, scores_of_image, strict=True)):
        found = Instances((200, 200), pred_boxes=kind(torch.tensor(boxes)))
        found.scores = torch.tensor(scores)
        found.pred_classes = torch.arange(len(scores)) % 2
        evaluator.process([{"image_id": i}], [{"instances": found}])
    return evaluator.evaluate()


@pytest.mark.parametrize(
    "angle, passed",
    [
        (0.0, 10),
        (180.0, 10),  # the same square
        (45.0, 5),  # the octagon within both: IoU 1 / sqrt(2), above 0.50, 0.55, ... 0.70
    ],
)
def test_a_turned_square(angle, passed):
    register([[[50.0, 60, 40, 40, 0]]])
    got = results(RotatedCOCOEvaluator(NAME), [[[50.0, 60, 40, 40, angle]]], [[0.9]])
    assert list(got) == ["bbox"]
    assert got["bbox"]["AP"] == pytest.approx(10 * passed)
    assert got["bbox"]["AP50"] == pytest.approx(100)
    assert got["bbox"]["AP75"] == pytest.approx(100 if passed == 10 else 0)
    assert got["bbox"]["APm"] == got["bbox"]["AP-ship"] == pytest.approx(10 * passed)
    assert math.isnan(got["bbox"]["APs"]) and math.isnan(got["bbox"]["AP-plane"])


def test_a_long_box_turned_the_other_way_is_missed():
    """Their upright boxes are the same; the upright evaluator sees no difference."""
    register([[[50.0, 60, 80, 10, 45]]])
    assert results(RotatedCOCOEvaluator(NAME), [[[50.0, 60, 80, 10, -45]]], [[0.9]]) == {
        "bbox": pytest.approx(
            {"AP": 0, "AP50": 0, "AP75": 0, "APm": math.nan, "APl": math.nan}
            | {"APs": 0, "AP-ship": 0, "AP-plane": math.nan},
            nan_ok=True,
        )
    }


def test_a_better_scored_miss_halves_the_precision():
    register([[[50.0, 60, 80, 10, 30]]])
    boxes = [[[50.0, 60, 80, 10, -30], [9, 9, 1, 1, 0], [50, 60, 80, 10, 30]]]
    got = results(RotatedCOCOEvaluator(NAME), boxes, [[0.9, 0.8, 0.7]])
    assert got["bbox"]["AP"] == pytest.approx(50)


def upright_case():
    """30 images: objects, and detections near them or elsewhere; XYXY."""
    generator = torch.Generator().manual_seed(0)
    truth, found, scores = [], [], []
    for _ in range(30):
        count = int(torch.randint(0, 6, (), generator=generator))
        corner = torch.rand(count, 2, generator=generator) * 100
        size = 4 + torch.rand(count, 2, generator=generator) * 140
        boxes = torch.cat([corner, corner + size], 1).round()
        near = boxes + torch.randn(boxes.shape, generator=generator) * 4
        near[:, 2:] = torch.maximum(near[:, 2:], near[:, :2] + 1)
        truth.append(boxes.tolist())
        found.append(torch.cat([near, near[:2] + 30]))
        scores.append(torch.rand(len(found[-1]), generator=generator).mul(20).round().tolist())
    return truth, found, scores


def test_without_angles_it_is_the_upright_evaluator():
    truth, found, scores = upright_case()
    register(truth, mode=BoxMode.XYXY_ABS)
    as_lists = [boxes.tolist() for boxes in found]
    upright = results(COCOEvaluator(NAME), as_lists, scores, Boxes)
    assert 0 < upright["bbox"]["AP75"] < upright["bbox"]["AP50"] < 100
    turned = [
        BoxMode.convert(boxes, BoxMode.XYXY_ABS, BoxMode.XYWHA_ABS).tolist() for boxes in found
    ]
    rotated = results(RotatedCOCOEvaluator(NAME), turned, scores)
    assert rotated["bbox"] == pytest.approx(upright["bbox"], abs=1e-9)
    limited = RotatedCOCOEvaluator(NAME, max_dets_per_image=1)
    other = results(COCOEvaluator(NAME, max_dets_per_image=1), as_lists, scores, Boxes)
    assert results(limited, as_lists, scores, Boxes)["bbox"] == pytest.approx(other["bbox"])
    assert other["bbox"]["AP"] < upright["bbox"]["AP"]


def test_files_have_five_numbers(tmp_path):
    register([[[50.0, 60, 40, 20, 30]]])
    results(RotatedCOCOEvaluator(NAME, output_dir=tmp_path), [[[51.0, 60, 40, 20, 30]]], [[0.5]])
    (row,) = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert row == {"category_id": 0, "bbox": [51, 60, 40, 20, 30], "score": 0.5, "image_id": 0}
    (truth,) = json.loads((tmp_path / f"{NAME}_coco_format.json").read_text())["annotations"]
    assert truth["bbox"] == [50, 60, 40, 20, 30] and truth["area"] == 800


def test_what_it_cannot_do_is_refused():
    register([[[50.0, 60, 40, 20, 30]]], iscrowd=1)
    with pytest.raises(ConfigError, match="this evaluation knows the tasks bbox; got"):
        RotatedCOCOEvaluator(NAME, ("bbox", "segm"))
    with pytest.raises(DataError, match="1 annotations have iscrowd 1"):
        RotatedCOCOEvaluator(NAME)
    with pytest.raises(DataError, match=r"annotation 1 has a rotated box; .*RotatedCOCOEvaluator"):
        COCOEvaluator(NAME)


def test_the_upright_evaluator_refuses_rotated_detections():
    register([[[50.0, 60, 90, 80]]], mode=BoxMode.XYXY_ABS)
    with pytest.raises(DataError, match="image 0: the boxes are rotated"):
        results(COCOEvaluator(NAME), [[[50.0, 60, 40, 20, 30]]], [[0.5]])
