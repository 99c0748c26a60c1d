"""What every backbone offers: images in, named feature maps out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from segdet.errors import ConfigError
from segdet.layers import FrozenBatchNorm2d, ShapeSpec


class Backbone(nn.Module, ABC):
    """A network from images to feature maps."""

    @abstractmethod
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Feature maps by name.

        Args:
            images: (B, 3, H, W) float, normalised.

        Returns:
            Each map is (B, C, H / stride, W / stride) with C and stride as `output_shape` says.
        """

    # What `output_shape` tells of a subclass that does not override it, as in detectron2.
    _out_features: list[str]
    _out_feature_channels: dict[str, int]
    _out_feature_strides: dict[str, int]

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each map that `forward` returns."""
        channels, strides = self._out_feature_channels, self._out_feature_strides
        return {n: ShapeSpec(channels[n], stride=strides[n]) for n in self._out_features}

    @property
    def size_divisibility(self) -> int:
        """Image height and width must be multiples of it; 0 accepts any size."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Further wishes, as `ImageList.from_tensors` takes them."""
        return {}


class StagedBackbone(Backbone):
    """Parts in a chain, each of which gives a map.

    Args:
        parts: by name, which is that of their attributes, first to last.
        shapes: of their maps, by the same names.
        out_features: names of the maps to return.
        freeze_at: the first so many parts are not trained.

    Raises:
        ValueError: no part has a name of `out_features`.
    """

    def __init__(
        self,
        parts: Mapping[str, nn.Module],
        shapes: Mapping[str, ShapeSpec],
        *,
        out_features: Sequence[str],
        freeze_at: int,
    ) -> None:
        super().__init__()
        unknown = set(out_features) - set(parts)
        if unknown:
            raise ValueError(f"out_features {sorted(unknown)} are not in {list(parts)}")
        self._parts = tuple(parts)
        self._checkpoints = False
        for name, part in parts.items():
            self.add_module(name, part)
        self._shapes = {name: shapes[name] for name in parts if name in out_features}
        for name in self._parts[: max(freeze_at, 0)]:
            freeze(self.get_submodule(name))

    def forward(self, images: Tensor) -> dict[str, Tensor]:  # noqa: D102
        features = {}
        x = images
        for name in self._parts:
            x = self._run(self.get_submodule(name), x)
            if name in self._shapes:
                features[name] = x
        return features

    def _run(self, part: nn.Module, x: Tensor) -> Tensor:
        if not (self._checkpoints and torch.is_grad_enabled() and _is_trained(part)):
            return part(x)
        for block in part if isinstance(part, nn.Sequential) else (part,):
            x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
        return x

    def checkpoint_activations(self) -> None:
        """Keep only the input of each block from now on; the gradient computes the rest again.

        Source: arXiv:1604.06174.

        Raises:
            ConfigError: a norm would count each batch twice.
        """
        norms = [type(m).__name__ for m in self.modules() if isinstance(m, _BatchNorm)]
        if norms:
            raise ConfigError(
                f"MODEL.BACKBONE.USE_ACT_CHECKPOINT computes blocks twice, and {norms[0]} would "
                "take each batch into its statistics twice; use FrozenBN or GN"
            )
        self._checkpoints = True

    def output_shape(self) -> dict[str, ShapeSpec]:  # noqa: D102
        return self._shapes


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def checkpoint_activations(backbone: nn.Module) -> None:
    """MODEL.BACKBONE.USE_ACT_CHECKPOINT: see `StagedBackbone.checkpoint_activations`.

    Raises:
        ConfigError: the backbone is not made of blocks, or has norms that forbid it.
    """
    staged = [module for module in backbone.modules() if isinstance(module, StagedBackbone)]
    if not staged:
        raise ConfigError(
            "MODEL.BACKBONE.USE_ACT_CHECKPOINT needs ResNet or VoVNet; MODEL.BACKBONE.NAME "
            "chooses another backbone"
        )
    for one in staged:
        one.checkpoint_activations()


def known(value: int | None) -> int:
    """Channels or stride of a backbone's map, which it always states."""
    assert value is not None, "a backbone knows the channels and strides of its maps"
    return value


def pyramid(backbone: Backbone, names: Sequence[str], key: str) -> tuple[list[int], int]:
    """Strides and the common channel count of named feature maps.

    Raises:
        ConfigError: the backbone has no such map, or their channels differ.
    """
    shapes = select_maps(backbone.output_shape(), names, key)
    channels = {known(shape.channels) for shape in shapes.values()}
    if len(channels) != 1:
        raise ConfigError(f"{key}: {list(names)} differ in channels: {sorted(channels)}")
    return [known(shape.stride) for shape in shapes.values()], channels.pop()


def select_maps(
    shapes: Mapping[str, ShapeSpec], names: Sequence[str], key: str
) -> dict[str, ShapeSpec]:
    """The named feature maps of a backbone's, in the order of the names.

    Raises:
        ConfigError: the backbone has no such map.
    """
    for name in names:
        if name not in shapes:
            raise ConfigError(f"{key}: no feature {name!r}; the backbone gives {list(shapes)}")
    return {name: shapes[name] for name in names}


def freeze(module: nn.Module) -> None:
    """Stop training of `module`, in place: no gradients, batch norms become FrozenBatchNorm2d."""
    for parameter in module.parameters():
        parameter.requires_grad = False
    FrozenBatchNorm2d.convert_frozen_batchnorm(module)
