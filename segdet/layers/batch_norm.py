from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.errors import ConfigError, did_you_mean


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and affine terms are fixed buffers.

    A fresh one is exactly the identity: `running_var` starts at `1 - eps`.
    A state dict of no version or version 1 may lack `running_mean` and `running_var` (Caffe2
    folds them into weight and bias): they load as 0 and 1. `num_batches_tracked` is kept where a
    batch norm with one was frozen, as official state dicts have it, and ignored elsewhere.
    """

    _version = 3

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.weight: Tensor
        self.bias: Tensor
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features) - eps)
        self.num_batches_tracked: Tensor | None
        self.register_buffer("num_batches_tracked", None)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape and dtype."""
        if not x.requires_grad:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        # F.batch_norm would save its input for the gradients of weight and bias; x * scale + bias
        # as two operations took 7 times as long (CPU).
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        bias = self.bias - self.running_mean * scale
        return torch.addcmul(bias.to(x.dtype)[:, None, None], x, scale.to(x.dtype)[:, None, None])

    def extra_repr(self) -> str:
        """Width and eps."""
        return f"{self.num_features}, eps={self.eps}"

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if self.num_batches_tracked is None:
            state_dict.pop(prefix + "num_batches_tracked", None)
        else:
            state_dict.setdefault(prefix + "num_batches_tracked", self.num_batches_tracked)
        if local_metadata.get("version", 0) < 2 and prefix + "weight" in state_dict:
            state_dict.setdefault(prefix + "running_mean", torch.zeros_like(self.running_mean))
            state_dict.setdefault(prefix + "running_var", torch.ones_like(self.running_var))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args, **kwargs)

    @classmethod
    def convert_frozen_batchnorm(cls, module: nn.Module) -> nn.Module:
        """Replace every BatchNorm2d and SyncBatchNorm under `module`, keeping its numbers.

        Returns:
            `module`, changed in place; its replacement if it is a batch norm itself.
        """
        if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            frozen = cls(module.num_features, module.eps)
            for name in frozen._buffers:
                value = getattr(module, name)
                if value is not None:  # affine=False, track_running_stats=False
                    setattr(frozen, name, value.detach().clone())
            return frozen.train(module.training)
        for name, child in module.named_children():
            converted = cls.convert_frozen_batchnorm(child)
            if converted is not child:
                setattr(module, name, converted)
        return module


class _SumOverWorkers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return _SumOverWorkers.forward(ctx, grad_outputs[0])


class NaiveSyncBatchNorm(nn.BatchNorm2d):
    """Batch norm over all workers by averaging the mean and the mean of squares.

    Unlike `torch.nn.SyncBatchNorm` it runs on any device, and `running_var` follows the
    biased variance. Alone in its world it is `torch.nn.BatchNorm2d`.

    Args:
        num_features: number of channels.
        eps: added to the variance.
        momentum: weight of the newest batch in the running statistics.
        stats_mode: "" counts every worker alike, whatever its batch size, and refuses an
            empty batch; "N" weights workers by batch size, which may be 0.
    """

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, *, stats_mode: str = ""
    ) -> None:
        super().__init__(num_features, eps, momentum)
        if stats_mode not in ("", "N"):
            raise ValueError(f'stats_mode must be "" or "N", is {stats_mode!r}')
        self._stats_mode = stats_mode

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape and dtype."""
        workers = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if workers == 1 or not self.training:
            return super().forward(input)
        batch = len(input)
        if batch == 0 and self._stats_mode == "":
            raise ValueError(
                "naiveSyncBN got an empty batch on one worker; naiveSyncBN_N accepts it"
            )
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        share = float(batch) if self._stats_mode == "N" else 1.0
        if batch == 0:
            sums = x.new_zeros(2 * self.num_features + 1) + x.sum()  # stays in the graph
        else:
            moments = torch.cat([x.mean((0, 2, 3)), (x * x).mean((0, 2, 3)), x.new_ones(1)])
            sums = moments * share
        sums = _SumOverWorkers.apply(sums)  # (2 C + 1,)
        total = sums[-1].detach()
        mean, mean_of_squares = (sums[:-1] / total.clamp(min=1)).chunk(2)
        var = mean_of_squares - mean * mean
        self._update_running(mean.detach(), var.detach(), total)
        scale = self.weight * (var + self.eps).rsqrt()
        bias = self.bias - mean * scale
        return torch.addcmul(bias[:, None, None], x, scale[:, None, None]).to(input.dtype)

    def _update_running(self, mean: Tensor, var: Tensor, total: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None, "always tracked"
        assert self.momentum is not None, "always a number"
        momentum = self.momentum * total.clamp(max=1)  # nothing seen anywhere: nothing learnt
        self.running_mean += momentum * (mean - self.running_mean)
        self.running_var += momentum * (var - self.running_var)


class LayerNorm(nn.Module):
    """Layer norm over the channels of each cell, without a mean over space."""

    def __init__(self, normalized_shape: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(normalized_shape))
        self.bias = nn.Parameter(torch.zeros(normalized_shape))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        var, mean = torch.var_mean(x, 1, correction=0, keepdim=True)
        x = (x - mean) * (var + self.eps).rsqrt()
        return torch.addcmul(self.bias[:, None, None], x, self.weight[:, None, None])


def _group_norm(channels: int) -> nn.Module:
    if channels % 32:
        raise ConfigError(f"NORM GN makes 32 groups and cannot divide {channels} channels")
    return nn.GroupNorm(32, channels)


def _weighted_naive_sync_bn(channels: int) -> nn.Module:
    return NaiveSyncBatchNorm(channels, stats_mode="N")


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": nn.BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "FrozenBN": FrozenBatchNorm2d,
    "GN": _group_norm,
    "LN": LayerNorm,
    "naiveSyncBN": NaiveSyncBatchNorm,
    "naiveSyncBN_N": _weighted_naive_sync_bn,
    "nnSyncBN": nn.SyncBatchNorm,  # detectron2's older word for SyncBN
}

NormName = Annotated[str, ("", *NORMS)]  # what a config's NORM may be


def get_norm(norm: str | Callable[[int], nn.Module] | None, out_channels: int) -> nn.Module | None:
    """Build the norm that a config names.

    Args:
        norm: a key of `NORMS`, or a function of the number of channels; "" and None mean none.
        out_channels: number of channels that it normalises.

    Raises:
        ConfigError: the name is unknown, or GN's 32 groups do not divide the channels.
    """
    if not norm:
        return None
    if callable(norm):
        return norm(out_channels)
    if norm not in NORMS:
        raise ConfigError(f"unknown norm {norm!r}{did_you_mean(norm, ['', *NORMS])}")
    return NORMS[norm](out_channels)
