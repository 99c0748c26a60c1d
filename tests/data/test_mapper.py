from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segdet.config.reader import defaults_of, read_section
from segdet.data import DatasetMapper
from segdet.data import detection_utils as utils
from segdet.data import transforms as T
from segdet.data.mapper import CropConfig, InputConfig
from segdet.data.readers.coco_json import read_coco_json
from segdet.errors import ConfigError, DataError
from segdet.modeling.meta_arch import SYSTEMS
from segdet.structures import BitMasks, BoxMode, PolygonMasks

from .conftest import SQUARE, CocoFolder, a_config, annotation


@pytest.fixture
def record(coco_folder: CocoFolder) -> dict:
    return read_coco_json(*coco_folder.write()).records[0]


def a_mapper(**changes) -> DatasetMapper:
    settings = {"augmentations": [T.ResizeTransform(60, 80, 30, 40)], "image_format": "BGR"}
    return DatasetMapper(**{"is_train": True, "use_instance_mask": True} | settings | changes)


def test_training_output(record: dict):
    before = copy.deepcopy(record)
    out = a_mapper()(record)
    assert record == before, "the record is not changed"
    assert out.keys() == {"file_name", "height", "width", "image_id", "image", "instances"}
    assert out["image"].shape == (3, 30, 40) and out["image"].dtype == torch.uint8
    assert out["image"].is_contiguous() and (out["height"], out["width"]) == (60, 80)
    targets = out["instances"]
    assert targets.image_size == (30, 40) and targets.gt_classes.tolist() == [1]
    assert targets.gt_boxes.tensor.tolist() == [[10, 5, 30, 20]]
    assert targets.gt_masks.polygons[0][0].tolist() == [v / 2 for v in SQUARE]


def test_testing_output_has_no_annotations(record: dict):
    out = a_mapper(is_train=False)(record)
    assert out.keys() == {"file_name", "height", "width", "image_id", "image"}


def test_crowds_are_no_targets(coco_folder: CocoFolder):
    coco_folder.tree["annotations"] = [annotation(iscrowd=1), annotation(id=2)]
    records = read_coco_json(*coco_folder.write()).records
    assert len(a_mapper()(records[0])["instances"]) == 1


def test_label_maps_of_objects_are_moved_as_the_image_is(coco_folder: CocoFolder):
    crowd = {"size": [60, 80], "counts": [0, 60 * 4, 60 * 76]}  # the first 4 columns
    rows = [annotation(), annotation(id=2, iscrowd=1, segmentation=crowd)]
    coco_folder.tree["annotations"] = rows
    record = read_coco_json(*coco_folder.write()).records[0]
    flip = [T.HFlipTransform(80), T.ResizeTransform(60, 80, 30, 40)]
    out = a_mapper(use_basis_sem=True, augmentations=flip)(record)
    labels, category = out["basis_sem"], out["instances"].gt_classes.item() + 1
    expected = torch.zeros(30, 40, dtype=torch.int64)
    expected[5:20, 10:30] = category
    expected[:, 38:] = category
    assert labels.dtype == torch.int64 and torch.equal(labels, expected)
    assert "basis_sem" not in a_mapper(use_basis_sem=True, is_train=False)(record)


@pytest.mark.parametrize("mask_format, kind", [("polygon", PolygonMasks), ("bitmask", BitMasks)])
def test_an_image_without_objects_has_every_field(coco_folder: CocoFolder, mask_format, kind):
    records = read_coco_json(*coco_folder.write()).records
    targets = a_mapper(instance_mask_format=mask_format)(records[1])["instances"]
    assert len(targets) == 0 and isinstance(targets.gt_masks, kind)
    assert targets.gt_boxes.tensor.shape == (0, 4)


def test_masks_are_brought_only_when_wanted(record: dict):
    assert not a_mapper(use_instance_mask=False)(record)["instances"].has("gt_masks")
    del record["annotations"][0]["segmentation"]
    assert len(a_mapper(use_instance_mask=False)(record)["instances"]) == 1
    with pytest.raises(DataError, match=r"image id 1: .*0\.png, object 0: has no segmentation"):
        a_mapper()(record)


def test_boxes_are_recomputed_after_a_crop(record: dict):
    crop = T.CropTransform(0, 0, 80, 20)
    record["annotations"][0]["bbox"] = [0, 0, 80, 60]
    loose = a_mapper(augmentations=[crop])(record)["instances"]
    tight = a_mapper(augmentations=[crop], recompute_boxes=True)(record)["instances"]
    assert loose.gt_boxes.tensor.tolist() == [[0, 0, 80, 20]]
    assert tight.gt_boxes.tensor.tolist() == [[20, 10, 60, 20]]
    gone = a_mapper(augmentations=[T.CropTransform(0, 0, 15, 60)], recompute_boxes=True)(record)
    assert len(gone["instances"]) == 0


