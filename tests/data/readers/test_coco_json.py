from __future__ import annotations

import copy
import gc
import itertools
import json
import logging
import re
import time
from pathlib import Path

import pytest
import torch
from pycocotools.coco import COCO

from segdet.data import DatasetMapper
from segdet.data import transforms as T
from segdet.data.build import DataLoaderConfig
from segdet.data.readers.coco_json import read_coco_json
from segdet.errors import DataError
from segdet.structures import BoxMode

from ..conftest import SQUARE, CocoFolder, annotation

ALL = [6, 8, 2]  # objects of the three images
ONE_LESS = [5, 8, 2]  # the first annotation is left out

# nasty/README.md, file by file: the error, or the objects that training sees in each image.
NASTY: dict[str, str | list[int]] = {
    "ok.json": ALL,
    "missing_file.json": r"image id 2: image .*nope\.jpg does not exist",
    "duplicate_image_ids.json": "two images have the id 1",
    "duplicate_annotation_ids.json": "annotation 1: another annotation has the same id",
    "duplicate_category_ids.json": "two categories have the id 1",
    "duplicate_category_names.json": ALL,
    "empty_annotations.json": "nothing to train on in .*empty_annotations.json",
    "one_image_without_annotations.json": [6, 8],
    "no_annotations_key.json": "nothing to train on in .*no_annotations_key.json",
    "no_categories_key.json": "has no key 'categories'",
    "no_images_key.json": "has no key 'images'",
    "empty_images.json": "nothing to train on in .*empty_images.json",
    "zero_area_box.json": ONE_LESS,
    "zero_width_box.json": ONE_LESS,
    "negative_size_box.json": ONE_LESS,
    "box_outside_image.json": ONE_LESS,
    "box_partly_outside.json": ALL,
    "box_three_numbers.json": "annotation 1: bbox must be four numbers",
    "box_null.json": ALL,
    "polygon_two_points.json": ONE_LESS,
    "polygon_odd_length.json": r"annotation 1: .*odd count of numbers \(7\)",
    "polygon_collinear.json": ALL,
    "polygon_empty_list.json": ONE_LESS,
    "polygon_list_of_empty.json": ONE_LESS,
    "polygon_flat_list.json": ALL,
    "polygon_outside_image.json": ONE_LESS,
    "polygon_partly_outside.json": ALL,
    "polygon_self_intersecting.json": ALL,
    "polygon_huge_coords.json": "annotation 1: segmentation holds 1e.09, beyond 100000 pixels",
    "polygon_multi_part.json": ALL,
    "polygon_100k_points.json": ALL,
    "crowd_rle_uncompressed.json": ONE_LESS,
    "crowd_rle_compressed.json": ONE_LESS,
    "crowd_polygon.json": ONE_LESS,
    "all_crowd.json": "nothing to train on in .*all_crowd.json",
    "rle_uncompressed_not_crowd.json": ALL,
    "rle_compressed.json": ALL,
    "rle_mixed_with_polygons.json": ALL,
    "rle_size_mismatch.json": r"annotation 1: RLE size .* \[50, 50\], the image is \[120, 160\]",
    "rle_counts_bad_sum.json": "annotation 1: RLE counts sum to 1000020",
    "rle_counts_negative.json": "annotation 1: RLE counts must be >= 0, hold -50",
    "rle_garbage_string.json": "annotation 1: RLE counts are not a COCO RLE string",
    "rle_swapped_size.json": r"annotation 1: RLE size .* \[160, 120\], the image is \[120, 160\]",
    "rle_empty_mask.json": ONE_LESS,
    "segmentation_string.json": "annotation 1: segmentation must be polygons or an RLE",
    "segmentation_null.json": ONE_LESS,
    "no_segmentation.json": "none of the 16 objects has a segmentation",
    "no_bbox.json": ALL,
    "no_area.json": ALL,
    "no_iscrowd.json": ALL,
    "no_annotation_ids.json": ALL,
    "category_id_gaps.json": ALL,
    "category_id_zero.json": ALL,
    "categories_unsorted.json": ALL,
    "category_unused.json": ALL,
    "category_unicode_name.json": ALL,
    "unknown_image_id.json": "annotation 1: image_id 999 is no image",
    "unknown_category_id.json": "annotation 1: category_id 999 is no category",
    "string_numbers.json": "annotation 1: segmentation must hold numbers, holds '59.24'",
    "string_sizes.json": "image 1: height must be a whole number, is '120'",
    "string_image_ids.json": ALL,
    "float_ids.json": ALL,
    "huge_ids.json": ALL,
    "nan_coords.json": "annotation 1: segmentation holds NaN or Infinity",
    "inf_coords.json": "annotation 1: segmentation holds NaN or Infinity",
    "wrong_image_size.json": r"ok_1\.jpg: .* is 160 x 120 .* says 320 x 240",
    "swapped_image_size.json": r"ok_1\.jpg: .* is 160 x 120 .* says 120 x 160",
    "zero_image_size.json": r"image 1: .* must be >= 1, are 0 and 0 .*ok_1\.jpg",
    "no_image_size.json": ALL,
    "path_traversal.json": r"image 1: file_name '\.\./json.* leaves the image folder",
    "file_name_missing.json": "image 1: file_name must be text, is None",
    "image_broken_file.json": r"image id 2: image .*truncated_half\.jpg cannot be read",
    "image_exif_rotated.json": ALL,
    "many_annotations.json": [20000],
    "invalid_truncated.json": "is not valid JSON .*line 1 column 1501",
    "invalid_trailing_comma.json": "is not valid JSON .*line 1 column 5346",
    "empty_file.json": "is not valid JSON .*line 1 column 1",
    "top_level_list.json": "is a list; a results file",
    "top_level_null.json": "is null",
    "utf8_bom.json": ALL,
    "utf16.json": ALL,
    "deep_nesting.json": "nested too deeply",
    "duplicate_keys.json": "has the key 'images' twice",
}

