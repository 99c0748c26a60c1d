from dataclasses import replace

import numpy as np
import pytest

from segdet.evaluation.analysis import GAINS, KINDS, find_errors
from segdet.evaluation.coco_metrics import hotcoco_datasets, image_and_category_rows
from segdet.evaluation.matching import match_detections
from tests.evaluation.sets import found_of, random_set, truth_of

OBJECTS = [[10, 10, 40, 40], [100, 10, 40, 40], [10, 100, 40, 40], [100, 100, 40, 40]]
PLANTED = [  # kind, class, score, box, the object that it is about
    ("correct", 0, 0.95, [10, 10, 40, 40], 0),
    ("duplicate", 0, 0.9, [11, 10, 40, 40], 0),
    ("classification", 1, 0.8, [101, 10, 40, 40], 1),
    ("classification", 1, 0.7, [100, 10, 40, 40], 1),
    ("localisation", 0, 0.6, [10, 120, 40, 40], 2),  # IoU 1/3
    ("both", 1, 0.5, [10, 80, 40, 40], 2),
    ("background", 0, 0.4, [180, 150, 30, 30], -1),
    ("ignored", 1, 0.3, [180, 60, 30, 30], 4),  # on a crowd
]


def planted():
    truth = truth_of(
        [0] * 5, [0, 0, 0, 1, 1], [*OBJECTS, [180, 60, 30, 30]], [False] * 4 + [True], categories=2
    )
    _, classes, scores, boxes, _ = zip(*PLANTED, strict=True)
    return truth, found_of([0] * len(boxes), classes, scores, boxes)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_each_planted_error_is_named(kind):
    truth, found = planted()
    order = np.random.default_rng(0).permutation(len(found))
    rows = {name: getattr(found, name)[order] for name in ("image", "category", "scores", "boxes")}
    shuffled = replace(found, masks=[found.masks[i] for i in order], **rows)
    errors = find_errors(match_detections(truth, shuffled, kind))
    assert [KINDS[k] for k in errors.kind] == [PLANTED[i][0] for i in order]
    assert errors.object.tolist() == [PLANTED[i][4] for i in order]
    # Nothing is near object 3; objects 1 and 2 were seen, as another class or elsewhere.
    assert errors.missed.tolist() == [False, False, False, True, False]
    assert errors.found_by.tolist() == [int(np.flatnonzero(order == 0)[0]), -1, -1, -1, -1]
    assert errors.counts() == {
        **{"correct": 1, "classification": 2, "localisation": 1, "both": 1, "duplicate": 1},
        **{"background": 1, "ignored": 1, "missed": 1},
    }


def test_gains_by_hand():
    truth, found = planted()
    matches = match_detections(truth, found, "bbox")
    errors = find_errors(matches)
    # Class 0: 1 of 3 objects, found first: 34 of 101 recalls. Class 1: 1 object, not found.
    assert errors.ap == pytest.approx(34 / 101 / 2)
    assert list(errors.gains) == list(GAINS)
    zero = {"both", "duplicate", "background"}
    assert all(errors.gains[name] == pytest.approx(0) for name in zero)
    # The better of two of class 1 becomes a hit of class 0: found 1, duplicate, 2.
    assert errors.gains["classification"] == pytest.approx((34 + 33 * 2 / 3 - 34) / 101 / 2)
    # found 1, duplicate, 2
    assert errors.gains["localisation"] == pytest.approx(33 * 2 / 3 / 101 / 2)
    # Class 1 has no object left that it would have to find: only class 0 counts.
    assert errors.gains["missed"] == pytest.approx(34 / 101 - 34 / 101 / 2)
    assert errors.counts_by_class(matches).tolist() == [[0, 1, 0, 1, 1, 0], [2, 0, 1, 0, 0, 1]]


def test_overlaps_are_with_the_object_of_the_error():
    errors = find_errors(match_detections(*planted(), "bbox"))
    expected = [1, 39 / 41, 39 / 41, 1, 1 / 3, 1 / 3, 0, 0]
    assert errors.overlap == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(4))
def test_counts_and_gains_are_those_of_hotcoco(seed, kind):
    hotcoco = pytest.importorskip("hotcoco")
    truth, found = random_set(seed)
    truth = replace(truth, crowd=np.zeros(len(truth), bool))  # it takes crowds for objects
    found.scores[:] = np.random.default_rng(0).permutation(len(found)) / len(found)  # no ties
    datasets = hotcoco_datasets(truth, found, kind, *image_and_category_rows(truth))
    peer = hotcoco.COCOeval(*datasets, kind)
    peer.evaluate()
    peer.accumulate()
    theirs = peer.tide_errors()
    ours = find_errors(match_detections(truth, found, kind))
    assert ours.ap == pytest.approx(theirs["ap_base"], abs=1e-12)
    names = zip(GAINS, ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"), strict=True)
    for name, theirs_name in names:
        assert ours.counts()[name] == theirs["counts"][theirs_name]
        assert ours.gains[name] == pytest.approx(theirs["delta_ap"][theirs_name], abs=1e-12)


def test_nothing_to_find_and_nothing_found():
    box = OBJECTS[:1]
    alarm = find_errors(
        match_detections(truth_of([], [], []), found_of([0], [0], [0.5], box), "bbox")
    )
    assert alarm.counts()["background"] == 1 and np.isnan(alarm.ap)
    missed = find_errors(
        match_detections(truth_of([0], [0], box), found_of([], [], [], []), "bbox")
    )
    assert missed.counts()["missed"] == 1 and missed.ap == 0
    assert np.isnan(missed.gains["missed"])  # then there is nothing to find


def test_only_cocos_ious():
    with pytest.raises(ValueError, match=r"iou must be one of 0\.50, 0\.55, .*, is 0\.52"):
        find_errors(match_detections(*planted(), "bbox"), 0.52)
