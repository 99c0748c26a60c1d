from __future__ import annotations

import contextlib
import io

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch

from segdet.data import transforms as T
from segdet.data.annotations import (
    annotations_to_instances,
    annotations_to_instances_rotated,
    create_keypoint_hflip_indices,
    draw_things,
    filter_empty_instances,
    gen_crop_transform_with_instance,
    masks_from_segmentations,
    transform_instance_annotations,
)
from segdet.data.catalog import MetadataCatalog
from segdet.data.readers.coco_json import read_coco_json
from segdet.errors import DataError
from segdet.structures import BitMasks, BoxMode, PolygonMasks, RotatedBoxes, Targets

SIZE = (60, 80)
SQUARE = [20.0, 10.0, 60.0, 10.0, 60.0, 40.0, 20.0, 40.0]


def an_annotation(**changes):
    return {
        "bbox": [20, 10, 40, 30],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 2,
        "segmentation": [list(SQUARE)],
    } | changes


def rle(mask: np.ndarray) -> dict:
    return mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))


def square_mask() -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[10:40, 20:60] = 1
    return mask


def moved(transforms, size, **changes):
    return transform_instance_annotations(an_annotation(**changes), transforms, size)


def test_box_polygon_and_rle_move_together():
    resize_and_flip = T.TransformList([T.ResizeTransform(60, 80, 30, 160), T.HFlipTransform(160)])
    one = moved(resize_and_flip, (30, 160))
    assert one["bbox"].tolist() == [40, 5, 120, 20] and one["bbox_mode"] == BoxMode.XYXY_ABS
    (polygon,) = one["segmentation"]
    assert polygon.tolist() == [120, 5, 40, 5, 40, 20, 120, 20]
    assert moved([*resize_and_flip.transforms], (30, 160))["bbox"].tolist() == [40, 5, 120, 20]
    two = moved(resize_and_flip, (30, 160), segmentation=rle(square_mask()))
    expected = np.zeros((30, 160), bool)
    expected[5:20, 40:120] = True
    assert two["segmentation"].dtype == bool and (two["segmentation"] == expected).all()


def test_box_is_clipped_polygon_is_not():
    box = {"bbox": [-20, 50, 200, 30]}
    polygon = [-20.0, 50.0, 180.0, 50.0, 180.0, 80.0]
    one = moved(T.NoOpTransform(), SIZE, **box, segmentation=[polygon])
    assert one["bbox"].tolist() == [0, 50, 80, 60]
    assert one["segmentation"][0].tolist() == polygon


def test_padding_labels_do_not_enter_masks():
    pad = T.PadTransform(0, 0, 20, 40, seg_pad_value=255)
    one = moved(pad, (100, 100), segmentation=rle(square_mask()))
    assert one["segmentation"].sum() == 40 * 30


@pytest.mark.parametrize(
    "segmentation, message",
    [
        ([[1, 2, 3, 4]], "must have 6, 8, 10, ... numbers, has 4"),
        ([[1, 2, 3, 4, 5, 6, 7]], "numbers, has 7"),
        ([[1, 2, 3, 4, 5, float("nan")]], "NaN or Infinity"),
        ([[1, 2, 3, 4, 5, float("inf")]], "NaN or Infinity"),
        ([["1", "2", "3", "4", "5", "6"]], "flat list of numbers"),
        ([[[1, 2], [3, 4], [5, 6]]], "flat list of numbers"),
        ([10, 10, 20, 10, 20, 20], "flat list of numbers"),
        ("x", "must be a list of polygons or an RLE dict, is str"),
        ({"size": [60, 80], "counts": "~~~~"}, "not a COCO RLE string"),
        ({"size": [50, 50], "counts": [2500]}, r"RLE size \[50, 50\] is not the image's"),
    ],
)
def test_refuses(segmentation, message):
    with pytest.raises(DataError, match=message):
        moved(T.NoOpTransform(), SIZE, segmentation=segmentation)