# Files that are read with a warning, which names what was counted.
WARNED = {
    "duplicate_category_names.json": "share the name 'date'",
    "zero_area_box.json": r"1 x box without area, annotation dropped \(annotation 1\)",
    "zero_width_box.json": "1 x box without area",
    "negative_size_box.json": "1 x box without area",
    "box_outside_image.json": "1 x box outside the image, annotation dropped",
    "box_null.json": "1 x bbox missing, derived from the mask",
    "polygon_two_points.json": "1 x polygon of fewer than 3 points, left out",
    "polygon_empty_list.json": "Left out 1 of 16 objects: they have a box but no mask",
    "polygon_list_of_empty.json": "1 x segmentation without a polygon, annotation dropped",
    "polygon_flat_list.json": "1 x segmentation is a flat list, taken as one polygon",
    "polygon_outside_image.json": "1 x box outside the image",
    "rle_empty_mask.json": "1 x empty mask, annotation dropped",
    "segmentation_null.json": "Left out 1 of 16 objects",
    "no_bbox.json": r"16 x bbox missing, .*annotation 5, \.\.\.",
    "no_annotation_ids.json": r"16 x annotation without id \(annotations\[0\]",
}


def train_targets(file: Path, images: Path) -> list:
    """What a mask model would be given of each image, after a resize and a flip."""
    section = DataLoaderConfig(mask_on=True)
    mapper = DatasetMapper(
        is_train=True,
        augmentations=[T.ResizeShortestEdge(90, 400), T.RandomFlip(1.0)],
        image_format="BGR",
        use_instance_mask=True,
    )
    records = section.load_training_records([f"{file}:{images}"])
    return [mapper(record)["instances"] for record in records]


def test_table_covers_every_nasty_file(nasty: Path):
    assert {file.name for file in (nasty / "json").iterdir()} == NASTY.keys()


@pytest.mark.parametrize("name", NASTY)
def test_nasty(nasty: Path, name: str, caplog: pytest.LogCaptureFixture):
    file, expected = nasty / "json" / name, NASTY[name]
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected) as caught:
            train_targets(file, nasty / "images")
        assert name in str(caught.value) or ".jpg" in str(caught.value) or "none" in expected
        return
    with caplog.at_level(logging.WARNING, logger="segdet.data"):
        targets = train_targets(file, nasty / "images")
    assert [len(one) for one in targets] == expected
    for one in targets:
        boxes = one.gt_boxes.tensor
        assert boxes.isfinite().all() and (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes >= 0).all() and (boxes <= boxes.new_tensor([120, 90, 120, 90])).all()
        assert ((one.gt_classes >= 0) & (one.gt_classes < 4)).all()
        masks = one.gt_masks.crop_and_resize(boxes[:50], 28) if len(one) <= 50 else None
        assert masks is None or masks.dtype == torch.bool
    warnings = [record.getMessage() for record in caplog.records]
    assert bool(warnings) == (name in WARNED), warnings
    if name in WARNED:
        assert any(re.search(WARNED[name], warning) for warning in warnings), warnings


def test_both_forms_of_rle_give_the_stated_mask(nasty: Path):
    for name in ("rle_uncompressed_not_crowd.json", "rle_compressed.json"):
        records = read_coco_json(nasty / "json" / name, nasty / "images").records
        mapper = DatasetMapper(
            is_train=True, augmentations=[], image_format="BGR", use_instance_mask=True
        )
        mask = mapper(records[0])["instances"].gt_masks.tensor[0]
        expected = torch.zeros(120, 160, dtype=torch.bool)
        expected[20:60, 30:90] = True
        assert (mask == expected).all()


