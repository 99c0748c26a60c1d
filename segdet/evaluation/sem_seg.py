"""Scores of semantic segmentation: IoU and accuracy of classes, from one table of pixels."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segdet.data.catalog import DatasetCatalog, MetadataCatalog
from segdet.data.image_io import read_labels
from segdet.data.sem_seg import LABEL_KEYS, has_sem_seg, read_sem_seg
from segdet.errors import ConfigError, DataError
from segdet.evaluation.coco_report import distinct_names, table
from segdet.evaluation.evaluator import DatasetEvaluator, part_of
from segdet.evaluation.label_maps import (
    best_labels,
    boundary_of,
    boundary_width,
    count_pairs,
    mean_of_known,
)
from segdet.evaluation.rle import encode_masks
from segdet.evaluation.row_file import RowFile
from segdet.utils import comm
from segdet.utils.writing import write_atomically

logger = logging.getLogger(__name__)

_MAX_LABELS = 255  # that edges are worked out for: maps of 8 bits


def _load_labels(file_name: str | os.PathLike[str], dtype: Any = None) -> np.ndarray:
    return read_labels(file_name).astype(dtype)


class SemSegEvaluator(DatasetEvaluator):
    """mIoU, its weighted forms and accuracies; of what was seen only tables of pixels are kept."""

    def __init__(
        self,
        dataset_name: str,
        distributed: bool = True,
        output_dir: str | os.PathLike[str] | None = None,
        *,
        sem_seg_loading_fn: Callable[..., Any] = _load_labels,
        num_classes: int | None = None,
        ignore_label: int | None = None,
    ) -> None:
        """Look up where the ground truth is.

        Args:
            dataset_name: its records have `file_name` and `sem_seg_file_name`, or segments to
                make label maps of (`segdet.data.sem_seg`); its metadata has `stuff_classes`,
                maybe `ignore_label` and `stuff_dataset_id_to_contiguous_id`.
            distributed: whether the processes have parts of the data set, to be summed on the
                main process; otherwise each evaluates what it was given.
            output_dir: for `sem_seg_predictions.json` and `sem_seg_evaluation.pth`; None writes
                nothing.
            sem_seg_loading_fn: file name and `dtype=int` -> (H, W) integers.
            num_classes: of `stuff_classes`, where given.
            ignore_label: label of pixels that do not count; None is the metadata's.

        Raises:
            ConfigError: another number of classes than the metadata has.
            DataError: the records or the metadata lack something.
        """
        records = DatasetCatalog.get(dataset_name)
        metadata = MetadataCatalog.get(dataset_name)
        if not all(map(has_sem_seg, records)):
            raise DataError(
                f"{dataset_name} has records without sem_seg_file_name: no ground truth for "
                "semantic evaluation"
            )
        self._truth_of = {
            record["file_name"]: {key: record[key] for key in LABEL_KEYS if key in record}
            for record in records
        }
        self._classes = metadata.get("stuff_classes")
        if self._classes is None:
            raise DataError(f"the metadata of {dataset_name} has no stuff_classes; set them")
        if num_classes is not None and num_classes != len(self._classes):
            raise ConfigError(
                f"num_classes is {num_classes}, stuff_classes of {dataset_name} are "
                f"{len(self._classes)}"
            )
        self._name = dataset_name
        self._distributed = distributed
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._load = sem_seg_loading_fn
        self._ignore = metadata.get("ignore_label") if ignore_label is None else ignore_label
        ids = metadata.get("stuff_dataset_id_to_contiguous_id") or {}
        self._dataset_ids = {contiguous: one for one, contiguous in ids.items()}
        keys = [self._dataset_ids.get(k, k) for k in range(len(self._classes))]
        self._classes = distinct_names(self._classes, keys)
        self._has_edges = len(self._classes) < _MAX_LABELS
        self.reset()

    def reset(self) -> None:
        """Forget all predictions."""
        # Rows prediction, columns truth; the last of both is for pixels that do not count.
        size = len(self._classes) + 1
        self._pixels, self._edges = np.zeros((2, size, size), np.int64)
        self._rows = RowFile()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Count the pixels of one batch.

        Args:
            inputs: with `file_name`, as in the data set's records.
            outputs: with `sem_seg`: (K, H, W) scores, in the frame of the original image.
        """
        count = len(self._classes)
        for record, output in zip(inputs, outputs, strict=True):
            file_name = record["file_name"]
            truth = self._read(file_name)
            scores = part_of(output, "sem_seg", self._name)
            found = best_labels(scores, truth, file_name)
            if found.max() >= count:
                raise DataError(
                    f"{file_name}: the model predicts class {found.max()}, {self._name} has "
                    f"{count} stuff_classes; MODEL.SEM_SEG_HEAD.NUM_CLASSES must agree with them"
                )
            self._pixels += count_pairs(found, truth, count + 1)
            if self._has_edges:
                reach = boundary_width(*truth.shape)
                edges = [boundary_of(one.astype(np.uint8), reach) for one in (found, truth)]
                self._edges += count_pairs(edges[0], edges[1], count + 1)
            if self._output_dir is not None:
                self._keep(file_name, found)

    def _read(self, file_name: str) -> np.ndarray:
        """(H, W) labels of an image, with K where nothing counts."""
        if file_name not in self._truth_of:
            raise DataError(f"{file_name} is not among the images of {self._name}")
        record = self._truth_of[file_name]
        file = record.get("sem_seg_file_name")
        labels = np.array(self._load(file, dtype=int) if file else read_sem_seg(record), np.int64)
        count = len(self._classes)
        is_ignored = labels == self._ignore
        wrong = labels[~is_ignored & ((labels < 0) | (labels >= count))]
        if len(wrong):
            raise DataError(
                f"{file or file_name}: has label {wrong[0]}, which is neither one of the {count} "
                f"stuff_classes of {self._name} nor its ignore_label {self._ignore}"
            )
        labels[is_ignored] = count
        return labels

    def _keep(self, file_name: str, found: np.ndarray) -> None:
        labels = np.unique(found).tolist()
        masks = encode_masks(torch.from_numpy(np.stack([found == label for label in labels])))
        for label, mask in zip(labels, masks, strict=True):
            category = self._dataset_ids.get(label, label)
            row = {"file_name": file_name, "category_id": category, "segmentation": mask}
            self._rows.add(row)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """`sem_seg`: mIoU, fwIoU, IoU-<class>, mACC, pACC, ACC-<class> in percent.

        Below 255 classes also BoundaryIoU-<class> and min(IoU, B-Iou)-<class>. Classes that the
        ground truth lacks are NaN and left out of means. None where another process evaluates.
        """
        if self._output_dir is not None:
            file = self._output_dir / "sem_seg_predictions.json"
            self._rows.write(file, gather=self._distributed)
        tables = np.stack([self._pixels, self._edges])
        if self._distributed:
            parts = comm.gather(tables)
            if not comm.is_main_process():
                return None
            tables = np.sum(parts, axis=0)
        edges = tables[1] if self._has_edges else None
        results = {"sem_seg": semantic_scores(tables[0], self._classes, edges)}
        if self._output_dir is not None:
            file = self._output_dir / "sem_seg_evaluation.pth"
            write_atomically(file, lambda stream: torch.save(results, stream))
        shown = {key: value for key, value in results["sem_seg"].items() if "-" not in key}
        by_class = {name: results["sem_seg"][f"IoU-{name}"] for name in self._classes}
        logger.info("Evaluation results for sem_seg:\n%s", table(shown))
        logger.info("sem_seg IoU per class:\n%s", table(by_class, "IoU"))
        return results