def test_semantic_labels_follow_the_image(record: dict, tmp_path: Path):
    labels = np.zeros((60, 80), np.uint8)
    labels[:, :40] = 7
    Image.fromarray(labels).save(tmp_path / "labels.png")
    record["sem_seg_file_name"] = str(tmp_path / "labels.png")
    out = a_mapper(augmentations=[T.HFlipTransform(80)])(record)
    assert out["sem_seg"].dtype == torch.int64 and out["sem_seg"].shape == (60, 80)
    assert (out["sem_seg"][:, 40:] == 7).all() and (out["sem_seg"][:, :40] == 0).all()
    testing = a_mapper(is_train=False)(record)
    assert "sem_seg" in testing and "sem_seg_file_name" not in testing


def test_errors_name_the_image(record: dict):
    with pytest.raises(DataError, match=r"image id 1: image .*gone\.png does not exist"):
        a_mapper()(record | {"file_name": "gone.png"})
    with pytest.raises(DataError, match=r"image id 1: .*is 80 x 60 .* says 80 x 61"):
        a_mapper()(record | {"height": 61})
    record["annotations"][0]["segmentation"] = [[1, 2, 3, 4, 5, float("inf")]]
    with pytest.raises(DataError, match=r"image id 1: .*0\.png, object 0: a polygon holds NaN"):
        a_mapper()(record)


def test_hand_registered_records_work(record: dict):
    by_hand = {"file_name": record["file_name"], "annotations": []}
    by_hand["annotations"].append(
        {
            "bbox": np.array([20, 10, 60, 40]),
            "bbox_mode": 0,
            "category_id": 0,
            "segmentation": [np.array(SQUARE)],
        }
    )
    out = a_mapper()(by_hand)
    assert out["width"] == 80 and len(out["instances"]) == 1


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"bbox": ...}, "has no bbox; it has "),
        ({"bbox_mode": ...}, "has no bbox_mode; it has "),
        ({"bbox_mode": 7}, "bbox_mode must be one of XYXY_ABS, XYWH_ABS, XYWHA_ABS, is 7"),
        ({"bbox_mode": BoxMode.XYXY_REL}, "bbox_mode must be one of XYXY_ABS"),
        ({"category_id": ...}, "category_id must be a whole number, is None"),
        ({"category_id": "cat"}, "category_id must be a whole number, is 'cat'"),
        ({"keypoints": [1, 2, 2, 3]}, "keypoints must be triples"),
        ({"keypoints": [1, 2, float("nan")]}, "keypoints hold NaN"),
    ],
)
def test_defects_of_hand_registered_objects_are_named(record: dict, changes, message):
    good = record["annotations"][0]
    bad = {k: v for k, v in (good | changes).items() if v is not ...}
    record["annotations"] = [good | {"keypoints": [1, 2, 2]}, bad]
    mapper = a_mapper(use_keypoint="keypoints" in bad)
    with pytest.raises(DataError, match=rf"image id 1: .*0\.png, object 1: {message}"):
        mapper(record)


def test_a_record_without_a_file_is_named(record: dict):
    del record["file_name"]
    with pytest.raises(DataError, match="image id 1: a record has no file_name"):
        a_mapper()(record)


def test_from_config(record: dict):
    cfg = a_config()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (30, 45), 15
    cfg.INPUT.FORMAT, cfg.MODEL.MASK_ON = "RGB", True
    mapper = DatasetMapper(cfg, is_train=True)
    assert mapper.is_train and mapper.image_format == "RGB" and mapper.use_instance_mask
    assert not mapper.recompute_boxes
    assert mapper(record)["image"].shape[1] in (30, 45)
    assert DatasetMapper(cfg, False)(record)["image"].shape == (3, 15, 20)
    own = DatasetMapper(cfg, is_train=True, augmentations=[T.Resize(7)], use_instance_mask=False)
    assert own(record)["image"].shape == (3, 7, 7) and not own.use_instance_mask
    cfg.INPUT.CROP.ENABLED = True
    assert DatasetMapper(cfg).recompute_boxes and not DatasetMapper(cfg, False).recompute_boxes


