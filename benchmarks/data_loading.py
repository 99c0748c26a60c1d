"""Images per second of the official training recipe: ours against detectron2's method.

    python -m benchmarks.data_loading --json output/data_loading.json --workers 2
    python -m benchmarks.data_loading --data train.json:photos

Recipe: COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml: decode, resize to 640 ... 800 pixels,
flip, polygons, batches of 16 of one aspect ratio. The peer does the same in plain calls of Pillow,
numpy and torch, step by step as detectron2 does it; both must give the same pixels and polygons.
`limit_s` is Pillow's decoder alone in as many processes. Without --data: demo scenes, enlarged to
COCO's size. Times are per image, of rounds of each in turn; starting the workers is not counted.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import operator
import os
import pickle
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from segdet import model_zoo
from segdet.config import CfgNode
from segdet.data import DatasetMapper, build_detection_train_loader, get_detection_dataset_dicts
from segdet.data import transforms as T
from segdet.data.demo import make_demo_dataset

RECIPE = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
BATCHES = 10  # of a round


def make_data(folder: Path, images: int = 64) -> str:
    """Demo scenes of twice their size, about 640 x 480, as photos of COCO's quality."""
    make_demo_dataset(folder, num_train=images, num_val=0)
    file = folder / "annotations" / "instances_train.json"
    tree = json.loads(file.read_text())
    for row in tree["images"]:
        row["width"], row["height"] = row["width"] * 2, row["height"] * 2
        picture = Image.open(path := folder / "train" / row["file_name"])
        picture.resize((row["width"], row["height"]), Image.Resampling.BICUBIC).save(
            path, quality=95
        )
    rows = [row for row in tree["annotations"] if isinstance(row["segmentation"], list)]
    for row in rows:
        row["bbox"] = [2 * v for v in row["bbox"]]
        row["segmentation"] = [[2 * v for v in part] for part in row["segmentation"]]
    file.write_text(json.dumps(tree | {"annotations": rows}))
    return f"{file}:{folder / 'train'}"


def recipe(data: str, workers: int) -> CfgNode:
    """The official config with another data set."""
    cfg = model_zoo.get_config(RECIPE)
    cfg.merge_from_list(["DATASETS.TRAIN", (data,), "DATALOADER.NUM_WORKERS", workers, "SEED", 1])
    return cfg


def peer_map(record: dict[str, Any], short: int, longest: int, flip: bool) -> dict[str, Any]:
    """detectron2's mapper in plain calls: one array after the other, each step as it does it."""
    record = copy.deepcopy(record)
    with open(record["file_name"], "rb") as file:
        picture = Image.open(file)
        picture.getexif()
        image = np.asarray(picture.convert("RGB"))[:, :, ::-1]  # BGR
    height, width = image.shape[:2]
    new_h, new_w = T.ResizeShortestEdge.get_output_shape(height, width, short, longest)
    resized = Image.fromarray(image).resize((new_w, new_h), Image.Resampling.BILINEAR)
    image = np.asarray(resized)
    if flip:
        image = np.flip(image, axis=1)
    record["image"] = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))

    def move(points: np.ndarray) -> np.ndarray:
        points[:, 0] *= new_w / width
        points[:, 1] *= new_h / height
        if flip:
            points[:, 0] = new_w - points[:, 0]
        return points

    boxes, classes, polygons = [], [], []
    for row in record.pop("annotations"):
        if row.get("iscrowd", 0):
            continue
        x, y, w, h = row["bbox"]
        corners = move(np.array([[x, y], [x + w, y], [x, y + h], [x + w, y + h]], np.float64))
        box = np.concatenate([corners.min(0), corners.max(0)]).clip(min=0)
        boxes.append(np.minimum(box, [new_w, new_h, new_w, new_h]))
        classes.append(row["category_id"])
        parts = [np.asarray(part).reshape(-1, 2) for part in row["segmentation"]]
        polygons.append([move(part.astype(np.float64)).reshape(-1) for part in parts])
    tensor = torch.as_tensor(np.array(boxes).reshape(-1, 4), dtype=torch.float32)
    keep = ((tensor[:, 2:] - tensor[:, :2]) > 1e-5).all(1)
    record["gt_boxes"] = tensor[keep]
    record["gt_classes"] = torch.tensor(classes, dtype=torch.int64)[keep]
    record["gt_masks"] = [polygons[i] for i in keep.nonzero()[:, 0].tolist()]
    return record


