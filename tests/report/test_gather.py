import pytest

from segdet.report.gather import thinned


def test_short_curves_stay_whole():
    assert thinned([(0, 1.0), (5, None), (9, 1 / 3)]) == [(0, 1.0), (5, None), (9, 0.33333)]
    assert thinned([]) == []


@pytest.mark.parametrize("length", [601, 5000, 12345])
def test_long_curves_keep_their_ends_and_spikes(length):
    points = [(i, 1 / (1 + i)) for i in range(length)]
    points[length // 2] = (length // 2, 7.0)
    points[length // 3] = (length // 3, -7.0)
    points[9] = (9, None)
    short = thinned(points)
    assert len(short) <= 602 and short == sorted(short)
    assert short[0] == (0, 1.0) and short[-1][0] == length - 1
    assert {(length // 2, 7.0), (length // 3, -7.0)} <= set(short)
