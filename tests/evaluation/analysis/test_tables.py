import numpy as np
import pytest

from segdet.evaluation.analysis import curves_and_tables
from segdet.evaluation.coco_metrics import coco_metrics
from segdet.evaluation.matching import match_detections
from tests.evaluation.sets import random_set


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_numbers_are_the_evaluators(kind):
    truth, found = random_set(1)
    expected = coco_metrics(truth, found, kind, backend="pycocotools")
    curves, tables = curves_and_tables(match_detections(truth, found, kind))
    means = tables.over_classes()
    for name, size in (("", 0), ("s", 1), ("m", 2), ("l", 3)):
        assert means["ap"][size] == pytest.approx(expected.stats[f"AP{name}"], abs=1e-12)
        assert means["recall"][size] == pytest.approx(expected.stats[f"AR{name or 100}"], abs=1e-12)
    assert means["ap50"][0] == pytest.approx(expected.stats["AP50"], abs=1e-12)
    assert means["ap75"][0] == pytest.approx(expected.stats["AP75"], abs=1e-12)
    assert tables.ap[0, :3] == pytest.approx(expected.category_ap[:3], abs=1e-12)
    assert np.isnan(tables.ap[:, 3]).all() and (tables.objects[:, 3] == 0).all()
    assert tables.objects[0].sum() == (~truth.crowd).sum()
    assert tables.detections.sum() == len(found)
    assert curves.precision.shape == (2, 4, 101)
    areas = curves.mean_precision.mean(1)
    assert areas == pytest.approx([expected.stats["AP50"], expected.stats["AP75"]], abs=1e-12)
