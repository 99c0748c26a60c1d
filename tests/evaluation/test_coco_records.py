import json

import pytest

from segdet.errors import DataError
from segdet.evaluation.coco_records import read_ground_truth


@pytest.fixture
def read(tmp_path):
    """Reads one annotation of a 6 x 8 image."""

    def read(**annotation):
        row = {"id": 7, "image_id": 3, "category_id": 9, "iscrowd": 0, "bbox": [1, 2, 4, 3]}
        content = {
            "images": [{"id": 3, "height": 6, "width": 8, "file_name": "x.png"}],
            "categories": [{"id": 9, "name": "cat"}],
            "annotations": [row | annotation],
        }
        (tmp_path / "gt.json").write_text(json.dumps(content))
        return read_ground_truth(tmp_path / "gt.json")

    return read


def test_ids_become_places(read):
    truth = read(area=5, iscrowd=1)
    assert len(truth) == 1 and truth.image.tolist() == truth.category.tolist() == [0]
    assert truth.image_index == {3: 0} and truth.category_index == {9: 0}
    assert truth.areas.tolist() == [5] and truth.crowd.tolist() == [True]


@pytest.mark.parametrize(
    "segmentation, area",
    [
        (None, 12),
        ([[1, 2, 5, 2, 5, 5, 1, 5]], 12),
        ([[1, 2, 5, 2, 5, 5, 1, 5], [1, 2, 3, 2, 3, 4, 1, 4]], 12),  # a union, not a sum
        ({"size": [6, 8], "counts": [8, 3, 37]}, 3),
    ],
)
def test_an_absent_area_is_counted(read, segmentation, area):
    assert read(segmentation=segmentation).areas.tolist() == [area]


@pytest.mark.parametrize("area", ["12", -1, float("nan"), float("inf")])
def test_a_broken_area_is_named(read, area):
    with pytest.raises(DataError, match=r"gt.json: annotation 7: area must be a finite number"):
        read(area=area)


def test_a_test_set_has_no_annotations(shared_data):
    assert not read_ground_truth(shared_data / "nasty/json/no_annotations_key.json").annotated
    assert read_ground_truth(shared_data / "nasty/json/empty_annotations.json").annotated


def test_missing_sizes_are_read_from_the_images(shared_data):
    file = shared_data / "nasty/json/no_image_size.json"
    truth = read_ground_truth(file, str(shared_data / "nasty/images"))
    assert truth.image_sizes.tolist() == [[120, 160]] * 3
