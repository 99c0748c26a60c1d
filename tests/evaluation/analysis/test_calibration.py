import numpy as np
import pytest

from segdet.evaluation.analysis import calibrate
from segdet.evaluation.coco_metrics import hotcoco_datasets, image_and_category_rows
from segdet.evaluation.matching import match_detections
from tests.evaluation.sets import found_of, random_set, truth_of

BOXES = [[10, 10, 40, 40], [100, 10, 40, 40], [10, 100, 40, 40]]
EMPTY = [180, 150, 30, 30]


def test_bins_by_hand():
    truth = truth_of([0, 0], [0, 0], BOXES[:2], categories=2)
    found = found_of(
        [0] * 4, [0, 0, 0, 1], [0.95, 0.92, 0.2, 0.15], [BOXES[0], EMPTY, BOXES[1], EMPTY]
    )
    result = calibrate(match_detections(truth, found, "bbox"), bins=5)
    assert result.counts.tolist() == [2, 0, 0, 0, 2]  # 0.2 belongs to the bin below
    np.testing.assert_allclose(result.mean_score, [0.175, *[np.nan] * 3, 0.935])
    np.testing.assert_allclose(result.precision, [0.5, *[np.nan] * 3, 0.5])
    assert result.error == pytest.approx((2 * 0.325 + 2 * 0.435) / 4)
    assert result.class_error == pytest.approx([(0.8 + 2 * 0.435) / 3, 0.15])


def test_error_is_that_of_hotcoco():
    hotcoco = pytest.importorskip("hotcoco")
    truth, found = random_set(0)
    found.scores[:] = np.random.default_rng(0).random(len(found))
    datasets = hotcoco_datasets(truth, found, "segm", *image_and_category_rows(truth))
    peer = hotcoco.COCOeval(*datasets, "segm")
    peer.evaluate()
    theirs = peer.calibration()
    ours = calibrate(match_detections(truth, found, "segm"))
    assert ours.error == pytest.approx(theirs["ece"], abs=1e-12)
    assert ours.counts.tolist() == [one["count"] for one in theirs["bins"]]


def test_nothing_found_has_no_error():
    nothing = match_detections(truth_of([0], [0], BOXES[:1]), found_of([], [], [], []), "bbox")
    assert np.isnan(calibrate(nothing).error)
