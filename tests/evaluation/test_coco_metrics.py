from dataclasses import replace

import numpy as np
import pytest
import torch

from segdet.evaluation import coco_metrics as module
from segdet.evaluation.coco_metrics import BACKENDS, coco_metrics
from segdet.evaluation.rle import encode_masks
from tests.evaluation.sets import SIZE, found_of, random_set, truth_of

NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


@pytest.fixture(params=sorted(BACKENDS))
def backend(request) -> str:
    return request.param


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(10))
def test_backends_give_equal_numbers(seed, kind):
    truth, found = random_set(seed)
    for limit in (100, 3):
        fast = coco_metrics(truth, found, kind, backend="hotcoco", max_detections=limit)
        slow = coco_metrics(truth, found, kind, backend="pycocotools", max_detections=limit)
        assert fast.stats == pytest.approx(slow.stats, abs=1e-12)
        assert fast.category_ap == pytest.approx(slow.category_ap, abs=1e-12)
        assert 0 < fast.stats["AP"] < 1 and fast.category_ap[3] == -1


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_two_perfect_finds_are_perfect_whatever_the_first_id(backend, kind):
    boxes = [[10, 10, 50, 40], [100, 20, 60, 80]]
    metrics = coco_metrics(
        truth_of([0, 0], [0, 0], boxes), found_of([0, 0], [0, 0], [0.9, 0.8], boxes), kind,
        backend=backend,
    )  # fmt: skip
    assert metrics.stats["AP"] == pytest.approx(1) and list(metrics.stats) == NAMES
    assert metrics.category_ap == pytest.approx([1])


def test_one_miss_and_one_false_alarm_by_hand(backend):
    truth = truth_of([0, 0], [0, 0], [[10, 10, 50, 40], [100, 20, 60, 80]])
    found = found_of([0, 0], [0, 0], [0.9, 0.8], [[180, 150, 20, 20], [10, 10, 50, 40]])
    stats = coco_metrics(truth, found, "bbox", backend=backend).stats
    # Precision 1/2 up to recall 1/2: 51 of the 101 recall points.
    assert stats["AP"] == pytest.approx(0.5 * 51 / 101)
    assert stats["AR1"] == 0 and stats["AR100"] == pytest.approx(0.5)
    assert stats["APl"] == -1


def test_masks_have_their_own_sizes(backend):
    # An ellipse in a box of 34 x 34 covers 908 pixels: small by mask, medium by box.
    box = [[10, 10, 34, 34]]
    truth = truth_of([0], [0], box)
    found = found_of([0], [0], [0.9], [[120, 120, 34, 34]])
    assert coco_metrics(truth, found, "segm", backend=backend).stats["ARm"] == -1
    stats = coco_metrics(truth, found_of([0, 0], [0, 0], [0.9, 0.8], box * 2), "segm").stats
    assert stats["APs"] == pytest.approx(1)


def test_objects_without_a_mask_are_regions_where_nothing_counts(backend, caplog):
    truth = truth_of([0, 0], [0, 0], [[10, 10, 50, 40], [100, 20, 60, 80]])
    truth.masks[1] = None
    found = found_of([0, 0], [0, 0], [0.8, 0.9], truth.boxes)
    stats = coco_metrics(truth, found, "segm", backend=backend).stats
    assert stats["AP"] == pytest.approx(1)
    assert "here: 1 of 2 annotations have no mask" in caplog.text


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_nothing_found_is_zero_and_nothing_to_find_is_undefined(backend, kind):
    some, none = [[10, 10, 50, 40]], np.zeros((0, 4))
    missed = coco_metrics(
        truth_of([0], [0], some), found_of([], [], [], none), kind, backend=backend
    )
    assert missed.stats["AP"] == 0 and missed.category_ap.tolist() == [0]
    undefined = coco_metrics(
        truth_of([], [], none), found_of([0], [0], [0.5], some), kind, backend=backend
    )
    assert set(undefined.stats.values()) == {-1} and undefined.category_ap.tolist() == [-1]


def test_pycocotools_stands_in_where_hotcoco_is_missing(monkeypatch):
    assert module.default_backend() == "hotcoco"
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert module.default_backend() == "pycocotools"


def test_what_cannot_be_evaluated_is_refused():
    truth, found = random_set(0)
    with pytest.raises(ValueError, match="must be one of bbox, segm, keypoints, boundary, is 'x'"):
        coco_metrics(truth, found, "x")
    with pytest.raises(ValueError, match="nothing to evaluate for keypoints"):
        coco_metrics(truth, found, "keypoints")
    with pytest.raises(ValueError, match="nothing to evaluate for segm"):
        coco_metrics(truth, replace(found, masks=None), "segm")


def square(y: int) -> np.ndarray:
    """(H, W) bool: 40 x 40 pixels below y."""
    mask = np.zeros(SIZE, bool)
    mask[y : y + 40, 10:50] = True
    return mask


def test_boundary_ap_counts_the_overlap_of_edges():
    box = np.array([[10.0, 10, 40, 40]])
    masks = [encode_masks(torch.from_numpy(square(y))[None]) for y in (10, 13)]
    truth = replace(truth_of([0], [0], box), masks=masks[0])
    found = replace(found_of([0], [0], [0.9], box), masks=masks[1])
    assert coco_metrics(truth, found, "segm").stats["AP"] == pytest.approx(0.8)  # IoU 37 / 43
    edges = [square(10), square(13)]
    for y, edge in zip((10, 13), edges, strict=True):
        edge[y + 6 : y + 34, 16:44] = False  # 6 pixels are 2% of SIZE's diagonal
    iou = (edges[0] & edges[1]).sum() / (edges[0] | edges[1]).sum()
    expected = np.mean(np.linspace(0.5, 0.95, 10) <= iou)
    assert 0 < expected < 0.8
    assert coco_metrics(truth, found, "boundary").stats["AP"] == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(2))
def test_boundary_ap_is_at_most_that_of_masks(seed):
    truth, found = random_set(seed)
    boundary = coco_metrics(truth, found, "boundary").stats
    segm = coco_metrics(truth, found, "segm").stats
    assert all(boundary[name] <= segm[name] + 1e-12 for name in segm)
    same = found_of(truth.image, truth.category, np.ones(len(truth)), truth.boxes)
    perfect = coco_metrics(truth, same, "boundary").stats["AP"]
    assert perfect == coco_metrics(truth, same, "segm").stats["AP"]
