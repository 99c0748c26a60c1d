from dataclasses import replace

import numpy as np
import pytest

from segdet.evaluation.average_precision import precision_recall, resampled_ap
from segdet.evaluation.coco_metrics import pycocotools_curves
from segdet.evaluation.matching import match_detections
from tests.evaluation.sets import found_of, random_set, truth_of


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(5))
def test_numbers_are_those_of_pycocotools_to_the_last_bit(seed, kind):
    truth, found = random_set(seed)
    for limit in (100, 3):
        expected = pycocotools_curves(truth, found, kind, [1, 2, limit], ())
        actual = precision_recall(match_detections(truth, found, kind, max_detections=limit))
        for ours, theirs in zip(actual, expected, strict=True):
            assert theirs.max() > 0 and theirs.min() == -1
            np.testing.assert_array_equal(ours, theirs[..., -1])


def test_a_weight_is_the_same_as_so_many_copies_of_an_image():
    truth, found = random_set(3)
    # Of tied scores, which of the copies comes first would matter.
    found = replace(found, scores=np.random.default_rng(0).permutation(len(found)) / len(found))
    weights = np.array([[1, 1, 1, 1, 1, 1], [0, 3, 1, 0, 2, 0], [0, 0, 0, 0, 0, 6]])
    aps = resampled_ap(match_detections(truth, found, "bbox"), weights)
    for ap, weight in zip(aps, weights, strict=True):
        drawn = match_detections(*copies(truth, found, weight), "bbox")
        expected = precision_recall(drawn)[0][..., 0].mean(1)  # (T, K)
        np.testing.assert_allclose(ap, np.where(expected < 0, np.nan, expected), atol=1e-12)
    assert np.isnan(aps[2]).all()  # the last image shows nothing


def copies(truth, found, weight):
    """The data set with as many copies of each image, under new ids."""
    image = np.repeat(np.arange(len(weight)), weight)
    sets = []
    for one in (truth, found):
        rows = [
            (new, row) for new, old in enumerate(image) for row in np.flatnonzero(one.image == old)
        ]
        new, row = np.array(rows, dtype=np.int64).reshape(-1, 2).T
        fields = {"category": one.category[row], "boxes": one.boxes[row], "image": new, "masks": []}
        if one is truth:
            fields |= {"areas": one.areas[row], "crowd": one.crowd[row]}
            fields |= {"image_ids": list(range(len(image))), "image_sizes": one.image_sizes[image]}
        else:
            fields["scores"] = one.scores[row]
        sets.append(replace(one, **fields))
    return sets


def test_nothing_to_find_and_nothing_found():
    box = [[10, 10, 50, 40]]
    nothing = match_detections(truth_of([], [], []), found_of([0], [0], [0.5], box), "segm")
    assert {*precision_recall(nothing)[0].flat} == {-1}
    assert np.isnan(resampled_ap(nothing, np.ones((1, 1), int))).all()
    missed = match_detections(truth_of([0], [0], box), found_of([], [], [], []), "segm")
    assert precision_recall(missed)[0][:, :, 0, 0].max() == 0
    assert (resampled_ap(missed, np.ones((1, 1), int)) == 0).all()
