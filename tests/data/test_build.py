from __future__ import annotations

import itertools
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from segdet.config.node import CfgNode
from segdet.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_batch_data_loader,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from segdet.data import transforms as T
from segdet.data.annotations import category_of
from segdet.data.common import MapDataset
from segdet.data.records import check_class_count, drop_objects_without_masks
from segdet.data.samplers import TrainingSampler
from segdet.errors import ConfigError, DataError
from segdet.modeling.meta_arch import SYSTEMS

from .conftest import CocoFolder, PanopticFolder, a_config, annotation


@pytest.fixture
def cfg(coco_folder: CocoFolder) -> CfgNode:
    coco_folder.tree["annotations"].append(annotation(id=2, image_id=2))
    json_file, images = coco_folder.write()
    cfg = a_config()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (f"{json_file}:{images}",)
    return cfg


def test_loaders_from_a_config(cfg: CfgNode):
    loader = build_detection_train_loader(cfg)
    batch = next(iter(loader))
    assert len(batch) == 2 and all("instances" in sample for sample in batch)
    assert loader.seed == 5
    test_loader = build_detection_test_loader(cfg, cfg.DATASETS.TEST[0])
    assert len(test_loader) == 2
    assert [sample["image_id"] for (sample,) in test_loader] == [1, 2]


def test_arguments_override_the_config(cfg: CfgNode):
    mapper = DatasetMapper(cfg, True, augmentations=[T.Resize(9)])
    loader = build_detection_train_loader(cfg, mapper=mapper, total_batch_size=3, seed=9)
    batch = next(iter(loader))
    assert [tuple(sample["image"].shape) for sample in batch] == [(3, 9, 9)] * 3
    assert loader.seed == 9 and loader.sampler.seed == 9
    name = cfg.DATASETS.TEST[0]
    test_loader = build_detection_test_loader(cfg, name, mapper=lambda record: record["image_id"])
    assert list(test_loader) == [[1], [2]]
    records = [{"file_name": "x", "width": 2, "height": 1, "image_id": i} for i in "ab"]
    loader = build_detection_train_loader(cfg, dataset=records, mapper=lambda r: r["image_id"])
    assert sorted(next(iter(loader))) == ["a", "b"]


def test_loaders_from_arguments():
    records = [{"file_name": "x", "width": 2, "height": 1, "image_id": i} for i in range(5)]
    loader = build_detection_train_loader(
        records, mapper=lambda r: r["image_id"], total_batch_size=5, collate_fn=tuple, seed=0
    )
    assert sorted(next(iter(loader))) == [0, 1, 2, 3, 4] and type(next(iter(loader))) is tuple
    test_loader = build_detection_test_loader(
        dataset=records, mapper=lambda r: r["image_id"], batch_size=2
    )
    assert list(test_loader) == [[0, 1], [2, 3], [4]]
    assert list(build_detection_test_loader(records, mapper=None))[4] == [records[4]]


def test_negative_seed_is_drawn_and_logged(cfg: CfgNode, caplog: pytest.LogCaptureFixture):
    cfg.SEED = -1
    with caplog.at_level(logging.INFO, logger="segdet.data"):
        seeds = {build_detection_train_loader(cfg).seed for _ in range(3)}
    assert len(seeds) == 3 and min(seeds) >= 0
    assert all(f"augmentation: {seed}" in caplog.text for seed in seeds)