def test_ids_are_kept_exactly(nasty: Path):
    records = read_coco_json(nasty / "json/huge_ids.json", nasty / "images").records
    assert [record["image_id"] for record in records] == [2**40 + 1, 2**40 + 2, 2**40 + 3]
    records = read_coco_json(nasty / "json/string_image_ids.json", nasty / "images").records
    assert [record["image_id"] for record in records] == ["a", "b", "c"]
    records = read_coco_json(nasty / "json/float_ids.json", nasty / "images").records
    assert [type(record["image_id"]) for record in records] == [int] * 3


def test_classes_are_numbered_by_id(nasty: Path):
    gaps = read_coco_json(nasty / "json/category_id_gaps.json", nasty / "images")
    assert gaps.metadata["thing_dataset_id_to_contiguous_id"] == {7: 0, 90: 1, 1003: 2}
    unsorted = read_coco_json(nasty / "json/categories_unsorted.json", nasty / "images")
    assert unsorted.metadata["thing_classes"] == ["date", "fig", "hazelnut"]
    from_zero = read_coco_json(nasty / "json/category_id_zero.json", nasty / "images")
    assert from_zero.metadata["thing_dataset_id_to_contiguous_id"] == {0: 0, 1: 1, 2: 2}
    base = read_coco_json(nasty / "json/ok.json", nasty / "images")
    for other in (gaps, unsorted, from_zero):
        assert classes_of(other) == classes_of(base)


def classes_of(data) -> list[list[int]]:
    return [[a["category_id"] for a in record["annotations"]] for record in data.records]


def test_record_is_a_standard_dict(coco_folder: CocoFolder):
    coco_folder.tree["images"].reverse()
    json_file, images = coco_folder.write()
    data = read_coco_json(json_file, images, extra_annotation_keys=["area", "id"])
    assert data.metadata == {
        "thing_classes": ["dog", "cat"],
        "thing_dataset_id_to_contiguous_id": {1: 0, 3: 1},
    }
    assert data.records == [
        {
            "file_name": str(images / "0.png"),
            "height": 60,
            "width": 80,
            "image_id": 1,
            "annotations": [
                {
                    "iscrowd": 0,
                    "category_id": 1,
                    "bbox": [20, 10, 40, 30],
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "segmentation": [SQUARE],
                    "area": 1200,
                    "id": 1,
                }
            ],
        },
        {
            "file_name": str(images / "1.png"),
            "height": 60,
            "width": 80,
            "image_id": 2,
            "annotations": [],
        },
    ]


def test_no_annotations_key_gives_records_without(coco_folder: CocoFolder):
    del coco_folder.tree["annotations"]
    assert all("annotations" not in r for r in read_coco_json(*coco_folder.write()).records)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"bbox": [1, 2, 3, None]}, "bbox must hold numbers, holds None"),
        ({"bbox": ["1", "2", "3", "4"]}, "bbox must hold numbers, holds '1'"),
        ({"bbox": [1, 2, 3, 10**400]}, "bbox holds a number beyond 100000 pixels"),
        ({"bbox": [1, 2, float("nan"), 4]}, "bbox holds NaN"),
        ({"bbox": [-1e6, 2, 3, 4]}, r"bbox holds 1e\+06, beyond"),
        ({"bbox": ..., "segmentation": ...}, "bbox is missing, and no segmentation"),
        ({"bbox": {"x": 1}}, "bbox must be four numbers"),
        ({"segmentation": [[1, 2, 3, 4, 5, None]]}, "segmentation must hold numbers"),
        ({"segmentation": [[[1, 2], [3, 4], [5, 6]], [1]]}, "odd count"),
        ({"segmentation": [SQUARE, "x"]}, "a polygon must be a list of numbers, is 'x'"),
        ({"segmentation": 5}, "must be polygons or an RLE, is 5"),
        ({"segmentation": {"counts": "x"}}, r"RLE size .* is None, the image is \[60, 80\]"),
        ({"category_id": [3]}, "category_id must be a whole number"),
        ({"category_id": "3"}, "category_id must be a whole number"),
        ({"category_id": ...}, "category_id must be a whole number, is None"),
        ({"image_id": ...}, "image_id must be a whole number, is None"),
        ({"image_id": 1.5}, "image_id must be a whole number"),
        ({"iscrowd": 2}, "iscrowd must be 0 or 1"),
        ({"iscrowd": "0"}, "iscrowd must be 0 or 1"),
        ({"ignore": 1}, "'ignore' is set"),
        ({"keypoints": [1, 2]}, "keypoints must be a list of x, y, visibility"),
        ({"keypoints": [1, 2, "2"]}, "keypoints must hold numbers"),
        ({"id": "x"}, "id must be a whole number"),
    ],
)
def test_broken_annotation_is_named(coco_folder: CocoFolder, change: dict, message: str):
    row = annotation(**change)
    coco_folder.tree["annotations"] = [row]
    with pytest.raises(DataError, match=rf"instances\.json: annotation {row['id']}: .*{message}"):
        read_coco_json(*coco_folder.write())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"images": {}}, "'images' must be a list, is an object"),
        ({"images": [5]}, r"images\[0\] must be an object, is 5"),
        ({"images": [{"file_name": "a"}]}, r"images\[0\]: id must be a whole number, is None"),
        ({"categories": [{"id": 1}]}, "category 1: name must be text, is None"),
        ({"categories": [{"id": "1", "name": "a"}]}, "category 1: id must be a whole"),
        ({"annotations": None}, "'annotations' must be a list, is null"),
    ],
)
def test_broken_table_is_named(coco_folder: CocoFolder, change: dict, message: str):
    coco_folder.tree |= change
    with pytest.raises(DataError, match=message):
        read_coco_json(*coco_folder.write())


