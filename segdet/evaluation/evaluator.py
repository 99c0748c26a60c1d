"""Run a model over a data set and hand its outputs to evaluators."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from segdet.data.catalog import MetadataCatalog
from segdet.errors import ConfigError
from segdet.utils import comm

logger = logging.getLogger(__name__)

_WARM_UP = 5  # batches that no time is taken of
_MOMENTS = ("on_start", "before_inference", "after_inference", "on_end")  # of callbacks
_LOG_EVERY = 60.0  # seconds between lines where no progress bar can be shown


class DatasetEvaluator:
    """Collects a model's outputs over a data set and sums them up; to be subclassed."""

    def reset(self) -> None:
        """Forget everything, before a new round."""

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take in one batch.

        Args:
            inputs: what the model was given, one dict per image.
            outputs: what it returned for them.
        """

    def evaluate(self) -> dict | None:
        """Task -> metric -> value; None on processes that have no result to give."""


def part_of(output: Mapping[str, Any], key: str, dataset_name: str) -> Any:
    """`output[key]` of a model.

    Raises:
        ConfigError: the model does not give it.
    """
    if key not in output:
        kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
        raise ConfigError(
            f"the model gives {', '.join(output) or 'nothing'}, no {key}, which the evaluation of "
            f"{dataset_name} (evaluator_type {kind}) needs; MODEL.META_ARCHITECTURE must be a "
            "system that gives it, or DATASETS.TEST another data set"
        )
    return output[key]


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators as one."""

    def __init__(self, evaluators: Sequence[DatasetEvaluator]) -> None:
        super().__init__()
        self._evaluators = list(evaluators)

    def reset(self) -> None:
        """Reset each."""
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Give the batch to each."""
        for evaluator in self._evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self) -> dict | None:
        """All results in one dict, on the main process.

        Raises:
            ValueError: two evaluators report the same task.
        """
        results: dict[str, Any] = {}
        for evaluator in self._evaluators:
            result = evaluator.evaluate()
            if comm.is_main_process() and result is not None:
                if clash := sorted(results.keys() & result.keys()):
                    raise ValueError(f"two evaluators report {', '.join(clash)}")
                results.update(result)
        return results if comm.is_main_process() else None


def inference_on_dataset(
    model: Callable[[list[dict]], list[dict]],
    data_loader: Iterable[list[dict]],
    evaluator: DatasetEvaluator | list[DatasetEvaluator] | tuple[DatasetEvaluator, ...] | None,
    callbacks: Mapping[str, Callable[[], object]] | None = None,
) -> Mapping[str, Any]:
    """Run a model over a data set in evaluation mode, without gradients.

    Args:
        model: a module or any callable; a module's training flag is restored after.
        data_loader: batches, with a length.
        evaluator: one, or a list or tuple of several; None only runs the model, as for a timing.
        callbacks: functions by when they are called: "on_start" and "on_end" around the loop,
            "before_inference" and "after_inference" around the model of each batch.

    Returns:
        What the evaluator reports; {} where it reports nothing.

    Raises:
        ValueError: a callback of an unknown name.
    """
    if evaluator is None or isinstance(evaluator, list | tuple):
        evaluator = DatasetEvaluators(evaluator or ())
    call = dict.fromkeys(_MOMENTS, lambda: None) | dict(callbacks or {})
    if unknown := sorted(call.keys() - set(_MOMENTS)):
        raise ValueError(f"callbacks are {', '.join(_MOMENTS)}; got {', '.join(unknown)}")
    batches = len(data_loader)  # type: ignore[arg-type]
    logger.info("Inference on %d batches", batches)
    evaluator.reset()
    times = _Times(batches)
    with inference_context(model), torch.no_grad():
        call["on_start"]()
        for inputs in times.of_loading(data_loader):
            call["before_inference"]()
            outputs = model(inputs)
            call["after_inference"]()
            times.lap("model")
            evaluator.process(inputs, outputs)
            times.lap("evaluator")
        call["on_end"]()
    logger.info(times.summary())
    started = time.perf_counter()
    results = evaluator.evaluate()
    logger.info("Results computed in %.2f s", time.perf_counter() - started)
    return results or {}


@contextmanager
def inference_context(model: Any) -> Iterator[None]:
    """Evaluation mode for the length of the context; no matter what the model was in before."""
    if not isinstance(model, nn.Module):
        yield
        return
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class _Times:
    """Where the seconds of a loop go, and its progress bar (or a line now and then)."""

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self.warm_up = min(_WARM_UP, max(batches - 1, 0))
        self.seconds = {"data": 0.0, "model": 0.0, "evaluator": 0.0}
        self.done = 0
        self._last = self._logged = time.perf_counter()

    def of_loading(self, data_loader: Iterable[list[dict]]) -> Iterator[list[dict]]:
        show_bar = comm.is_main_process() and sys.stderr.isatty()
        for inputs in tqdm(data_loader, desc="inference", total=self.batches, disable=not show_bar):
            self.lap("data")
            yield inputs
            self.done += 1
            if not show_bar and self._last - self._logged > _LOG_EVERY:
                self._logged = self._last
                logger.info("Inference: %d of %d batches", self.done, self.batches)

    def lap(self, what: str) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self.done >= self.warm_up:
            self.seconds[what] += now - self._last
        self._last = now

    def summary(self) -> str:
        timed = max(self.done - self.warm_up, 1)
        parts = ", ".join(f"{what} {s / timed:.4f}" for what, s in self.seconds.items())
        return f"Inference done: {self.done} batches; seconds per batch: {parts}"
