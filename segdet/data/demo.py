"""Makes the demo data set: drawn scenes with instance, panoptic and semantic annotation."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import shapely
from PIL import Image

from segdet.data.demo_scene import STUFF, THINGS, Scene, SceneObject, draw_scene
from segdet.data.rle import tight_box
from segdet.data.segment_ids import write_segment_ids
from segdet.utils.writing import write_text_atomically

# Things first; a category's id is its place from 1, its semantic label its place from 0.
CATEGORIES = [
    {"id": i, "name": name, "isthing": int(i <= len(THINGS))}
    for i, name in enumerate(THINGS + STUFF, 1)
]
_EMPTY_EVERY, _CROWD_EVERY = 25, 15  # every so many scenes have no things, or a crowd too


def make_demo_dataset(
    folder: str | os.PathLike[str], *, num_train: int = 200, num_val: int = 50, seed: int = 0
) -> Path:
    """Draw the data set; the same arguments give the same files.

    Args:
        folder: gets `train/` and `val/` with JPEG pictures, and in `annotations/`, for both:
            `instances_*.json`: COCO instances, as polygons, RLE where there are holes, crowds;
            `panoptic_*.json` and `panoptic_*/`: COCO panoptic;
            `semantic_*/`: PNG of class labels from 0, things before stuff;
            `stuff_*/`: PNG with 0 for all things and stuff classes from 1.
        num_train: number of pictures to train on.
        num_val: number of held-out pictures.
        seed: of everything; scene i does not depend on the numbers of scenes.

    Returns:
        The folder. Its name is `demo_train`, `demo_val` to configs where it is "demo" under
        the root of the built-in data sets.
    """
    folder = Path(folder)
    for number, (split, count) in enumerate((("train", num_train), ("val", num_val))):
        writer = _SplitWriter(folder, split)
        for i in range(count):
            rng = np.random.default_rng([seed, number, i])
            things = 0 if i % _EMPTY_EVERY == 7 else int(rng.integers(2, 6))
            writer.add(draw_scene(rng, num_objects=things, with_crowd=i % _CROWD_EVERY == 4))
        writer.finish(f"segdet demo scenes, seed {seed}, {split}")
    return folder


class _SplitWriter:
    """Writes the pictures and label maps of one split, then its json files."""

    def __init__(self, folder: Path, split: str) -> None:
        self._images_folder, self._annotations = folder / split, folder / "annotations"
        self._split = split
        self._images_folder.mkdir(parents=True, exist_ok=True)
        for kind in ("panoptic", "semantic", "stuff"):
            self._folder_of(kind).mkdir(parents=True, exist_ok=True)
        self._images: list[dict[str, Any]] = []
        self._instances: list[dict[str, Any]] = []
        self._panoptic: list[dict[str, Any]] = []

    def _folder_of(self, kind: str) -> Path:
        return self._annotations / f"{kind}_{self._split}"

    def add(self, scene: Scene) -> None:
        image_id = len(self._images) + 1
        stem = f"{image_id:06d}"
        height, width = scene.stuff.shape
        Image.fromarray(scene.image).save(self._images_folder / f"{stem}.jpg", quality=92)
        self._images.append(
            {"id": image_id, "file_name": f"{stem}.jpg", "width": width, "height": height}
        )
        for thing in scene.objects:
            row = {"id": len(self._instances) + 1, "image_id": image_id}
            self._instances.append(row | _instance(thing))
        semantic = scene.stuff + len(THINGS)
        for thing in scene.objects:
            semantic[thing.mask] = thing.category
        stuff = np.where(semantic < len(THINGS), 0, semantic - len(THINGS) + 1)
        Image.fromarray(semantic).save(self._folder_of("semantic") / f"{stem}.png")
        Image.fromarray(stuff.astype(np.uint8)).save(self._folder_of("stuff") / f"{stem}.png")
        ids, segments = _panoptic(scene)
        write_segment_ids(self._folder_of("panoptic") / f"{stem}.png", ids)
        self._panoptic.append(
            {"image_id": image_id, "file_name": f"{stem}.png", "segments_info": segments}
        )

    def finish(self, description: str) -> None:
        things = [category for category in CATEGORIES if category["isthing"]]
        for kind, categories, rows in (
            ("instances", things, self._instances),
            ("panoptic", CATEGORIES, self._panoptic),
        ):
            tree = {
                "info": {"description": description},
                "images": self._images,
                "categories": categories,
                "annotations": rows,
            }
            file = self._annotations / f"{kind}_{self._split}.json"
            write_text_atomically(file, json.dumps(tree))


def _instance(thing: SceneObject) -> dict[str, Any]:
    """A COCO annotation without its ids."""
    parts = [p for p in shapely.get_parts(thing.shape) if p.geom_type == "Polygon" and p.area > 2]
    if thing.is_crowd:
        segmentation: Any = {"size": list(thing.mask.shape), "counts": _runs(thing.mask)}
    elif any(part.interiors for part in parts):
        rle: Any = mask_util.encode(np.asfortranarray(thing.mask, np.uint8))
        segmentation = {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}
    else:
        outlines = [np.asarray(part.exterior.coords[:-1]) for part in parts]
        segmentation = [outline.round(2).ravel().tolist() for outline in outlines]
    return {
        "category_id": thing.category + 1,
        "iscrowd": int(thing.is_crowd),
        "bbox": _bbox(thing.mask),
        "area": int(thing.mask.sum()),
        "segmentation": segmentation,
    }


def _runs(mask: np.ndarray) -> list[int]:
    """Lengths of runs of 0 and 1 in turn, column by column."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=False)).tolist()
    return np.diff([0, *changes, flat.size]).tolist()


def _bbox(mask: np.ndarray) -> list[int]:
    """Tight XYWH box in pixels."""
    box = tight_box(mask)
    assert box is not None, "every object and segment has a pixel"
    x0, y0, x1, y1 = box
    return [x0, y0, x1 - x0, y1 - y0]


def _panoptic(scene: Scene) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """(H, W) segment ids, 1000 * category + n, and COCO's segments_info."""
    ids = (scene.stuff.astype(np.int64) + len(THINGS) + 1) * 1000
    crowds = set()
    for n, thing in enumerate(scene.objects, 1):
        segment = (thing.category + 1) * 1000 + n
        ids[thing.mask] = segment
        if thing.is_crowd:
            crowds.add(segment)
    segments = [
        {
            "id": segment,
            "category_id": segment // 1000,
            "iscrowd": int(segment in crowds),
            "bbox": _bbox(ids == segment),
            "area": int((ids == segment).sum()),
        }
        for segment in np.unique(ids).tolist()
    ]
    return ids, segments