@pytest.mark.parametrize(
    "bbox, message",
    [
        ([1, 2, 3], "bbox cannot be read as XYWH_ABS"),
        ([1, 2, 3, "4"], "bbox cannot be read as XYWH_ABS"),
        ([1, 2, 3, float("nan")], "bbox must be finite numbers"),
    ],
)
def test_refuses_boxes_of_hand_registered_data(bbox, message):
    with pytest.raises(DataError, match=message):
        moved(T.NoOpTransform(), SIZE, bbox=bbox)
    with pytest.raises(DataError, match="bbox must be finite numbers"):
        moved(T.NoOpTransform(), SIZE, bbox=[1, 2, 3], bbox_mode=BoxMode.XYXY_ABS)


def test_refuses_a_mask_that_its_images_resize_does_not_fit():
    small = {"size": [50, 50], "counts": [2500]}
    with pytest.raises(DataError, match=r"RLE cannot be transformed .* this is \(50, 50\)"):
        moved(T.ResizeTransform(60, 80, 30, 40), (30, 40), segmentation=small)


def test_keypoints_flip_to_their_partners_and_leave_the_image():
    metadata = MetadataCatalog.get("people")
    metadata.set(keypoint_names=["nose", "left", "right"], keypoint_flip_map=[("left", "right")])
    flip = create_keypoint_hflip_indices("people")
    assert flip.tolist() == [0, 2, 1]
    points = [10, 20, 2, 30, 5, 1, 90, 5, 2]
    one = transform_instance_annotations(
        an_annotation(keypoints=points), T.HFlipTransform(80), SIZE, keypoint_hflip_indices=flip
    )
    assert one["keypoints"].tolist() == [[70, 20, 2], [0, 0, 0], [50, 5, 1]]
    with pytest.raises(ValueError, match="needs keypoint_hflip_indices"):
        moved(T.HFlipTransform(80), SIZE, keypoints=points)
    twice = T.TransformList([T.HFlipTransform(80), T.HFlipTransform(80)])
    assert moved(twice, SIZE, keypoints=points)["keypoints"][1].tolist() == [30, 5, 1]


def test_instances_of_polygons():
    annos = [moved(T.NoOpTransform(), SIZE), moved(T.NoOpTransform(), SIZE, category_id=0)]
    targets = annotations_to_instances(annos, SIZE)
    assert isinstance(targets, Targets) and targets.image_size == SIZE
    assert targets.gt_boxes.tensor.tolist() == [[20, 10, 60, 40]] * 2
    assert targets.gt_classes.tolist() == [2, 0] and targets.gt_classes.dtype == torch.int64
    assert isinstance(targets.gt_masks, PolygonMasks)
    bits = annotations_to_instances(annos, SIZE, mask_format="bitmask").gt_masks
    assert isinstance(bits, BitMasks) and (bits.tensor.numpy() == square_mask()).all()


def test_one_rle_among_polygons_turns_all_into_bitmasks():
    annos = [
        moved(T.NoOpTransform(), SIZE),
        moved(T.NoOpTransform(), SIZE, segmentation=rle(square_mask())),
    ]
    masks = annotations_to_instances(annos, SIZE, mask_format="polygon").gt_masks
    assert isinstance(masks, BitMasks) and (masks.tensor.numpy() == square_mask()).all()


def test_instances_without_transforms_take_records_as_they_are():
    targets = annotations_to_instances([an_annotation(segmentation=rle(square_mask()))], SIZE)
    assert targets.gt_boxes.tensor.tolist() == [[20, 10, 60, 40]]
    assert (targets.gt_masks.tensor.numpy() == square_mask()).all()


def test_no_objects():
    targets = annotations_to_instances([], SIZE)
    assert len(targets) == 0 and targets.gt_boxes.tensor.shape == (0, 4)
    assert targets.gt_classes.dtype == torch.int64
    assert len(filter_empty_instances(targets)) == 0
    assert masks_from_segmentations([], SIZE, "bitmask").tensor.shape == (0, 60, 80)
    assert len(masks_from_segmentations([], SIZE, "polygon")) == 0


def test_objects_must_have_the_same_fields():
    annos = [moved(T.NoOpTransform(), SIZE), moved(T.NoOpTransform(), SIZE)]
    del annos[1]["segmentation"]
    with pytest.raises(DataError, match="object 1 of the image has no segmentation"):
        annotations_to_instances(annos, SIZE)
    with pytest.raises(ValueError, match="mask_format"):
        annotations_to_instances(annos[:1], SIZE, mask_format="rle")