def test_mixed_kinds_of_image_ids_are_refused(coco_folder: CocoFolder):
    coco_folder.tree["images"][1]["id"] = "b"
    with pytest.raises(DataError, match="partly numbers, partly text"):
        read_coco_json(*coco_folder.write())


def test_absolute_paths_need_an_empty_image_folder(coco_folder: CocoFolder):
    path = str(coco_folder.images / "0.png")
    coco_folder.tree["images"][0]["file_name"] = path
    json_file, images = coco_folder.write()
    with pytest.raises(DataError, match="leaves the image folder"):
        read_coco_json(json_file, images)
    assert read_coco_json(json_file, "").records[0]["file_name"] == path


def test_keypoints_move_to_pixel_centres(coco_folder: CocoFolder):
    coco_folder.tree["annotations"] = [annotation(keypoints=[1, 2, 2, 0, 0, 0])]
    record = read_coco_json(*coco_folder.write()).records[0]
    assert record["annotations"][0]["keypoints"] == [1.5, 2.5, 2, 0.5, 0.5, 0]


def test_minival_may_repeat_annotation_ids(coco_folder: CocoFolder):
    coco_folder.tree["annotations"] *= 2
    coco_folder.json = coco_folder.json.with_name("instances_minival2014.json")
    assert len(read_coco_json(*coco_folder.write()).records[0]["annotations"]) == 2


def test_missing_file_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"nope\.json: cannot be read \(No such file"):
        read_coco_json(tmp_path / "nope.json", tmp_path)


def test_garbage_collection_is_left_as_it_was(coco_folder: CocoFolder, tmp_path: Path):
    read_coco_json(*coco_folder.write())
    assert gc.isenabled()
    with pytest.raises(DataError):
        read_coco_json(tmp_path / "nope.json", tmp_path)
    assert gc.isenabled()


def test_real_sets_agree_with_pycocotools(shared_data: Path):
    for name, split in itertools.product(("coco_mini", "nuclei", "fruits_nuts"), ("train", "val")):
        file = shared_data / name / f"annotations/instances_{split}.json"
        coco = COCO(str(file))
        data = read_coco_json(file, shared_data / name / split, extra_annotation_keys=["id"])
        assert [r["image_id"] for r in data.records] == sorted(coco.imgs)
        ids = sorted(coco.getCatIds())
        for record in data.records:
            rows = {row["id"]: row for row in coco.imgToAnns[record["image_id"]]}
            assert [a["id"] for a in record["annotations"]] == list(rows)
            for one in record["annotations"]:
                row = rows[one["id"]]
                assert one["bbox"] == row["bbox"] and one["iscrowd"] == row["iscrowd"]
                assert ids[one["category_id"]] == row["category_id"]
                assert one["segmentation"] == row["segmentation"]


@pytest.mark.slow
def test_large_files_load_in_time(coco_folder: CocoFolder):
    row = annotation(segmentation=[SQUARE * 6])
    coco_folder.tree["annotations"] = [
        copy.copy(row) | {"id": i, "image_id": 1 + i % 2} for i in range(200_000)
    ]
    coco_folder.json.write_text(json.dumps(coco_folder.tree))
    start = time.process_time()
    read_coco_json(coco_folder.json, coco_folder.images)
    assert time.process_time() - start < 12
