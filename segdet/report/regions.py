"""Pictures of panoptic and semantic predictions: regions that cover the image."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask as mask_api

from segdet.data import DatasetCatalog, MetadataCatalog
from segdet.data.segment_ids import read_segment_ids
from segdet.data.sem_seg import IGNORE_LABEL, has_sem_seg, read_sem_seg
from segdet.errors import DataError
from segdet.report.gallery import Sources, choose, colored, draw_pictures, outline
from segdet.report.run import TASKS, Missing, Run
from segdet.utils.canvas import frame

_MOST_JUDGED = 300  # images; of larger data sets, so many random ones are looked at
_SEED = 0
_MATCH = 0.5  # IoU above which a region is right, that of panoptic quality

OUTCOMES = {
    "correct": "a region of its class, at an IoU above 0.50",
    "wrong": "no region of its class at such an IoU",
    "missed": "a region that nothing found at such an IoU",
    "ignored": "mostly where nothing is annotated",
}


class Region(NamedTuple):
    """Pixels of one segment, or of one class."""

    category: int  # place in `Regions.classes`
    mask: np.ndarray  # (H, W) bool
    crowd: bool = False


@dataclass(frozen=True, kw_only=True)
class Regions:
    """What a run found in each image, and what is there."""

    classes: list[str]
    files: dict[Hashable, str]  # image -> file
    truth: Callable[[Hashable], list[Region]]
    found: Callable[[Hashable], list[Region]]


def regions_of(runs: Sequence[Run]) -> tuple[str, list[Regions | None]] | None:
    """The task and each run's regions: panoptic segments, else semantic ones; None without any."""
    for task, (file, read) in _READERS.items():
        sets = [_read(run, file, read) for run in runs]
        if any(one is not None for one in sets):
            return task, sets
    return None


def _read(run: Run, file: str, read: Callable[[Run, Path], Regions]) -> Regions | None:
    if not (run.inference / file).is_file() or not run.tested:
        return None
    try:
        return read(run, run.inference / file)
    except DataError as error:
        run.missing.append(Missing("pictures of regions", str(error)))
        return None


def _read_panoptic(run: Run, file: Path) -> Regions:
    tree = _parsed(file)
    known = MetadataCatalog.get(run.tested)
    json_file, root = known.get("panoptic_json"), known.get("panoptic_root")
    if json_file is None or root is None:
        raise DataError(f"the panoptic json of {run.tested} is not known here")
    records = DatasetCatalog.get(run.tested)
    truth = _parsed(Path(json_file))
    place = {row["id"]: k for k, row in enumerate(truth["categories"])}
    return Regions(
        classes=[row["name"] for row in truth["categories"]],
        files={record["image_id"]: record["file_name"] for record in records},
        truth=_segments(truth, Path(root), place),
        found=_segments(tree, file.with_name("panoptic"), place),
    )


def _segments(
    tree: Mapping[str, Any], folder: Path, place: Mapping[Any, int]
) -> Callable[[Hashable], list[Region]]:
    rows = {row["image_id"]: row for row in tree["annotations"]}

    def read(image: Hashable) -> list[Region]:
        if image not in rows:
            return []
        ids = read_segment_ids(folder / rows[image]["file_name"])
        return [
            Region(place[one["category_id"]], ids == one["id"], bool(one.get("iscrowd")))
            for one in rows[image]["segments_info"]
        ]

    return read


def _read_semantic(run: Run, file: Path) -> Regions:
    records = {one["file_name"]: one for one in DatasetCatalog.get(run.tested) if has_sem_seg(one)}
    known = MetadataCatalog.get(run.tested)
    classes = list(known.get("stuff_classes") or [])
    ignored = known.get("ignore_label", IGNORE_LABEL)
    place = known.get("stuff_dataset_id_to_contiguous_id") or {k: k for k in range(len(classes))}
    rows: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in _parsed(file):
        rows[Path(row["file_name"]).name].append(row)

    def truth(image: Hashable) -> list[Region]:
        labels = read_sem_seg(records[str(image)])
        return [Region(k, labels == k) for k in np.unique(labels).tolist() if k != ignored]

    def found(image: Hashable) -> list[Region]:
        own = rows[Path(str(image)).name]
        return [
            Region(place[row["category_id"]], mask_api.decode(row["segmentation"]) != 0)
            for row in own
            if row["category_id"] in place
        ]

    return Regions(
        classes=classes, files={name: name for name in records}, truth=truth, found=found
    )


