"""MODEL_EMA: the exponential moving average of a model's weights over the steps of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from segdet.config.ranges import Range
from segdet.config.reader import read_section


@dataclass(frozen=True, kw_only=True)
class ModelEMAConfig:
    """MODEL_EMA; names and defaults are D2Go's."""

    enabled: bool = False
    # What each step leaves of the average.
    decay: Annotated[float, Range(0, 1, open_high=True)] = 0.999

    def build(self, model: nn.Module, optimizer: Optimizer) -> ModelEMA | None:
        """The average of `model`, if it is enabled."""
        return ModelEMA(model, optimizer, self.decay) if self.enabled else None


class ModelEMA:
    """A second model whose weights, and statistics of norms, are averages of the first one's.

    average = decay * average + (1 - decay) * model, after each step that the optimizer takes: a
    step that is left out, as gradient scalers do, does not count.

    Args:
        model: the one that is trained, without DistributedDataParallel.
        optimizer: takes its steps.
        decay: in [0, 1).

    Attributes:
        decay: as given.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, decay: float) -> None:
        self.decay = decay
        self._trained = model
        average = get_ema_multi_avg_fn(decay)

        def update(averages: Any, values: Any, count: Any) -> None:
            if averages[0].is_floating_point():
                average(averages, values, count)
            else:  # torch would round counters, and indices that never change
                torch._foreach_copy_(averages, values)  # pyright: ignore[reportPrivateImportUsage]

        self._average = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
        optimizer.register_step_post_hook(self._follow)

    @property
    def model(self) -> nn.Module:
        """The second model."""
        return self._average.module

    def begin(self) -> None:
        """Begin at the first model's weights, unless a checkpoint's average has been loaded."""
        if self._average.n_averaged == 0:
            self._average.update_parameters(self._trained)

    def state_dict(self) -> dict[str, Any]:
        """The averages, by the names of the first model's state dict."""
        return self.model.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.model.load_state_dict(state_dict)
        self._average.n_averaged.fill_(1)

    def _follow(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        # Fused optimizers are called for a step with overflow, too, and leave it out by themselves.
        overflow = getattr(optimizer, "found_inf", None)
        if overflow is None or not overflow:
            self._average.update_parameters(self._trained)


def build_model_ema(cfg: Any, model: nn.Module, optimizer: Optimizer) -> ModelEMA | None:
    """The average that MODEL_EMA of the config tree `cfg` describes; None if it is not enabled."""
    return read_section(ModelEMAConfig, cfg, at="MODEL_EMA").build(model, optimizer)
