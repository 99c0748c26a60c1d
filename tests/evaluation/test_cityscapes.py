"""Cityscapes' scores, by hand and against numbers that cityscapesScripts 2.3.0 gave."""

import numpy as np
import pytest
import torch
from PIL import Image

from segdet.data import MetadataCatalog
from segdet.data.readers.cityscapes import cityscapes_files
from segdet.data.readers.cityscapes_labels import LABELS, THINGS, TRAINED
from segdet.errors import DataError
from segdet.evaluation import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator
from segdet.structures import Instances
from tests.data.readers.test_cityscapes import write_city

# Split -> of the damaged ground truth below: segm AP and AP50; IoU, iIoU, IoU_sup, iIoU_sup.
GOLDEN = {
    "train": (
        (36.54605018630719, 60.032749368686865),
        (30.726011785860564, 20.12710384267117, 64.65252957989858, 62.12908070303976),
    ),
    "val": (
        (20.208603896103895, 32.34848484848485),
        (37.21355555089841, 23.803795212308753, 64.98276150960046, 63.433569311171745),
    ),
}


@pytest.fixture(autouse=True)
def _own_catalog(monkeypatch):
    monkeypatch.setattr(MetadataCatalog, "_metadata", {})


def damaged(ids: np.ndarray, labels: np.ndarray, rng: np.random.Generator):
    """Objects shifted, repeated, noisy or of a wrong class, and rectangles; a noisy label map."""
    names = [label.id for label in THINGS]
    masks, classes, scores = [], [], []
    for value in np.unique(ids[ids >= 24]):
        for _ in range(rng.integers(1, 4)):
            label = value // 1000 if value >= 1000 else value
            mask = np.roll(ids == value, rng.integers(-3, 4, 2), (0, 1))
            if rng.random() < 0.3:
                mask |= rng.random(mask.shape) < 0.001
            if rng.random() < 0.15:
                label = rng.choice(names)
            masks.append(mask)
            classes.append(names.index(label))
            scores.append(round(float(rng.random()), 1))
    for _ in range(4):
        mask = np.zeros_like(ids, bool)
        y, x = rng.integers(0, 300, 2)
        mask[y : y + 40, x : x + 30] = True
        masks.append(mask)
        classes.append(int(rng.integers(0, 8)))
        scores.append(float(rng.random()))
    found = Instances(ids.shape, pred_masks=torch.tensor(np.array(masks)))
    found.pred_classes = torch.tensor(classes)
    found.scores = torch.tensor(scores, dtype=torch.float64)
    train_ids = np.array([label.train_id for label in LABELS])[labels]
    train_ids = np.where(train_ids == 255, rng.integers(0, 19, ids.shape), train_ids)
    train_ids = np.roll(train_ids, 2, 1)
    train_ids = np.where(rng.random(ids.shape) < 0.1, rng.integers(0, 19, ids.shape), train_ids)
    sem_seg = torch.nn.functional.one_hot(torch.tensor(train_ids), 19).permute(2, 0, 1)
    return {"instances": found, "sem_seg": sem_seg}


@pytest.mark.parametrize("split", GOLDEN)
def test_official_numbers(shared_data, tmp_path, monkeypatch, split):
    (tmp_path / "cityscapes").symlink_to(shared_data / "cityscapes_layout")
    monkeypatch.setenv("SEGDET_DATASETS", str(tmp_path))
    metadata = MetadataCatalog.get(f"cityscapes_fine_instance_seg_{split}")
    objects = CityscapesInstanceEvaluator(metadata.name)
    maps = CityscapesSemSegEvaluator(f"cityscapes_fine_sem_seg_{split}")
    for evaluator in (objects, maps):
        evaluator.reset()
    rng = np.random.default_rng(0)
    for files in cityscapes_files(metadata.image_dir, metadata.gt_dir):
        ids, labels = (
            np.array(Image.open(file)).astype(int) for file in (files.instance_ids, files.label_ids)
        )
        output = damaged(ids, labels, rng)
        for evaluator in (objects, maps):
            evaluator.process([{"file_name": str(files.image)}], [output])
    of_objects, of_maps = GOLDEN[split]
    results = objects.evaluate()["segm"]
    assert (results["AP"], results["AP50"]) == pytest.approx(of_objects)
    assert [*maps.evaluate()["sem_seg"].values()][:4] == pytest.approx(of_maps)


