"""Batch norm's statistics, measured anew before each evaluation."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from segdet.engine.train_loop import HookBase
from segdet.errors import DataError
from segdet.utils import comm

_log = logging.getLogger(__name__)


def get_bn_modules(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms that learn statistics: in training mode, and not frozen."""
    return [
        part
        for part in model.modules()
        if isinstance(part, _BatchNorm) and part.training and part.track_running_stats
    ]


class _Moments:
    """Mean and mean square of what passes a batch norm, each call counting alike."""

    def __init__(self, norm: _BatchNorm) -> None:
        assert norm.running_mean is not None and norm.running_var is not None, "it tracks them"
        self.calls = 0
        # The variance is a difference of these: in float32 a large mean would leave nothing of it.
        self.sums = torch.zeros(
            (2, *norm.running_mean.shape), dtype=torch.float64, device=norm.running_mean.device
        )

    def add(self, norm: _BatchNorm, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        """Take in a call; at momentum 1 the running statistics are those of its batch."""
        if inputs[0].numel() > 0:
            batch: Any = norm
            mean = batch.running_mean.double()
            self.sums += torch.stack([mean, batch.running_var + mean.square()])
            self.calls += 1

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of all batches together, of all processes; float64."""
        total = torch.cat([self.sums.flatten(), self.sums.new_tensor([self.calls])])
        if comm.get_world_size() > 1:
            dist.all_reduce(total)
        mean, mean_square = (total[:-1] / total[-1]).view_as(self.sums)
        return mean, (mean_square - mean.square()).clamp(min=0)


@torch.no_grad()
def update_bn_stats(model: nn.Module, data_loader: Iterable[Any], num_iter: int) -> None:
    """Set the running statistics to those of some batches, exactly, at the present weights.

    Source: Wu and Johnson 2021 (arXiv:2105.07576), section 3: the moving average that training
    keeps is of weights that have changed since.

    Args:
        model: in training mode.
        data_loader: gives the batches.
        num_iter: how many are taken.

    Raises:
        DataError: there are fewer.
    """
    norms = get_bn_modules(model)
    moments = [_Moments(norm) for norm in norms]
    seen = 0
    with _momentum(norms, 1.0):
        handles = [n.register_forward_hook(m.add) for n, m in zip(norms, moments, strict=True)]
        try:
            for batch in itertools.islice(data_loader, num_iter):
                model(batch)
                seen += 1
        finally:
            for handle in handles:
                handle.remove()
    if seen < num_iter:
        raise DataError(f"PreciseBN needs {num_iter} batches, the data loader gave {seen}")
    for norm, measured in zip(norms, moments, strict=True):
        mean, var = measured.statistics()
        if mean.isfinite().all():  # a layer that no batch has reached keeps what it has
            for name, value in (("running_mean", mean), ("running_var", var)):
                getattr(norm, name).copy_(value)


@contextmanager
def _momentum(norms: list[_BatchNorm], value: float) -> Iterator[None]:
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = value
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum


class PreciseBN(HookBase):
    """Measures the statistics of batch norm over many batches, at a period and at the end.

    Register it before the checkpointer and the evaluation, which are to see them.

    Args:
        period: in iterations; 0: only at the end.
        model: its batch norms are updated.
        data_loader: training batches, or a function that makes the loader, called when first
            needed. One with `seek` gives the same batches each time, in resumed runs too.
        num_iter: batches that are taken.
    """

    def __init__(
        self,
        period: int,
        model: nn.Module,
        data_loader: Iterable[Any] | Callable[[], Iterable[Any]],
        num_iter: int,
    ) -> None:
        self._period = period
        self._model = model
        self._data_loader = data_loader
        self._num_iter = num_iter
        if not get_bn_modules(model):
            _log.info("PreciseBN has nothing to do: no batch norm of the model learns statistics")

    def after_step(self) -> None:
        """Measure if it is time or the last iteration."""
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or (self._period > 0 and done % self._period == 0):
            self.update_stats()

    def update_stats(self) -> None:
        """Measure now."""
        if not get_bn_modules(self._model):
            return
        if callable(self._data_loader):
            self._data_loader = self._data_loader()
        if hasattr(self._data_loader, "seek"):
            self._data_loader.seek(0)  # type: ignore[attr-defined]
        _log.info("Measuring the statistics of batch norm over %d batches", self._num_iter)
        update_bn_stats(self._model, self._data_loader, self._num_iter)