def test_crops_of_adelaidets_systems_hold_an_object(record: dict):
    cfg = a_config()
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE = True, "absolute"
    cfg.INPUT.CROP.SIZE, cfg.INPUT.MIN_SIZE_TRAIN = [12, 12], (12,)
    for architecture, every in (("BlendMask", True), ("GeneralizedRCNN", False)):
        cfg.MODEL.META_ARCHITECTURE = architecture
        mapper = DatasetMapper(cfg, is_train=True)
        found = [len(mapper(record)["instances"]) for _ in range(60)]
        assert (min(found) == 1) == every
    cfg.MODEL.META_ARCHITECTURE = "BlendMask"
    record["annotations"][0]["bbox"] = [0, 0, float("nan"), 1]
    with pytest.raises(DataError, match=r"image id 1: bbox must be finite"):
        DatasetMapper(cfg, is_train=True)(record)


def test_label_maps_are_brought_where_the_basis_loss_is_on(record: dict):
    cfg = a_config()
    cfg.MODEL.BASIS_MODULE.LOSS_ON = cfg.MODEL.MASK_ON = True
    assert DatasetMapper(cfg, is_train=True)(record)["basis_sem"].shape[0] == 800
    assert not DatasetMapper(cfg, is_train=False).use_basis_sem


def test_subclass_may_change_what_comes_from_the_config(record: dict):
    class Small(DatasetMapper):
        @classmethod
        def from_config(cls, cfg, is_train=True):
            return super().from_config(cfg, is_train) | {"augmentations": [T.Resize((5, 6))]}

    assert Small(a_config(), True)(record)["image"].shape == (3, 5, 6)


def test_augmentations_of_the_config():
    def names(train: bool, **changes) -> list[str]:
        return [type(a).__name__ for a in InputConfig(**changes).augmentations(train)]

    assert names(True) == ["ResizeShortestEdge", "RandomFlip"]
    assert names(False) == ["ResizeShortestEdge"]
    assert names(True, random_flip="none") == ["ResizeShortestEdge"]
    cropped = InputConfig(crop=InputConfig().crop.__class__(enabled=True), random_flip="vertical")
    crop, _, flip = cropped.augmentations(True)
    assert isinstance(crop, T.RandomCrop) and flip.vertical and not flip.horizontal
    cfg = a_config()
    assert [type(a).__name__ for a in utils.build_augmentation(cfg, True)] == names(True)


def test_augmentations_of_semantic_configs():
    def names(system: str) -> list[str]:
        crop = CropConfig(enabled=True, type="absolute", size=(8, 8), single_category_max_area=0.75)
        section = InputConfig(crop=crop, color_aug_ssd=True, ignore_value=9)
        found = T.AugmentationList(section.augmentations(True, SYSTEMS[system].needs)).augs
        mixed = next(a for a in found if isinstance(a, T.RandomCrop_CategoryAreaConstraint))
        assert (mixed.single_category_max_area, mixed.ignored_category) == (0.75, 9)
        return [type(getattr(a, "transform", a)).__name__ for a in found]

    crop, rest = "RandomCrop_CategoryAreaConstraint", ["ColorAugSSDTransform", "RandomFlip"]
    assert names("PanopticFPN") == [crop, "ResizeShortestEdge", *rest]
    for system in ("SemanticSegmentor", "PointRendSemSeg"):
        assert names(system) == ["ResizeShortestEdge", crop, *rest]
    with pytest.raises(ConfigError, match=r"MAX_AREA below 1 .* does not learn from"):
        names("MaskRCNN")


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("FORMAT", "BRG", "FORMAT must be one of BGR"),
        ("RANDOM_FLIP", "both", "RANDOM_FLIP must be one of horizontal"),
        ("MASK_FORMAT", "rle", "MASK_FORMAT must be one of polygon"),
        ("MIN_SIZE_TRAIN_SAMPLING", "all", "MIN_SIZE_TRAIN_SAMPLING must be one of choice"),
        ("CROP.TYPE", "half", "CROP.TYPE must be one of absolute"),
        ("MIN_SIZE_TRAIN", (), "MIN_SIZE_TRAIN must have a size"),
        ("MIN_SIZE_TRAIN", (640, -1), r"INPUT.MIN_SIZE_TRAIN must be tuple\[int >= 0, ...\], is"),
    ],
)
def test_section_refuses(key, value, message):
    cfg = a_config()
    cfg.merge_from_list([f"INPUT.{key}", value])
    with pytest.raises(ConfigError, match=message):
        read_section(InputConfig, cfg, at="INPUT")


def test_colours_need_an_order():
    with pytest.raises(ConfigError, match="FORMAT, with COLOR_AUG_SSD, must be one of BGR, RGB"):
        InputConfig(color_aug_ssd=True, format="L")


@pytest.mark.parametrize("sizes", [(640,), (640, 700, 800), (800, 640)])
def test_a_range_of_sizes_has_two_ends(sizes):
    assert InputConfig(min_size_train=(640, 640), min_size_train_sampling="range")
    with pytest.raises(ConfigError, match=r"MIN_SIZE_TRAIN must be a range \(low, high\), is \(\d"):
        InputConfig(min_size_train=sizes, min_size_train_sampling="range")