@pytest.fixture
def city(tmp_path):
    ids = np.full((40, 60), 7, np.uint16)  # road
    ids[0:10, 0:20] = 26_000  # a car
    ids[20:30, 0:20] = 26  # a group of cars
    ids[0:10, 30:50] = 26_001
    ids[30:33, 30:33] = 26_002  # too small to count
    ids[39] = 3  # void
    images, truth = write_city(tmp_path, [], ids)
    labels = np.where(ids >= 1000, ids // 1000, ids).astype(np.uint8)
    Image.fromarray(labels).save(f"{truth}/x/x_0_gtFine_labelIds.png")
    MetadataCatalog.get("town").set(
        gt_dir=truth, thing_classes=[k.name for k in THINGS], stuff_classes=[]
    )
    return {"file_name": f"{images}/x/x_0_leftImg8bit.png"}, ids, labels


def objects_of(ids, regions, scores):
    masks = np.array([np.isin(ids, region) for region in regions]).reshape(-1, *ids.shape)
    classes = torch.full((len(regions),), 2)
    found = Instances(ids.shape, pred_masks=torch.tensor(masks), pred_classes=classes)
    found.scores = torch.tensor(scores)
    return {"instances": found}


@pytest.mark.parametrize(
    "regions, scores, ap",
    [
        ([[26_000], [26_001]], [0.9, 0.8], 100),
        # Groups, small objects and void are neither found nor false.
        ([[26_000], [26_001], [26], [26_002], [3]], [0.9, 0.8, 1, 1, 1], 100),
        ([[26_000]], [0.9], 50),  # recall 1/2 and 0, precision 1
        ([[7]], [0.9], 0),
        ([], [], 0),
    ],
)
def test_objects_by_hand(city, regions, scores, ap):
    record, ids, _ = city
    evaluator = CityscapesInstanceEvaluator("town")
    evaluator.reset()
    evaluator.process([record], [objects_of(ids, regions, scores)])
    results = evaluator.evaluate()["segm"]
    assert results["AP-car"] == results["AP"] == pytest.approx(ap)
    assert np.isnan(results["AP-bus"])


def test_masks_rank_by_their_own_scores(city):
    record, ids, _ = city
    evaluator = CityscapesInstanceEvaluator("town")
    found = objects_of(ids, [[7], [26_000], [26_001]], [0.9, 0.8, 0.7])
    aps = []
    for mask_scores in (None, torch.tensor([0.1, 0.8, 0.7])):
        if mask_scores is not None:
            found["instances"].mask_scores = mask_scores
        evaluator.reset()
        evaluator.process([record], [found])
        aps.append(evaluator.evaluate()["segm"]["AP"])
    assert aps[0] < 80 and aps[1] > 85  # the false one comes last


def test_a_second_find_is_false(city):
    record, ids, _ = city
    evaluator = CityscapesInstanceEvaluator("town")
    evaluator.reset()
    twice = objects_of(ids, [[26_000], [26_000], [26_001]], [0.9, 0.8, 0.7])
    evaluator.process([record], [twice])
    # Recall 1 (precision 2/3), 1/2 (1/2), 1/2 (1), 0 (1); widths 1/4, 1/4, 1/4, 1/4.
    expected = 100 * (2 / 3 + 1 / 2 + 1 + 1) / 4
    assert evaluator.evaluate()["segm"]["AP"] == pytest.approx(expected)


def test_label_maps_by_hand(city):
    record, ids, labels = city
    evaluator = CityscapesSemSegEvaluator("town")
    train_id = np.array([k.train_id for k in LABELS])[labels]
    train_id[train_id == 255] = 0
    train_id[ids == 26_001] = 14  # a truck: of the right category
    sem_seg = torch.nn.functional.one_hot(torch.tensor(train_id), 19).permute(2, 0, 1)
    for _ in range(2):
        evaluator.reset()
        evaluator.process([record], [{"sem_seg": sem_seg}])
    results = evaluator.evaluate()["sem_seg"]
    cars = int((labels == 26).sum())
    assert results["IoU-car"] == pytest.approx(100 * (cars - 200) / cars)
    assert results["IoU-road"] == 100 and results["IoU-truck"] == 0
    assert results["IoU_sup"] == results["iIoU_sup"] == 100
    # Two of three objects weigh the same; a truck that is none counts fully.
    assert results["iIoU"] == pytest.approx((100 * 2 / 3 + 0) / 2)
    assert len(TRAINED) == 19 and np.isnan(results["IoU-sky"])


def test_other_sizes_are_refused(city):
    record, ids, _ = city
    with pytest.raises(DataError, match=r"predicted masks are \(10, 10\), the annotation is"):
        CityscapesInstanceEvaluator("town").process([record], [objects_of(ids[:10, :10], [7], [1])])
    with pytest.raises(DataError, match=r"predicted map is \(4, 4\), the annotation is \(40, 60\)"):
        CityscapesSemSegEvaluator("town").process([record], [{"sem_seg": torch.zeros(19, 4, 4)}])
