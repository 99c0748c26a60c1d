"""Pictures of what a trained model finds."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segdet.data import DatasetCatalog, MetadataCatalog
from segdet.data.builtin import find_builtin
from segdet.evaluation import inference_context
from segdet.utils.sheets import save_prediction_sheet

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
