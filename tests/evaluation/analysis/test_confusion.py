from dataclasses import replace

import numpy as np
import pytest

from segdet.evaluation.analysis import confusion_matrix
from segdet.evaluation.coco_metrics import hotcoco_datasets, image_and_category_rows
from segdet.evaluation.matching import match_detections
from tests.evaluation.sets import found_of, random_set, truth_of

BOXES = [[10, 10, 40, 40], [100, 10, 40, 40], [10, 100, 40, 40]]
EMPTY = [180, 150, 30, 30]


def test_pairs_of_classes_by_hand():
    truth = truth_of([0, 0, 0], [0, 0, 1], BOXES, categories=2)
    found = found_of(
        [0] * 5, [0, 1, 1, 0, 1], [0.9, 0.8, 0.7, 0.6, 0.4],
        [BOXES[0], BOXES[0], BOXES[1], EMPTY, BOXES[2]],
    )  # fmt: skip
    matches = match_detections(truth, found, "segm")
    # Object 1 is taken for class 1; the second find has nothing left; the last is too unsure.
    assert confusion_matrix(matches).counts.tolist() == [[1, 1, 0], [0, 0, 1], [1, 1, 0]]
    sure = confusion_matrix(matches, score=0.4)
    assert sure.counts.tolist() == [[1, 1, 0], [0, 1, 0], [1, 1, 0]]
    assert sure.shares().tolist() == [[0.5, 0.5, 0], [0, 1, 0], [0.5, 0.5, 0]]


def test_crowds_are_neither_covered_nor_missed():
    truth = truth_of([0, 0], [0, 1], BOXES[:2], crowd=[False, True], categories=2)
    found = found_of([0] * 2, [1, 0], [0.9, 0.9], [BOXES[1]] * 2)
    matches = match_detections(truth, found, "bbox")
    assert confusion_matrix(matches).counts.tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize("seed", range(3))
def test_counts_are_those_of_hotcoco(seed):
    hotcoco = pytest.importorskip("hotcoco")
    truth, found = random_set(seed)
    truth = replace(truth, crowd=np.zeros(len(truth), bool))
    found = replace(found, scores=np.random.default_rng(0).permutation(len(found)) / len(found))
    datasets = hotcoco_datasets(truth, found, "bbox", *image_and_category_rows(truth))
    theirs = hotcoco.COCOeval(*datasets, "bbox").confusion_matrix(min_score=0.3)["matrix"]
    ours = confusion_matrix(match_detections(truth, found, "bbox"), score=0.3).counts
    np.testing.assert_array_equal(ours, theirs)