def test_batch_size_must_fit_the_processes(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("segdet.utils.comm.get_world_size", lambda: 3)
    with pytest.raises(ConfigError, match=r"IMS_PER_BATCH is 2, must be a multiple of the 3"):
        build_detection_train_loader(cfg)


def test_sizes_for_grouping_may_come_from_the_files(cfg: CfgNode, coco_folder: CocoFolder):
    records = [{"file_name": str(coco_folder.images / "0.png")}]
    loader = build_detection_train_loader(records, mapper=None, total_batch_size=1, seed=0)
    assert next(iter(loader)) == [records[0]]


def test_streams_are_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([])

    with pytest.raises(ConfigError, match="map-style"):
        build_detection_train_loader(Stream(), mapper=None, total_batch_size=1)


def test_sampler_by_name(cfg: CfgNode):
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    cfg.DATALOADER.REPEAT_THRESHOLD = 4.0
    sampler = build_detection_train_loader(cfg).sampler
    assert sampler.repeat_factors.tolist() == [2, 2]  # root of 4.0 / (2 of 2 images)
    cfg.DATALOADER.SAMPLER_TRAIN = "Training"
    with pytest.raises(ConfigError, match="SAMPLER_TRAIN must be one of TrainingSampler, Repeat"):
        build_detection_train_loader(cfg)


def test_no_data_set_and_unknown_data_set(cfg: CfgNode):
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(DataError, match=r"set DATASETS\.TRAIN"):
        build_detection_train_loader(cfg)
    cfg.DATASETS.TRAIN = ("coco_2017_trian",)
    with pytest.raises(DataError, match="'coco_2017_trian'; did you mean coco_2017_train"):
        build_detection_train_loader(cfg)


def register(name: str, records: list[dict], classes: list[str] | None = None) -> None:
    DatasetCatalog.register(name, lambda: records)
    if classes:
        MetadataCatalog.get(name).thing_classes = classes


def objects(*categories: int, **changes) -> list[dict]:
    return [{"category_id": c, "bbox": [0, 0, 1, 1], "bbox_mode": 0} | changes for c in categories]


def test_images_without_objects_are_filtered_and_counted(caplog: pytest.LogCaptureFixture):
    records = [
        {"annotations": objects(0, 1)},
        {"annotations": []},
        {"annotations": objects(0, iscrowd=1)},
    ]
    register("three", records, ["a", "b"])
    assert get_detection_dataset_dicts("three", filter_empty=False) == records
    with caplog.at_level(logging.INFO, logger="segdet.data"):
        assert get_detection_dataset_dicts(["three"]) == records[:1]
    assert "Left out 2 images without objects, 1 images remain" in caplog.text
    assert "2 objects in 1 images" in caplog.text


def test_images_without_annotations_key_are_kept():
    register("unlabelled", [{"file_name": "a"}])
    assert len(get_detection_dataset_dicts("unlabelled")) == 1


def test_few_keypoints_are_filtered():
    seen = objects(0, keypoints=[1, 1, 2, 1, 1, 0])
    unseen = objects(0, keypoints=[1, 1, 0, 1, 1, 0])
    register("people", [{"annotations": seen}, {"annotations": unseen}])
    assert len(get_detection_dataset_dicts("people", min_keypoints=1)) == 1


def test_data_sets_must_agree_on_classes():
    register("cats", [{"annotations": objects(0)}], ["cat"])
    register("dogs", [{"annotations": objects(0)}], ["dog"])
    with pytest.raises(DataError, match="'cats' and 'dogs' differ in classes: class 0 is 'cat' in"):
        get_detection_dataset_dicts(["cats", "dogs"])
    assert len(get_detection_dataset_dicts(["cats", "dogs"], check_consistency=False)) == 2
    many = [f"class {k}" for k in range(1203)]
    register("many", [{"annotations": objects(0)}], many)
    register("more", [{"annotations": objects(0)}], [*many, "one more"])
    with pytest.raises(DataError, match=r"classes: the first has 1203, the second 1204$"):
        get_detection_dataset_dicts(["many", "more"])


def test_class_out_of_range_is_named():
    register("odd", [{"image_id": 7, "annotations": objects(1)}], ["cat"])
    with pytest.raises(DataError, match=r"image id 7: category_id is 1, must be in \[0, 1\)"):
        get_detection_dataset_dicts("odd")


def test_a_negative_class_is_refused_without_names_of_classes_too():
    register("odd", [{"image_id": 7, "annotations": objects(-1)}])
    records = get_detection_dataset_dicts("odd")
    with pytest.raises(DataError, match="image id 7, object 0: category_id must be >= 0, is -1"):
        check_class_count(records, ["odd"], 80)
    with pytest.raises(DataError, match="category_id must be >= 0, is -1"):
        category_of(records[0]["annotations"][0])


def test_objects_without_masks_are_dropped_and_counted(caplog: pytest.LogCaptureFixture):
    masked, boxed, crowd = objects(0, segmentation=[[]]), objects(0), objects(0, iscrowd=1)
    records = [
        {"annotations": masked},
        {"annotations": masked + boxed + crowd},
        {"annotations": boxed + crowd},
        {"annotations": []},
        {},
    ]
    left = [records[0], {"annotations": masked + crowd}, {"annotations": []}, {}]
    assert drop_objects_without_masks(records, ["some"]) == left
    assert "Left out 2 of 4 objects" in caplog.text
    assert len(records[1]["annotations"]) == 3, "the records are not changed"
    with pytest.raises(DataError, match="some: none of the 1 objects has a segmentation"):
        drop_objects_without_masks([{"annotations": boxed}], ["some"])


def test_empty_data_set_can_be_tested(coco_folder: CocoFolder):
    coco_folder.tree |= {"images": [], "annotations": []}
    json_file, images = coco_folder.write()
    loader = build_detection_test_loader(a_config(), f"{json_file}:{images}")
    assert len(loader) == 0 and list(loader) == []


@pytest.mark.parametrize("num_workers", [0, 1])
def test_errors_of_workers_arrive_as_they_are(cfg: CfgNode, num_workers: int):
    images = cfg.DATASETS.TRAIN[0].partition(".json:")[2]
    (Path(images) / "1.png").write_text("no picture")
    cfg.DATALOADER.NUM_WORKERS = num_workers
    with pytest.raises(DataError) as caught:
        next(iter(build_detection_train_loader(cfg)))
    assert str(caught.value).startswith("image id 2: image ") and "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"^image id 2: "):
        list(build_detection_test_loader(cfg, cfg.DATASETS.TEST[0]))


def test_training_leaves_global_generators_alone(cfg: CfgNode):
    torch.manual_seed(3)
    np.random.seed(3)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(3)
    np.random.seed(3)
    next(iter(build_detection_train_loader(cfg)))
    assert (torch.rand(1), np.random.rand()) == expected


@pytest.mark.parametrize(
    "system, section",
    [("GeneralizedRCNN", "ROI_HEADS"), ("RetinaNet", "RETINANET"), ("OneStageDetector", "FCOS")],
)
def test_a_class_that_the_model_lacks_is_refused(cfg: CfgNode, system: str, section: str):
    cfg.MODEL.META_ARCHITECTURE = system
    for other in {"ROI_HEADS", "RETINANET", "FCOS"} - {section}:
        cfg.MODEL[other].NUM_CLASSES = 1  # which this system does not look at
    build_detection_train_loader(cfg)
    cfg.MODEL[section].NUM_CLASSES = 1
    with pytest.raises(ConfigError, match=rf"2 classes, MODEL.{section}.NUM_CLASSES is 1"):
        build_detection_train_loader(cfg)


def test_what_each_system_learns_from_is_known():
    assert all(section.needs.labels for section in SYSTEMS.values())


def test_panoptic_blendmask_under_its_official_name_needs_label_maps(cfg: CfgNode):
    cfg.MODEL.META_ARCHITECTURE = "BlendMask"
    build_detection_train_loader(cfg)
    cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED = True
    with pytest.raises(DataError, match=r"0\.png has no sem_seg_file_name and no segments_info"):
        build_detection_train_loader(cfg)


def test_the_needs_of_a_plug_in_are_checked(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(SYSTEMS, "Mine", SYSTEMS["PanopticFPN"])
    cfg.MODEL.META_ARCHITECTURE = "Mine"
    with pytest.raises(DataError, match=r"0\.png has no sem_seg_file_name and no segments_info"):
        build_detection_train_loader(cfg)


def test_proposals_have_no_classes(cfg: CfgNode):
    cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 0
    build_detection_train_loader(cfg)


@pytest.mark.parametrize("category", [None, "cat"])
def test_an_object_without_a_class_is_named(category):
    records = [{"file_name": "a.png", "annotations": objects(0, category)}]
    register("odd", records, ["cat"])
    with pytest.raises(
        DataError, match=r"a\.png, object 1: category_id must be a whole number, is"
    ):
        get_detection_dataset_dicts("odd")


def test_grouping_needs_a_file_or_a_size():
    with pytest.raises(DataError, match=r"a record has no file_name: \{'image_id': 7\}"):
        build_detection_train_loader([{"image_id": 7}], mapper=None, total_batch_size=1)


def a_panoptic_config(folder: PanopticFolder, system: str) -> CfgNode:
    json_file, images, _ = folder.write()
    cfg = a_config()
    cfg.MODEL.META_ARCHITECTURE = system
    cfg.DATASETS.TRAIN = (f"{json_file}:{images}",)
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    return cfg


def test_images_without_objects_can_be_kept(panoptic_folder: PanopticFolder):
    cfg = a_panoptic_config(panoptic_folder, "PanopticFPN")
    samples = next(iter(build_detection_train_loader(cfg)))
    assert sorted(len(sample["instances"]) for sample in samples) == [0, 1]
    assert all(sample["sem_seg"].shape == sample["image"].shape[1:] for sample in samples)
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True
    dataset = build_detection_train_loader(cfg).dataset
    assert isinstance(dataset, MapDataset) and len(dataset) == 1


def test_label_maps_alone(panoptic_folder: PanopticFolder, caplog: pytest.LogCaptureFixture):
    folder = panoptic_folder.json.with_name("labels")
    folder.mkdir()
    for name in "ab":
        Image.fromarray(np.zeros((60, 80), np.uint8)).save(folder / f"{name}.png")
    (folder / "classes.txt").write_text("road\nsky\n")
    cfg = a_panoptic_config(panoptic_folder, "SemanticSegmentor")
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (f"{folder}:{panoptic_folder.images}",)
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True
    for mask_on in (False, True):
        cfg.MODEL.MASK_ON = mask_on
        sample = next(iter(build_detection_train_loader(cfg)))[0]
        assert "sem_seg" in sample and "instances" not in sample
    assert "has 2 semantic classes, MODEL.SEM_SEG_HEAD.NUM_CLASSES is 54" in caplog.text
    assert len(build_detection_test_loader(cfg, cfg.DATASETS.TEST[0])) == 2
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 1
    with pytest.raises(ConfigError, match=r"has 2 semantic classes, MODEL\.SEM_SEG_HEAD\.NUM_CLAS"):
        build_detection_train_loader(cfg)
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    with pytest.raises(DataError, match=r"nothing to train on in .*: no image has an object"):
        build_detection_train_loader(cfg)
    cfg.MODEL.META_ARCHITECTURE = "PanopticFPN"
    with pytest.raises(DataError, match=r"a\.jpg has no annotations, which this model learns from"):
        build_detection_train_loader(cfg)


@pytest.mark.parametrize("system", ["PanopticFPN", "SemanticSegmentor"])
def test_missing_label_maps_are_named(cfg: CfgNode, system: str):
    cfg.MODEL.META_ARCHITECTURE = system
    with pytest.raises(DataError, match=r"0\.png has no sem_seg_file_name and no segments_info"):
        build_detection_train_loader(cfg)


def test_the_classes_of_an_unknown_system_are_its_own(cfg: CfgNode):
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS.NUM_CLASSES = "Mine", 1
    assert next(iter(build_detection_train_loader(cfg)))


@pytest.mark.parametrize("key", ["ROI_HEADS", "SEM_SEG_HEAD"])
def test_both_numbers_of_classes_count_for_panoptic_fpn(panoptic_folder: PanopticFolder, key: str):
    cfg = a_panoptic_config(panoptic_folder, "PanopticFPN")
    cfg.MODEL[key].NUM_CLASSES = 1
    with pytest.raises(ConfigError, match=rf"MODEL\.{key}\.NUM_CLASSES is 1"):
        build_detection_train_loader(cfg)


def test_images_that_lose_their_masks_stay_where_empty_ones_do():
    boxed = {"annotations": [{"category_id": 0}]}
    whole = {"annotations": [{"category_id": 0, "segmentation": []}]}
    records = [boxed, whole]
    assert drop_objects_without_masks(records, ["some"], False) == [{"annotations": []}, whole]
    assert drop_objects_without_masks(records, ["some"]) == [whole]


def test_batches_of_samples_that_are_mapped_already():
    records = [{"id": i, "width": 4 + i % 2, "height": 4} for i in range(6)]
    loader = build_batch_data_loader(
        records, TrainingSampler(6, shuffle=False), 2, aspect_ratio_grouping=True
    )
    batches = list(itertools.islice(loader, 3))
    assert [[sample["id"] for sample in batch] for batch in batches] == [[0, 2], [1, 3], [4, 0]]
