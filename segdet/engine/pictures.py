"""Pictures of what a model finds, at the end of its training and on the way."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from segdet.data import DatasetCatalog, MetadataCatalog
from segdet.data.builtin import find_builtin
from segdet.data.image_io import convert_image_to_rgb
from segdet.engine.train_loop import HookBase
from segdet.evaluation import inference_context
from segdet.structures import Boxes, BoxMode, Instances, RotatedBoxes
from segdet.utils.sheets import save_prediction_sheet
from segdet.utils.visualizer import Visualizer

_log = logging.getLogger(__name__)

_DRAWN = {"panoptic_seg", "instances", "sem_seg"}  # what a model returns that can be drawn


def save_predictions(
    path: Path,
    model: nn.Module,
    data_loader: Iterable[list[dict[str, Any]]],
    dataset_name: str,
    *,
    count: int = 8,
) -> None:
    """Draw what a model finds in the first images of a data set, beside the ground truth.

    Nothing is drawn where the data set is not in the catalog, its records have no `file_name`, or
    the model returns neither segments, instances nor label maps.

    Args:
        path: of the picture.
        model: is run in evaluation mode.
        data_loader: batches of the data set, with `file_name`.
        dataset_name: in the catalog.
        count: number of images.
    """
    if dataset_name not in DatasetCatalog and find_builtin(dataset_name) is None:
        return
    records = {
        record["file_name"]: record
        for record in DatasetCatalog.get(dataset_name)
        if "file_name" in record
    }
    if not records:
        return
    with inference_context(model), torch.no_grad():
        pairs = (
            (records[inputs["file_name"]], output)
            for batch in data_loader
            for inputs, output in zip(batch, model(batch), strict=True)
            if inputs.get("file_name") in records and _DRAWN & output.keys()
        )
        shown = itertools.islice(pairs, count)  # one by one: label maps' scores are large
        first = next(shown, None)
        if first is None:
            return
        pairs = itertools.chain([first], shown)
        save_prediction_sheet(path, pairs, MetadataCatalog.get(dataset_name))
    _log.info("Predictions beside ground truth: %s", path)


class TrainingPictures(HookBase):
    """Puts a picture of a training image into the event storage, every so many iterations.

    Left: the image as the model gets it, with its ground truth. Right: the best of what the
    model finds there with the weights that it has by then.

    Args:
        period: in iterations.
        image_format: of the inputs: INPUT.FORMAT.
        metadata: of the data set, for the names of classes.
        max_objects: predictions that are drawn at most.
    """

    def __init__(
        self, period: int, image_format: str, metadata: Any = None, max_objects: int = 20
    ) -> None:
        self._period = period
        self._format = image_format
        self._metadata = metadata
        self._max_objects = max_objects
        self._watch: Any = None
        self._input: dict[str, Any] | None = None

    def before_step(self) -> None:
        """Watch what the model is given, if it is time."""
        if (self.trainer.iter + 1) % self._period == 0:
            self._watch = self._model().register_forward_pre_hook(self._look)

    def after_step(self) -> None:
        """Draw it."""
        if self._input is not None:
            name = "train image: ground truth; found"
            self.trainer.storage.put_image(name, torch.from_numpy(self._draw(self._input)))
        self._input = None

    def _model(self) -> nn.Module:
        model = self.trainer.model
        return getattr(model, "module", model)  # DistributedDataParallel's would wait for others

    def _look(self, _: nn.Module, given: tuple[Any, ...]) -> None:
        self._watch.remove()  # hooks that evaluate come before this one's `after_step`
        batch = given[0]
        if isinstance(batch, list) and batch and "image" in batch[0]:
            self._input = batch[0]

    @torch.no_grad()
    def _draw(self, x: dict[str, Any]) -> np.ndarray:
        """(3, H, 2 W) uint8."""
        image = convert_image_to_rgb(x["image"].permute(1, 2, 0).cpu().numpy(), self._format)
        pictures = [Visualizer(image, self._metadata) for _ in range(2)]
        if "sem_seg" in x:
            pictures[0].draw_sem_seg(x["sem_seg"].cpu())
        if "instances" in x:
            pictures[0].draw_instance_predictions(_as_found(x["instances"]))
        asked = {key: x[key] for key in ("image", "proposals") if key in x}  # not the file's size
        with inference_context(self._model()):
            found = dict(self._model()([asked])[0])
        if "instances" in found:
            best = found["instances"].to("cpu")[: self._max_objects]
            found["instances"] = _upright(best)
        if _DRAWN & found.keys():
            pictures[1].draw_predictions(found, min_score=0.0)
        return np.concatenate([one.output.get_image() for one in pictures], 1).transpose(2, 0, 1)


def _as_found(truth: Instances) -> Instances:
    """Ground truth under the names that predictions have."""
    fields = truth.to("cpu").get_fields()
    known = ("gt_boxes", "gt_classes", "gt_masks", "gt_keypoints")
    named = {key.replace("gt_", "pred_"): fields[key] for key in known if key in fields}
    return _upright(Instances(truth.image_size, **named))


def _upright(found: Instances) -> Instances:
    """With upright boxes around rotated ones, which are not drawn."""
    if found.has("pred_boxes") and isinstance(found.pred_boxes, RotatedBoxes):
        rotated = found.pred_boxes.tensor
        found.remove("pred_boxes")
        corners = BoxMode.convert(rotated, BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS)
        found.pred_boxes = Boxes(corners)
    return found