def test_filter_keeps_what_something_is_left_of():
    crop = T.CropTransform(0, 0, 30, 60)
    whole = moved(crop, (60, 30))
    gone = moved(crop, (60, 30), bbox=[50, 0, 9, 9], segmentation=[[50, 0, 59, 0, 59, 9, 50, 9]])
    boxed = moved(crop, (60, 30), segmentation=[[50, 0, 59, 0, 59, 9, 50, 9]])
    targets = annotations_to_instances([whole, gone, boxed], (60, 30))
    kept, keep = filter_empty_instances(targets, return_mask=True)
    assert keep.tolist() == [True, False, False] and len(kept) == 1
    assert len(filter_empty_instances(targets, by_mask=False)) == 2
    assert len(filter_empty_instances(targets, by_box=False, by_mask=False)) == 3


@pytest.mark.slow
def test_label_maps_of_objects_are_those_that_cocos_tools_draw(shared_data):
    """As the original's script writes them: all annotations in the order of the file."""
    api = pytest.importorskip("pycocotools.coco")
    file = shared_data / "coco_mini/annotations/instances_train.json"
    with contextlib.redirect_stdout(io.StringIO()):
        coco = api.COCO(str(file))
    contiguous = {one: k for k, one in enumerate(sorted(coco.getCatIds()))}
    records = read_coco_json(str(file), str(shared_data / "coco_mini/train")).records[:50]
    crowds = 0
    for record in records:
        size = record["height"], record["width"]
        expected = np.zeros(size, np.int64)
        for row in coco.imgToAnns[record["image_id"]]:
            expected[coco.annToMask(row) == 1] = contiguous[row["category_id"]] + 1
            crowds += row["iscrowd"]
        np.testing.assert_array_equal(draw_things(record["annotations"], size), expected)
    assert len(records) == 50 and crowds > 0


def test_label_maps_refuse_what_cannot_be_drawn():
    rows = [an_annotation(), an_annotation(segmentation=[[0, 0, 1, 1]])]
    with pytest.raises(DataError, match="object 1: a polygon is a flat list of at least 3 points"):
        draw_things(rows, SIZE)
    del rows[1]["segmentation"]
    assert draw_things(rows, SIZE).max() == rows[0]["category_id"] + 1


def test_crop_around_an_object_holds_its_centre():
    np.random.seed(0)
    places = set()
    for _ in range(300):
        crop = gen_crop_transform_with_instance((20, 200), SIZE, an_annotation())
        assert (crop.h, crop.w) == (20, 80) and 0 <= crop.y0 <= 40 and crop.x0 == 0
        assert crop.y0 <= 25 <= crop.y0 + 20
        places.add(crop.y0)
    assert places == set(range(5, 26))
    with pytest.raises(DataError, match="centre outside the image"):
        gen_crop_transform_with_instance((20, 20), SIZE, an_annotation(bbox=[100, 100, 5, 5]))


def test_rotated_boxes_become_targets():
    row = {"category_id": 2, "bbox_mode": BoxMode.XYWHA_ABS}
    annos = [
        {**row, "bbox": [95.0, 50, 20, 10, 0]},
        {**row, "bbox": np.array([50, 50, 20, 10, 30])},
    ]
    targets = annotations_to_instances_rotated(annos, (100, 100))
    assert isinstance(targets.gt_boxes, RotatedBoxes) and targets.gt_classes.tolist() == [2, 2]
    clipped = [[92.5, 50, 15, 10, 0], [50, 50, 20, 10, 30]]
    assert targets.gt_boxes.tensor.numpy() == pytest.approx(np.array(clipped))
    assert len(annotations_to_instances_rotated([], (10, 10)).gt_boxes) == 0
    with pytest.raises(DataError, match="object 0: a rotated bbox must be 5 finite numbers"):
        annotations_to_instances_rotated([{**row, "bbox": [1, 2, 3, 4]}], (10, 10))


def test_keypoints_without_names_are_refused():
    MetadataCatalog.get("nameless").set(keypoint_names=["a"])
    with pytest.raises(DataError, match="'nameless' has no keypoint_names or no keypoint_flip_map"):
        create_keypoint_hflip_indices(["nameless"])
