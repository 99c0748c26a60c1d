"""Pascal VOC's average precision of boxes."""

from __future__ import annotations

import logging
from collections.abc import Hashable

import numpy as np

from segdet.data.catalog import MetadataCatalog
from segdet.data.readers.pascal_voc import annotation_file, read_split, read_voc_annotation
from segdet.errors import DataError
from segdet.evaluation.coco_report import table
from segdet.evaluation.evaluator import DatasetEvaluator
from segdet.utils import comm

logger = logging.getLogger(__name__)

_THRESHOLDS = range(50, 100, 5)  # percent of IoU


class PascalVOCDetectionEvaluator(DatasetEvaluator):
    """AP of boxes by Pascal VOC's rules, of a data set in its layout.

    Source: the VOC2007 and VOC2012 development kits. Boxes are counted in pixels (width is
    xmax - xmin + 1); objects marked difficult are neither missed nor found. As in detectron2, whose
    numbers are published, coordinates are rounded to 0.1 pixel and scores to 0.001, and AP is also
    taken at higher IoUs than VOC's 0.5.
    """

    def __init__(self, dataset_name: str) -> None:
        """Read the ground truth.

        Args:
            dataset_name: its metadata has `dirname`, `split`, `year` and `thing_classes`, as
                `register_pascal_voc` sets them.

        Raises:
            DataError: broken annotations, or classes that the metadata does not name.
        """
        metadata = MetadataCatalog.get(dataset_name)
        self._classes = list(metadata.thing_classes)
        self._is_2007 = metadata.year == 2007
        self._found: list[tuple[Hashable, np.ndarray]] = []
        self._truth: _Truth | None = None
        if comm.is_main_process():
            self._truth = _Truth(metadata.dirname, metadata.split, self._classes)

    def reset(self) -> None:
        """Forget all predictions."""
        self._found = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take in one batch.

        Args:
            inputs: with `image_id`, the name in the split's list.
            outputs: with `instances`: `pred_boxes`, `scores`, `pred_classes`, in the frame of the
                original image.

        Raises:
            DataError: outputs without `instances`, or with boxes or scores that are not finite.
        """
        for image, output in zip(inputs, outputs, strict=True):
            if "instances" not in output:
                raise DataError(
                    f"image {image['image_id']}: the model gives {', '.join(output) or 'nothing'}; "
                    "Pascal VOC's evaluation is of boxes, it needs a model that gives instances"
                )
            found = output["instances"].to("cpu")
            boxes = found.pred_boxes.tensor.double().numpy().copy()
            boxes[:, :2] += 1  # files count pixels from 1, and the last one is inside
            columns = [found.pred_classes.numpy(), found.scores.double().numpy().round(3)]
            rows = np.column_stack([*columns, boxes.round(1)])
            if not np.isfinite(rows).all():
                name = image["image_id"]
                raise DataError(f"image {name}: the model's boxes or scores are NaN or infinite")
            self._found.append((image["image_id"], rows))

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """`bbox`: AP (mean of IoU 0.50:0.05:0.95), AP50, AP75 and AP-<class>, in percent.

        Classes that no image shows are NaN, and left out of the means. None where another process
        evaluates.
        """
        parts = comm.gather(self._found)
        truth = self._truth
        if truth is None:
            return None
        rows = [np.zeros((0, 7))]  # image, class, score, box
        for name, found in (one for part in parts for one in part):
            if name not in truth.image_index:
                raise DataError(f"{truth.source} has no image of the predicted image_id {name!r}")
            index = np.full((len(found), 1), truth.image_index[name])
            rows.append(np.hstack([index, found]))
        found = np.concatenate(rows)
        ap = np.full((len(self._classes), len(_THRESHOLDS)), np.nan)
        for k in range(len(self._classes)):
            of_class = found[found[:, 1] == k]
            ap[k] = class_ap(of_class[:, [0, 2, 3, 4, 5, 6]], truth.objects[k], self._is_2007)
        ap *= 100
        by_class = dict(zip(self._classes, _mean(ap, 1), strict=True))
        mean = _mean(ap, 0)
        results = {"AP": float(_mean(mean, 0)), "AP50": float(mean[0]), "AP75": float(mean[5])}
        logger.info("Evaluation results for bbox (VOC):\n%s", table(results))
        logger.info("bbox AP per class:\n%s", table(by_class))
        results |= {f"AP-{name}": float(value) for name, value in by_class.items()}
        return {"bbox": results}


class _Truth:
    """The objects of a split, by class."""

    def __init__(self, dirname: str, split: str, classes: list[str]) -> None:
        self.source = f"{dirname}, {split}"
        index = {name: k for k, name in enumerate(classes)}
        self.image_index: dict[Hashable, int] = {}
        rows: list[list[list[float]]] = [[] for _ in classes]
        for number, name in enumerate(read_split(dirname, split)):
            self.image_index[name] = number
            file = annotation_file(dirname, name)
            for one in read_voc_annotation(file).objects:
                if one.name not in index:
                    raise DataError(f"{file}: class {one.name!r} is none of {', '.join(classes)}")
                rows[index[one.name]].append([number, one.difficult, *one.box])
        # Of each class (n, 6) image, difficult, box.
        self.objects = [np.array(of_class).reshape(-1, 6) for of_class in rows]


def class_ap(found: np.ndarray, objects: np.ndarray, is_2007: bool) -> np.ndarray:
    """The AP of one class at each IoU.

    Args:
        found: (D, 6) image, score, box; boxes as the files have them, ends inclusive.
        objects: (N, 6) image, difficult, box.
        is_2007: 11 recall points instead of the area under the curve.

    Returns:
        (10,) in [0, 1], for IoU 0.50:0.05:0.95; NaN where there is no object to find.
    """
    easy = objects[:, 1] == 0
    if not easy.any():
        return np.full(len(_THRESHOLDS), np.nan)
    found = found[np.argsort(-found[:, 1], kind="stable")]
    overlap, nearest = _nearest_objects(found, objects)
    counts = np.append(easy, True)[nearest]  # whether its object counts; True where there is none
    ap = []
    for threshold in _THRESHOLDS:
        hits = overlap > threshold / 100
        first = np.zeros(len(found), bool)
        first[np.unique(np.where(hits, nearest, -1), return_index=True)[1]] = True
        is_true = hits & counts & first
        is_false = ~hits | (counts & ~first)
        ap.append(_average_precision(is_true.cumsum(), is_false.cumsum(), int(easy.sum()), is_2007))
    return np.array(ap)


def _nearest_objects(found: np.ndarray, objects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(D,) highest IoU of each detection with an object of its image, and (D,) which; -1: none."""
    overlap, nearest = np.full(len(found), -np.inf), np.full(len(found), -1)
    there_by_image = _rows_by_image(objects[:, 0])
    for image, mine in _rows_by_image(found[:, 0]).items():
        there = there_by_image.get(image)
        if there is None:
            continue
        a, b = found[mine, None, 2:], objects[None, there, 2:]
        sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + 1
        shared = sides.clip(min=0).prod(-1)
        area_a, area_b = ((c[..., 2:] - c[..., :2] + 1).prod(-1) for c in (a, b))
        iou = shared / (area_a + area_b - shared)
        best = iou.argmax(1)
        overlap[mine], nearest[mine] = iou[np.arange(len(mine)), best], there[best]
    return overlap, nearest


def _rows_by_image(images: np.ndarray) -> dict[float, np.ndarray]:
    """Image -> the rows that are of it, from a column of images."""
    order = np.argsort(images, kind="stable")
    values, starts = np.unique(images[order], return_index=True)
    return dict(zip(values.tolist(), np.split(order, starts[1:]), strict=False))


def _average_precision(hits: np.ndarray, misses: np.ndarray, total: int, is_2007: bool) -> float:
    """From numbers of true and false detections so far, best first."""
    recall = hits / total
    precision = hits / np.maximum(hits + misses, np.finfo(np.float64).eps)
    if is_2007:
        # np.arange as in the kit's Python port: 0.1 * 3 is a little above 0.3 there too.
        points = [precision[recall >= t].max(initial=0) for t in np.arange(0, 1.1, 0.1)]
        return float(np.mean(points))
    recall, precision = np.r_[0, recall, 1], np.r_[0, precision, 0]
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(((recall[1:] - recall[:-1]) * precision[1:]).sum())


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean of what is not NaN; NaN where all are."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0).sum(axis)
    return np.where(known.any(axis), total / np.maximum(known.sum(axis), 1), np.nan)
