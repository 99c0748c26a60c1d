"""Panoptic quality of a model's outputs, and its results in COCO's panoptic format."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segdet.data.catalog import Metadata, MetadataCatalog
from segdet.data.readers.coco_json import file_below, parse_json, rows_of
from segdet.data.segment_ids import read_segment_ids, segments_of_labels, write_segment_ids
from segdet.errors import DataError
from segdet.evaluation.coco_report import distinct_names
from segdet.evaluation.evaluator import DatasetEvaluator, part_of
from segdet.evaluation.panoptic_quality import (
    PanopticMap,
    Quality,
    category_quality,
    count_segments,
    mean_quality,
)
from segdet.evaluation.row_file import RowFile
from segdet.utils import comm

logger = logging.getLogger(__name__)

_FOLDER = "panoptic"  # of pictures, beside predictions.json


@dataclass(frozen=True, kw_only=True)
class _Truth:
    """A panoptic json: what a results file repeats of it, and its annotations."""

    source: str
    head: dict[str, Any]  # info, images, categories
    categories: list[dict[str, Any]]
    annotations: dict[Hashable, dict[str, Any]] | None  # by image id; None in a test file


class COCOPanopticEvaluator(DatasetEvaluator):
    """PQ, SQ and RQ as COCO's panopticapi counts them.

    Images are counted as they come: of their maps nothing stays in memory.
    """

    def __init__(self, dataset_name: str, output_dir: str | os.PathLike[str] | None = None) -> None:
        """Read the ground truth's json.

        Args:
            dataset_name: its metadata has `panoptic_json` and `panoptic_root`, and maps the ids of
                things and stuff (`thing_dataset_id_to_contiguous_id`, `stuff_...`).
            output_dir: gets `predictions.json` and the folder `panoptic` of PNG files; None writes
                nothing.

        Raises:
            DataError: the metadata or the json lacks something.
        """
        self._metadata = MetadataCatalog.get(dataset_name)
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._root = Path(_fact(self._metadata, "panoptic_root"))
        self._truth = _read_truth(Path(_fact(self._metadata, "panoptic_json")))
        self._row_of = {row["id"]: k for k, row in enumerate(self._truth.categories)}
        self._file_names = {} if output_dir is None else _file_names(self._truth)
        self.reset()

    def reset(self) -> None:
        """Forget all predictions."""
        self._counts = np.zeros((len(self._row_of), 4), object)
        self._seen: list[Hashable] = []
        self._rows = RowFile()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Count, and write, the segments of one batch.

        Args:
            inputs: with `image_id` and `file_name`.
            outputs: with `panoptic_seg`: a map (H, W) of ids in the frame of the original image,
                where 0 is no segment, and its segments: `id`, `category_id` and `isthing`, by
                which the category, contiguous, is that of a thing or of stuff; a category without
                `isthing` is the data set's id. The segments may be None: see `segments_of_labels`.
        """
        for record, output in zip(inputs, outputs, strict=True):
            ids, segments = part_of(output, "panoptic_seg", self._metadata.name)
            ids = torch.as_tensor(ids).cpu().numpy()
            source = f"prediction of {record['file_name']}"
            if segments is None:
                things = _fact(self._metadata, "thing_dataset_id_to_contiguous_id").values()
                divisor = _fact(self._metadata, "label_divisor")
                ids, segments = segments_of_labels(ids, divisor, things)
            found = PanopticMap(
                ids=ids,
                segments=[_with_dataset_id(s, self._metadata, source) for s in segments],
                source=source,
            )
            if self._truth.annotations is not None:
                self._counts += count_segments(
                    self._read(self._truth.annotations, record["image_id"]), found, self._row_of
                )
            self._seen.append(record["image_id"])
            if self._output_dir is not None:
                self._write(self._output_dir / _FOLDER, record["image_id"], found)

    def _read(self, annotations: Mapping[Hashable, dict], image_id: Hashable) -> PanopticMap:
        if image_id not in annotations:
            raise DataError(f"{self._truth.source} has no annotation of image {image_id!r}")
        row = annotations[image_id]
        file = self._root / row["file_name"]
        return PanopticMap(
            ids=read_segment_ids(file), segments=row["segments_info"], source=str(file)
        )

    def _write(self, folder: Path, image_id: Hashable, found: PanopticMap) -> None:
        if image_id not in self._file_names:
            raise DataError(f"{self._truth.source} has no image {image_id!r}")
        name = self._file_names[image_id]
        file = Path(file_below(str(folder), name))
        file.parent.mkdir(parents=True, exist_ok=True)
        write_segment_ids(file, found.ids)
        segments = [{key: s[key] for key in ("id", "category_id")} for s in found.segments]
        self._rows.add({"image_id": image_id, "file_name": name, "segments_info": segments})

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """`panoptic_seg`: PQ, SQ, RQ in percent, of things (PQ_th, ...) and stuff (PQ_st, ...).

        And PQ-<class>, SQ-<class>, RQ-<class>. NaN where there is nothing to count. None where
        another process evaluates; {} without annotations.

        Raises:
            DataError: an image of the ground truth was not predicted, or one twice.
        """
        if self._output_dir is not None:
            head = json.dumps({**self._truth.head, "annotations": []})
            file = self._output_dir / "predictions.json"
            self._rows.write(file, head=head[:-2], tail="]}")
        parts = comm.gather((self._counts, self._seen))
        if not comm.is_main_process():
            return None
        if self._truth.annotations is None:
            logger.info("%s has no annotations: predictions are only written", self._truth.source)
            return {}
        self._check_complete(Counter(image for _, seen in parts for image in seen))
        quality = category_quality(np.sum([counts for counts, _ in parts], axis=0))
        is_thing = np.array([bool(row["isthing"]) for row in self._truth.categories], bool)
        groups = {"": quality, "_th": quality[is_thing], "_st": quality[~is_thing]}
        means = {suffix: mean_quality(rows) for suffix, rows in groups.items()}
        logger.info("Panoptic evaluation results:\n%s", _table(means))
        results = {
            f"{name}{suffix}": 100 * value
            for suffix, mean in means.items()
            for name, value in zip(("PQ", "SQ", "RQ"), mean[:3], strict=True)
        }
        rows = self._truth.categories
        classes = distinct_names([row["name"] for row in rows], [row["id"] for row in rows])
        for category, row in zip(classes, 100 * quality, strict=True):
            for name, value in zip(("PQ", "SQ", "RQ"), row.tolist(), strict=True):
                results[f"{name}-{category}"] = value
        return {"panoptic_seg": results}

    def _check_complete(self, seen: Counter) -> None:
        assert self._truth.annotations is not None, "checked by the caller"
        twice = [image for image, count in seen.items() if count > 1]
        missing = [image for image in self._truth.annotations if image not in seen]
        for images, what in ((twice, "twice"), (missing, "not")):
            if images:
                raise DataError(
                    f"{self._truth.source}: image {images[0]!r} was {what} predicted "
                    f"({len(images)} such images); panoptic quality needs each image once"
                )