def test_section_owns_detectron2s_keys_and_yolacts():
    assert defaults_of(InputConfig).dump() == a_config().INPUT.dump()
    own = {"SQUARE_SIZE", "SSD", "LSJ", "COLOR", "RANDOM_ROTATION", "COPY_PASTE", "MOSAIC"}
    assert set(defaults_of(InputConfig)) - own == {
        "MIN_SIZE_TRAIN",
        "MIN_SIZE_TRAIN_SAMPLING",
        "MAX_SIZE_TRAIN",
        "MIN_SIZE_TEST",
        "MAX_SIZE_TEST",
        "RANDOM_FLIP",
        "CROP",
        "FORMAT",
        "MASK_FORMAT",
        "COLOR_AUG_SSD",
    }
    assert BoxMode.XYXY_ABS == 0


def test_crowds_are_marked_where_a_system_uses_them(coco_folder: CocoFolder):
    crowd = annotation(iscrowd=1)
    coco_folder.tree["annotations"] = [crowd, annotation(id=2)]
    record = read_coco_json(*coco_folder.write()).records[0]
    targets = a_mapper(use_crowds=True)(record)["instances"]
    assert targets.gt_classes.tolist() == [-1, 1] and len(targets.gt_masks) == 2
    record["annotations"][0].pop("segmentation")
    assert a_mapper(use_crowds=True)(record)["instances"].gt_classes.tolist() == [1]


@pytest.mark.parametrize("system, uses", [("YOLACT", True), ("GeneralizedRCNN", False)])
def test_the_system_decides_about_crowds(system: str, uses: bool):
    cfg = a_config()
    cfg.MODEL.META_ARCHITECTURE = system
    assert DatasetMapper(cfg).use_crowds == uses


def test_augmentations_see_the_boxes_of_objects(coco_folder: CocoFolder):
    seen = []

    class Look(T.Augmentation):
        def get_transform(self, image, boxes):
            seen.append(boxes)
            return T.NoOpTransform()

    coco_folder.tree["annotations"] = [annotation(iscrowd=1, bbox=[0, 0, 5, 5]), annotation(id=2)]
    records = read_coco_json(*coco_folder.write()).records
    resize = T.ResizeTransform(60, 80, 30, 40)
    for record in records:
        a_mapper(augmentations=[resize, T.RandomApply(Look(), 1.0)])(record)
    assert [one.tolist() for one in seen] == [[[10, 5, 30, 20]], []]


def test_objects_off_the_centre_of_a_crop_are_dropped(coco_folder: CocoFolder):
    far = annotation(id=2, bbox=[62, 0, 10, 10], segmentation=[[62, 0, 72, 0, 72, 10, 62, 10]])
    coco_folder.tree["annotations"] = [annotation(), far]
    record = read_coco_json(*coco_folder.write()).records[0]
    crop = T.CentreCropTransform(15, 5, 50, 50)  # the far one's left edge is inside
    targets = a_mapper(augmentations=[crop])(record)["instances"]
    assert targets.gt_boxes.tensor.tolist() == [[5, 5, 45, 35]]


def test_squares_and_ssds_augmentations_by_the_config():
    cfg = a_config()
    cfg.INPUT.SQUARE_SIZE = 50
    section = read_section(InputConfig, cfg, at="INPUT")
    assert [type(one) for one in section.augmentations(True)] == [T.Stretch, T.RandomFlip]
    assert [type(one) for one in section.augmentations(False)] == [T.Stretch]
    cfg.INPUT.SSD.PHOTOMETRIC = cfg.INPUT.SSD.EXPAND = cfg.INPUT.SSD.CROP = True
    section = read_section(InputConfig, cfg, at="INPUT")
    kinds = [T.PhotometricDistortion, T.RandomExpand, T.CropAroundCentres, T.Stretch, T.RandomFlip]
    assert [type(one) for one in section.augmentations(True)] == kinds
    assert [type(one) for one in section.augmentations(False)] == [T.Stretch]


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"SSD.EXPAND": True, "FORMAT": "L"},
            "FORMAT, with SSD.PHOTOMETRIC or EXPAND, must be one of BGR, RGB",
        ),
        ({"SSD.PHOTOMETRIC": True, "COLOR_AUG_SSD": True}, "two of a kind"),
    ],
)
def test_what_ssds_augmentations_cannot_be(changes: dict, message: str):
    cfg = a_config()
    cfg.merge_from_list([x for key, value in changes.items() for x in (f"INPUT.{key}", value)])
    with pytest.raises(ConfigError, match=message):
        read_section(InputConfig, cfg, at="INPUT")