class PeerStream(IterableDataset[dict[str, Any]]):
    """Mapped samples without end, each worker its share; records are pickled into one array."""

    def __init__(self, records: list[dict[str, Any]], cfg: CfgNode) -> None:
        pickles = [pickle.dumps(one, protocol=-1) for one in records]
        self.ends = np.cumsum([len(one) for one in pickles])
        self.buffer = memoryview(b"".join(pickles))
        self.sizes, self.longest = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        shard, shards = (worker.id, worker.num_workers) if worker else (0, 1)
        generator = torch.Generator().manual_seed(1)
        orders = (torch.randperm(len(self.ends), generator=generator) for _ in itertools.count())
        for i in itertools.islice(itertools.chain.from_iterable(orders), shard, None, shards):
            start = self.ends[i - 1] if i else 0
            record = pickle.loads(self.buffer[start : self.ends[i]])
            yield peer_map(record, random.choice(self.sizes), self.longest, random.random() < 0.5)


def peer_batches(records: list[dict[str, Any]], cfg: CfgNode) -> Iterator[list[dict[str, Any]]]:
    """Single samples from the workers, put into batches of one aspect ratio here."""
    loader = DataLoader(
        PeerStream(records, cfg),
        batch_size=1,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=operator.itemgetter(0),
    )
    buckets: tuple[list[Any], list[Any]] = [], []
    for sample in loader:
        bucket = buckets[sample["width"] > sample["height"]]
        bucket.append(sample)
        if len(bucket) == cfg.SOLVER.IMS_PER_BATCH:
            yield bucket.copy()
            bucket.clear()


class _Decoded(Dataset[int]):
    """Decodes pictures and passes on nothing of them."""

    def __init__(self, files: list[str], length: int) -> None:
        self.files, self.length = files, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        with Image.open(self.files[index % len(self.files)]) as picture:
            picture.load()
        return index


def decoded_batches(records: list[dict[str, Any]], cfg: CfgNode) -> Iterable[Any]:
    """Batches of decoded pictures, the limit of any loader that decodes with Pillow."""
    size = cfg.SOLVER.IMS_PER_BATCH
    files = [record["file_name"] for record in records]
    decoded = _Decoded(files, size * 10 * BATCHES)
    return DataLoader(decoded, batch_size=size, num_workers=cfg.DATALOADER.NUM_WORKERS)


def check_equal(records: list[dict[str, Any]], cfg: CfgNode) -> None:
    """Both must make the same pixels and polygons of a record."""
    for record, flip in itertools.product(records[:8], (False, True)):
        theirs = peer_map(record, 704, 1333, flip)
        fixed = [T.ResizeShortestEdge(704, 1333), *([T.RandomFlip(1.0)] if flip else [])]
        ours = DatasetMapper(cfg, is_train=True, augmentations=fixed)(record)
        targets = ours["instances"]
        assert torch.equal(ours["image"], theirs["image"]), record["file_name"]
        torch.testing.assert_close(targets.gt_boxes.tensor, theirs["gt_boxes"])
        assert targets.gt_classes.tolist() == theirs["gt_classes"].tolist()
        for one, other in zip(targets.gt_masks.polygons, theirs["gt_masks"], strict=True):
            np.testing.assert_allclose(np.concatenate(one), np.concatenate(other))


def seconds_per_image(batches: Iterable[list[Any]], size: int) -> float:
    """Wall time of a round, the first batches left out."""
    stream = iter(batches)
    for _ in range(4):  # as many as are prefetched
        next(stream)
    start = time.perf_counter()
    for _ in range(BATCHES):
        next(stream)
    return (time.perf_counter() - start) / (BATCHES * size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", metavar="JSON:FOLDER", help="photos with COCO annotations")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="write the row here too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        cfg = recipe(args.data or make_data(Path(folder)), args.workers)
        records = get_detection_dataset_dicts(cfg.DATASETS.TRAIN)
        check_equal(records, cfg)
        makers: list[Callable[[], Iterable[Any]]] = [
            lambda: build_detection_train_loader(cfg, dataset=records),
            lambda: peer_batches(records, cfg),
            lambda: decoded_batches(records, cfg),
        ]
        times = [
            [seconds_per_image(make(), cfg.SOLVER.IMS_PER_BATCH) for make in makers]
            for _ in range(args.rounds)
        ]
    ours, peer, limit = (statistics.median(column) for column in zip(*times, strict=True))
    row = {
        "name": f"data loading, {args.workers} workers, {os.path.basename(args.data or 'demo')}",
        "ours_s": ours,
        "peer": "detectron2's method",
        "peer_s": peer,
        "ratio": peer / ours,
        "limit_s": limit,
    }
    speeds = {"ours": ours, "detectron2's method": peer, "the decoder alone": limit}
    told = ", ".join(f"{name} {1 / seconds:.1f}" for name, seconds in speeds.items())
    print(f"{row['name']}: images/s: {told}; ratio {peer / ours:.2f}")
    if args.json:
        Path(args.json).write_text(json.dumps([row], indent=1))


if __name__ == "__main__":
    main()