def _file_names(truth: _Truth) -> dict[Hashable, str]:
    """Image id -> name of its picture of segments: the annotation's, else after the image."""
    if truth.annotations is not None:
        names = {image: str(row["file_name"]) for image, row in truth.annotations.items()}
    else:
        rows = truth.head.get("images", [])
        names = {row["id"]: f"{Path(row['file_name']).stem}.png" for row in rows}
    most = Counter(names.values()).most_common(1)
    if most and most[0][1] > 1:
        raise DataError(
            f"{truth.source}: {most[0][1]} images would have one picture of segments, {most[0][0]}"
        )
    return names


def _with_dataset_id(segment: Mapping[str, Any], metadata: Metadata, source: str) -> dict[str, Any]:
    """`id` and the data set's `category_id`."""
    segment_id, label, isthing = int(segment["id"]), segment["category_id"], segment.get("isthing")
    if isthing is None:
        return {"id": segment_id, "category_id": label}
    if not isinstance(isthing, bool):
        raise DataError(
            f"{source}: segment {segment_id}: isthing must be True or False, is {isthing!r}"
        )
    kind = "thing" if isthing else "stuff"
    for dataset_id, contiguous in _fact(metadata, f"{kind}_dataset_id_to_contiguous_id").items():
        if contiguous == label:
            return {"id": segment_id, "category_id": dataset_id}
    raise DataError(
        f"{source}: segment {segment_id}: {kind} has no class {label!r}; see the metadata "
        f"{kind}_dataset_id_to_contiguous_id of {metadata.name}"
    )


def _fact(metadata: Metadata, key: str) -> Any:
    if metadata.get(key) is None:
        raise DataError(
            f"the metadata of {metadata.name} has no {key}, which panoptic evaluation needs; set "
            f"it with MetadataCatalog.get({metadata.name!r}).set({key}=...)"
        )
    return metadata.get(key)


def _read_truth(file: Path) -> _Truth:
    tree = parse_json(file)
    categories = rows_of(file, tree, "categories")
    for row in categories:
        if row.get("isthing") not in (0, 1):
            raise DataError(f"{file}: category {row.get('id')!r}: isthing must be 0 or 1")
    annotations: dict[Hashable, dict[str, Any]] | None = None
    if "annotations" in tree:
        annotations = {}
        for i, row in enumerate(rows_of(file, tree, "annotations")):
            lacking = [key for key in ("image_id", "file_name", "segments_info") if key not in row]
            if lacking:
                raise DataError(f"{file}: annotations[{i}] has no {lacking[0]}")
            if row["image_id"] in annotations:
                raise DataError(f"{file}: image {row['image_id']!r} is annotated twice")
            annotations[row["image_id"]] = row
    return _Truth(
        source=str(file),
        head={key: value for key, value in tree.items() if key != "annotations"},
        categories=categories,
        annotations=annotations,
    )


def _table(means: Mapping[str, Quality]) -> str:
    """The four columns that detectron2 shows."""
    lines = ["|        |     PQ |     SQ |     RQ |  #categories |"]
    lines.append("|--------|--------|--------|--------|--------------|")
    for suffix, name in (("", "All"), ("_th", "Things"), ("_st", "Stuff")):
        one = means[suffix]
        numbers = " | ".join(f"{100 * value:6.3f}" for value in one[:3])
        lines.append(f"| {name:<6} | {numbers} | {one.n:>12} |")
    return "\n".join(lines)