# Task -> the file of `inference` that holds its predictions, and its reader.
_READERS = {
    "panoptic_seg": ("predictions.json", _read_panoptic),
    "sem_seg": ("sem_seg_predictions.json", _read_semantic),
}


def _parsed(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise DataError(f"{file} is not valid JSON ({error})") from None


def gallery_of_regions(
    task: str, sets: Sequence[Regions | None], pictures: int, sources: Sources
) -> dict[str, Any] | None:
    """The best, the worst and random images; None where no picture can be read.

    Args:
        task: of the regions.
        sets: of each run, as `regions_of` gives them.
        pictures: their number at most.
        sources: gets them.
    """
    first = next(one for one in sets if one is not None)
    same = [one if one is not None and one.classes == first.classes else None for one in sets]
    images = list(first.files)
    rng = np.random.default_rng(_SEED)
    judged = rng.permutation(len(images))[:_MOST_JUDGED].tolist()
    tallies = [_tally(first, images[place]) for place in judged]
    right, wrong, there = np.array(tallies, np.int64).reshape(-1, 3).T
    picks = choose(right, wrong, there, pictures)
    drawn = draw_pictures(
        picks,
        [first.files[images[place]] for place in judged],
        sources,
        lambda n, size: _drawn(images[judged[n]], first, same, size),
    )
    if drawn is None:
        return None
    few = f" of {len(judged)} random images" if len(judged) < len(images) else ""
    return {
        "title": TASKS[task],
        "unit": "region",
        "pictures": drawn,
        "images": len(images),
        "score": None,
        "classes": colored(first.classes),
        "kinds": [{"key": key, "meaning": meaning} for key, meaning in OUTCOMES.items()],
        "about": f"The best and the worst{few} are by the F1 score of their regions at an IoU "
        f"above 0.50{' in the first run' if len(sets) > 1 else ''}.",
    }


def _tally(regions: Regions, image: Hashable) -> tuple[int, int, int]:
    """Regions that are right, those that are wrong, those that are there."""
    truth = regions.truth(image)
    kinds = [kind for kind, _, _ in judge(truth, regions.found(image))]
    return kinds.count("correct"), kinds.count("wrong"), sum(not one.crowd for one in truth)


def judge(truth: Sequence[Region], found: Sequence[Region]) -> list[tuple[str, int, float]]:
    """Of each found region its outcome, the region that it is best at, and the IoU with that.

    As in panoptic quality, pixels without annotation and crowds count neither for nor against:
    a region that mostly lies there is ignored.

    Args:
        truth: regions that share no pixel.
        found: likewise.
    """
    judged = []
    for one in found:
        area = int(one.mask.sum())
        shared = [int((one.mask & other.mask).sum()) for other in truth]
        counted = sum(n for n, other in zip(shared, truth, strict=True) if not other.crowd)
        ious = [
            n / max(counted + int(other.mask.sum()) - n, 1)
            if other.category == one.category and not other.crowd
            else 0.0
            for n, other in zip(shared, truth, strict=True)
        ]
        best = int(np.argmax(ious)) if ious else -1
        iou = ious[best] if ious else 0.0
        kind = "correct" if iou > _MATCH else "ignored" if counted < area / 2 else "wrong"
        judged.append((kind, best, iou))
    return judged


def _drawn(
    image: Hashable, first: Regions, sets: Sequence[Regions | None], size: tuple[int, int]
) -> dict[str, Any]:
    """What is drawn on an image; as the pictures of objects have it, without scores."""
    truth = first.truth(image)
    there = [{"c": one.category, "crowd": one.crowd, **_shape(one.mask, size)} for one in truth]
    runs = []
    for regions in sets:
        found = [] if regions is None or image not in regions.files else regions.found(image)
        runs.append(
            [
                {
                    "n": n,
                    "c": one.category,
                    "k": kind,
                    "g": place if kind == "correct" else -1,
                    "i": round(iou, 3),
                    **_shape(one.mask, size),
                }
                for n, (one, (kind, place, iou)) in enumerate(
                    zip(found, judge(truth, found), strict=True)
                )
            ]
        )
    return {"truth": there, "runs": runs}


def _shape(mask: np.ndarray, size: tuple[int, int]) -> dict[str, Any]:
    left, top, right, bottom = frame(mask)
    scale = np.array(size)[[1, 0, 1, 0]] / np.array(mask.shape)[[1, 0, 1, 0]]
    box = np.array([left, top, right - left, bottom - top]) * scale
    return {"b": box.round(1).tolist(), "p": outline(mask, size)}
