from dataclasses import replace

import numpy as np
import pytest

from segdet.errors import DataError
from segdet.evaluation.analysis import compare, confidence_intervals
from segdet.evaluation.matching import match_detections
from tests.evaluation.sets import found_of, random_set, truth_of

BOX = [10, 10, 40, 40]


def coin(hits: int, images: int = 40):
    """One object an image, found in some of them; nothing else is found."""
    truth = truth_of(np.arange(images), [0] * images, [BOX] * images, images=images)
    scores = np.linspace(0.9, 0.1, hits)
    return match_detections(
        truth, found_of(np.arange(hits), [0] * hits, scores, [BOX] * hits), "bbox"
    )


def test_an_interval_is_that_of_the_share_it_measures():
    # AP is the share of images with a hit: binomial, standard deviation sqrt(0.25 / 40) = 0.079.
    interval = confidence_intervals(coin(20)).overall["AP"]
    assert interval.value == pytest.approx(51 / 101)
    assert interval.low == pytest.approx(0.5 - 1.96 * 0.079, abs=0.03)
    assert interval.high == pytest.approx(0.5 + 1.96 * 0.079, abs=0.03)
    narrow = confidence_intervals(coin(20), confidence=0.5).overall["AP"]
    assert narrow.high - narrow.low < 0.5 * (interval.high - interval.low)


def test_a_seed_gives_the_same_numbers():
    matches = match_detections(*random_set(0), "bbox")
    one, same, other = (confidence_intervals(matches, samples=70, seed=s) for s in (1, 1, 2))
    assert one.overall == same.overall and one.overall != other.overall
    assert np.isnan(one.classes[3].value) and np.isnan(one.classes[3].low)
    assert 0 <= one.classes[0].low <= one.classes[0].high <= 1


def test_runs_that_differ_are_told_apart_and_equal_ones_are_not():
    clear = compare(coin(35), coin(15))
    assert clear.overall["AP"].value == pytest.approx(20 / 40, abs=0.01)
    assert clear.overall["AP"].low > 0.2 and clear.overall["AP"].p_value < 0.01
    assert clear.classes[0].p_value < 0.01
    back = compare(coin(15), coin(35)).overall["AP"]
    assert back.high < 0 and back.p_value == clear.overall["AP"].p_value
    same = compare(coin(20), coin(20)).overall["AP"]
    assert (same.value, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_p_values_are_even_where_runs_do_not_differ():
    # Two runs that find one half of the images each: over many pairs, p < 0.2 in 20 %.
    rng = np.random.default_rng(0)
    images, low = 30, 0
    truth = truth_of(np.arange(images), [0] * images, [BOX] * images, images=images)
    for _ in range(20):
        runs = []
        for _ in range(2):
            seen = np.flatnonzero(rng.random(images) < 0.5)
            runs.append(found_of(seen, [0] * len(seen), rng.random(len(seen)), [BOX] * len(seen)))
        pair = [match_detections(truth, replace(run, masks=None), "bbox") for run in runs]
        low += compare(*pair, samples=60).overall["AP"].p_value < 0.2
    assert 1 <= low <= 9  # of 20, 4 are expected


def test_other_annotations_are_refused():
    with pytest.raises(DataError, match="have other images or categories"):
        compare(coin(3), coin(3, images=41))