def semantic_scores(
    pixels: np.ndarray, names: list[str], edges: np.ndarray | None = None
) -> dict[str, float]:
    """What `SemSegEvaluator` reports, in percent.

    Source: detectron2's evaluator of semantic segmentation; Long et al. 2015 (arXiv:1411.4038),
    section 5, for the four means.

    Args:
        pixels: (K + 1, K + 1), rows prediction, columns truth; the last of both does not count.
        names: of the K classes.
        edges: the same of `boundary_of`.
    """
    hits, there = np.diag(pixels)[:-1], pixels[:-1, :-1].sum(0)
    accuracy = _ratio(hits, there)
    iou = np.where(there > 0, _iou(pixels), np.nan)
    share = _ratio(there, there.sum())
    has_pixels = there.sum() > 0
    results = {
        "mIoU": mean_of_known(iou),
        "fwIoU": float(np.nansum(iou * share)) if has_pixels else np.nan,
    }
    by_class = {"IoU": iou}
    if edges is not None:
        by_class["BoundaryIoU"] = _iou(edges)
        by_class["min(IoU, B-Iou)"] = np.minimum(iou, by_class["BoundaryIoU"])
    for k, name in enumerate(names):
        results.update({f"{kind}-{name}": float(values[k]) for kind, values in by_class.items()})
    results |= {"mACC": mean_of_known(accuracy), "pACC": float(_ratio(hits.sum(), there.sum()))}
    results |= {f"ACC-{name}": float(value) for name, value in zip(names, accuracy, strict=True)}
    return {name: 100 * value for name, value in results.items()}


def _iou(pixels: np.ndarray) -> np.ndarray:
    """(K,) of a table as above; NaN where there is nothing."""
    counted = pixels[:-1, :-1]
    hits = np.diag(counted)
    return _ratio(hits, counted.sum(0) + counted.sum(1) - hits)


def _ratio(part: Any, whole: Any) -> np.ndarray:
    """NaN where the whole is 0."""
    return part / np.where(whole > 0, whole, np.nan)
