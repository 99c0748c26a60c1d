from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from segdet.data import DatasetMapper
from segdet.data import transforms as T
from segdet.data.readers.panoptic_json import read_panoptic_json
from segdet.data.sem_seg import IGNORE_LABEL, has_sem_seg, labels_of_segments, read_sem_seg
from segdet.data.transforms import AugInput, AugmentationList
from segdet.errors import DataError

from .conftest import PanopticFolder


def test_labels_of_segments():
    ids = np.array([[0, 5, 5], [70_000, 9, 0]])
    rows = [{"id": i, "sem_seg_label": k} for i, k in ((9, 2), (5, 0), (70_000, 3))]
    labels = labels_of_segments("x.png", ids, rows)
    assert labels.dtype == np.uint8
    assert labels.tolist() == [[IGNORE_LABEL, 0, 0], [3, 2, IGNORE_LABEL]]
    assert (labels_of_segments("x.png", ids * 0, []) == IGNORE_LABEL).all()
    with pytest.raises(DataError, match=r"x\.png: has pixels of segment 9, which segments_info"):
        labels_of_segments("x.png", ids, [rows[1], rows[2]])
    with pytest.raises(DataError, match=r"x\.png: has pixels of segment 70000, which"):
        labels_of_segments("x.png", ids, rows[:2])
    with pytest.raises(DataError, match=r"x\.png: segment 6 of segments_info has no pixel"):
        labels_of_segments("x.png", ids, [*rows, {"id": 6, "sem_seg_label": 1}])


def test_read_from_segments_or_from_a_file(panoptic_folder: PanopticFolder):
    record = read_panoptic_json(*panoptic_folder.write()).records[0]
    assert has_sem_seg(record)
    expected = np.full((60, 80), IGNORE_LABEL)
    expected[:30], expected[40:50, 10:30], expected[50:, 60:] = 1, 0, 0
    assert (read_sem_seg(record) == expected).all()
    file = panoptic_folder.pngs / "labels.png"
    Image.fromarray((expected // 2).astype(np.uint8)).save(file)
    assert (read_sem_seg(record | {"sem_seg_file_name": str(file)}) == expected // 2).all()
    with pytest.raises(DataError, match=r"labels\.png: the map is 80 x 60 .* is 80 x 61"):
        read_sem_seg({"sem_seg_file_name": str(file), "height": 61, "width": 80})


def test_what_has_labels():
    segment = {"id": 1, "category_id": 0, "isthing": True}
    assert not has_sem_seg({"file_name": "x"})
    assert not has_sem_seg({"pan_seg_file_name": "x", "segments_info": [segment]}), "detectron2's"
    labelled = segment | {"sem_seg_label": 0}
    assert has_sem_seg({"pan_seg_file_name": "x", "segments_info": [labelled]})
    void = {"pan_seg_file_name": "x", "segments_info": []}
    assert not has_sem_seg(void), "its set may be detectron2's"
    assert has_sem_seg(void | {"sem_seg_label": IGNORE_LABEL})
    assert has_sem_seg({"sem_seg_file_name": "x"})


def test_mapper_makes_labels_on_the_way(panoptic_folder: PanopticFolder):
    record = read_panoptic_json(*panoptic_folder.write()).records[0]
    flip = T.HFlipTransform(80)
    mapper = DatasetMapper(True, augmentations=[flip], image_format="RGB")
    out = mapper(record)
    assert (out["sem_seg"].numpy() == read_sem_seg(record)[:, ::-1]).all()
    assert "instances" not in out and out["segments_info"] == record["segments_info"]


@pytest.mark.parametrize("seed", range(8))
def test_labels_stay_on_their_pixels(seed: int):
    """An image that shows its own labels, through crop, resize and flip."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 2, (6, 8)).astype(np.uint8)
    labels = np.kron(blocks, np.ones((20, 20), np.uint8))
    image = np.repeat(labels[:, :, None] * 255, 3, axis=2)
    augmentations = AugmentationList(
        [
            T.RandomCrop("relative_range", (0.4, 0.4)),
            T.ResizeShortestEdge((50, 150), 400, "range"),
            T.RandomFlip(),
            T.RandomFlip(horizontal=False, vertical=True),
        ]
    )
    np.random.seed(seed)
    aug_input = AugInput(image, sem_seg=labels)
    transforms = augmentations(aug_input)
    moved = aug_input.sem_seg
    assert moved is not None and moved.shape == aug_input.image.shape[:2]
    assert (moved == transforms.apply_segmentation(labels)).all()
    assert set(np.unique(moved)) <= {0, 1}, "no new labels"
    grey = aug_input.image[:, :, 0] / 255.0
    sharp = np.abs(grey - 0.5) > 0.45  # not on a border, where pixels mix
    assert sharp.mean() > 0.6 and (moved[sharp] == (grey[sharp] > 0.5)).all()
