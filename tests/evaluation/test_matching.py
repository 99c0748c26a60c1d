from dataclasses import replace

import numpy as np
import pytest

from segdet.evaluation.matching import SIZES, match_detections
from tests.evaluation.sets import found_of, random_set, truth_of

BOXES = [[10, 10, 50, 40], [100, 20, 60, 80]]


def test_each_detection_takes_the_free_object_that_it_overlaps_most():
    truth = truth_of([0, 0], [0, 0], [[0, 0, 40, 40], [4, 0, 40, 40]])
    boxes = [[2, 0, 40, 40], [0, 0, 40, 40], [3, 0, 40, 40]]
    found = found_of([0] * 3, [0] * 3, [0.5, 0.9, 0.8], boxes)
    matches = match_detections(truth, found, "bbox")
    assert matches.matched[0, 0].tolist() == [-1, 0, 1]
    assert matches.order.tolist() == [1, 2, 0]  # the best first
    expected = np.array([[1, 36 / 44], [37 / 43, 39 / 41], [38 / 42, 38 / 42]])
    assert matches.overlaps[0] == pytest.approx(expected)
    # At 0.95 the third, too, has one to take: 0.951.
    assert matches.hits().sum(1).tolist() == [2] * 10


def test_of_equal_overlaps_the_last_object_is_taken():
    truth = truth_of([0, 0], [0, 0], [BOXES[0]] * 2)
    matches = match_detections(truth, found_of([0], [0], [0.9], BOXES[:1]), "bbox")
    assert (matches.matched[0] == 1).all()


def test_a_crowd_is_taken_by_many_and_only_where_nothing_else_is():
    truth = truth_of([0, 0], [0, 0], [BOXES[0]] * 2, crowd=[False, True])
    found = found_of([0] * 3, [0] * 3, [0.9, 0.8, 0.7], [BOXES[0]] * 3)
    matches = match_detections(truth, found, "segm")
    assert matches.matched[0, 0].tolist() == [0, 1, 1]
    assert matches.ignored[0, 0].tolist() == [False, True, True]


def test_objects_and_finds_of_another_size_do_not_count():
    truth = truth_of([0, 0], [0, 0], [BOXES[0], [100, 100, 20, 20]])
    matches = match_detections(
        truth, found_of([0, 0], [0, 0], [0.9, 0.8], [BOXES[0], [150, 20, 20, 20]]), "bbox"
    )
    small = SIZES.index("small")
    assert matches.object_ignored[small].tolist() == [True, False]
    assert matches.ignored[small, 0].tolist() == [True, False]  # the second is a false alarm
    assert matches.ignored[0, 0].tolist() == [False, False]


def test_only_the_best_of_an_image_and_class_count():
    truth = truth_of([0, 1], [0, 0], [BOXES[0]] * 2, images=2, categories=2)
    found = found_of([0, 0, 0, 1], [0, 0, 1, 0], [0.1, 0.2, 0.1, 0.1], [BOXES[0]] * 4)
    matches = match_detections(truth, found, "bbox", max_detections=1)
    assert matches.order.tolist() == [1, 2, 3]
    assert matches.ignored[0, 0].tolist() == [True, False, False, False]
    assert matches.rows_of(1)[0].tolist() == [3] and matches.rows_of(1)[1].tolist() == [1]


def test_masks_rank_by_their_own_scores():
    truth, found = random_set(0)
    reverse = replace(found, mask_scores=-found.scores)
    assert (match_detections(truth, reverse, "segm").found.scores == -found.scores).all()
    assert (match_detections(truth, reverse, "bbox").found.scores == found.scores).all()


def test_what_cannot_be_matched_is_refused():
    truth, found = random_set(0)
    with pytest.raises(ValueError, match="nothing to match by 'keypoints'"):
        match_detections(truth, found, "keypoints")
    with pytest.raises(ValueError, match="nothing to match by 'segm'"):
        match_detections(truth, replace(found, masks=None), "segm")
