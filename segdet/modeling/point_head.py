"""Point heads of PointRend (arXiv:1912.08193): logits from the features of single points."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.config.ranges import Fraction, NonNegativeInt, PositiveInt, Range
from segdet.errors import ConfigError
from segdet.layers import Losses, c2_msra_fill, normal_fill
from segdet.modeling.mask_head import masks_of_class
from segdet.modeling.point_features import (
    generate_regular_grid_point_coords,
    get_uncertain_point_coords_with_randomness,
    point_sample_fine_grained_features,
    subdivide,
)
from segdet.structures import Boxes

POINTS_AT_ONCE = 4096  # whose layers' inputs and outputs stay in a CPU's caches: 2.3 times as fast


@dataclass(frozen=True, kw_only=True)
class PointHeadConfig:
    """MODEL.POINT_HEAD; defaults are those of detectron2's PointRend."""

    name: str = "StandardPointHead"
    num_classes: PositiveInt = 80
    in_features: tuple[str, ...] = ("p2",)
    train_num_points: PositiveInt = 14 * 14
    oversample_ratio: Annotated[float, Range(1)] = 3  # written as detectron2 writes it
    importance_sample_ratio: Fraction = 0.75
    subdivision_steps: NonNegativeInt = 5
    subdivision_num_points: PositiveInt = 28 * 28
    fc_dim: PositiveInt = 256
    num_fc: NonNegativeInt = 3
    cls_agnostic_mask: bool = False
    coarse_pred_each_layer: bool = True  # coarse logits enter every layer, not the first alone
    coarse_sem_seg_head_name: str = "SemSegFPNHead"

    @property
    def num_masks(self) -> int:
        """Logits at a point."""
        return 1 if self.cls_agnostic_mask else self.num_classes

    def check_num_classes(self, num_classes: int, key: str) -> None:
        """Refuse other classes than those of the head that this one refines."""
        if num_classes != self.num_classes:
            raise ConfigError(
                f"POINT_HEAD.NUM_CLASSES must be {key}, are {self.num_classes} and {num_classes}"
            )

    @property
    def build(self) -> Callable[[int, int], StandardPointHead]:
        """The head's constructor: how many fine features and coarse logits a point has."""
        if self.name != "StandardPointHead":
            raise ConfigError(f"POINT_HEAD.NAME {self.name!r} is unknown; known: StandardPointHead")
        return functools.partial(
            StandardPointHead,
            num_masks=self.num_masks,
            fc_dim=self.fc_dim,
            num_fc=self.num_fc,
            coarse_pred_each_layer=self.coarse_pred_each_layer,
        )

    def build_sampler(self) -> Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]:
        """What chooses training points: logits (R, K, H, W) and their uncertainty to (R, N, 2)."""
        return functools.partial(
            get_uncertain_point_coords_with_randomness,
            num_points=self.train_num_points,
            oversample_ratio=self.oversample_ratio,
            importance_sample_ratio=self.importance_sample_ratio,
        )

    def build_renderer(self, side: int) -> MaskRenderer:
        """What predicts masks by subdivision, where the coarse ones have this side."""
        steps = self.subdivision_steps
        while 4 * side**2 <= self.subdivision_num_points:  # such a step would predict every cell
            side, steps = 2 * side, steps - 1
        return MaskRenderer(side, steps, self.subdivision_num_points)


class StandardPointHead(nn.Module):
    """A perceptron that is the same at every point.

    Args:
        in_channels: fine features of a point.
        coarse_channels: coarse logits of a point.
        num_masks: logits out.
        fc_dim: channels inside.
        num_fc: layers before the predictor.
        coarse_pred_each_layer: the coarse logits enter every layer, not the first alone.
    """

    def __init__(
        self,
        in_channels: int,
        coarse_channels: int,
        *,
        num_masks: int,
        fc_dim: int,
        num_fc: int,
        coarse_pred_each_layer: bool,
    ) -> None:
        super().__init__()
        self.coarse_pred_each_layer = coarse_pred_each_layer
        self.fc_layers: list[nn.Module] = []
        channels = in_channels + coarse_channels
        for k in range(1, num_fc + 1):
            fc = nn.Conv1d(channels, fc_dim, kernel_size=1)
            c2_msra_fill(fc)
            self.add_module(f"fc{k}", fc)
            self.fc_layers.append(fc)
            channels = fc_dim + (coarse_channels if coarse_pred_each_layer else 0)
        self.predictor = nn.Conv1d(channels, num_masks, kernel_size=1)
        normal_fill(self.predictor, std=0.001)

    def forward(self, fine_grained_features: Tensor, coarse_features: Tensor) -> Tensor:
        """(R, in_channels, P) and (R, coarse_channels, P) -> logits (R, num_masks, P)."""
        if fine_grained_features.device.type != "cpu" or torch.compiler.is_compiling():
            return self._logits(fine_grained_features, coarse_features)
        regions = max(POINTS_AT_ONCE // max(fine_grained_features.shape[2], 1), 1)
        parts = zip(
            fine_grained_features.split(regions), coarse_features.split(regions), strict=True
        )
        return torch.cat([self._logits(fine, coarse) for fine, coarse in parts])

    def _logits(self, fine: Tensor, coarse: Tensor) -> Tensor:
        x = torch.cat((fine, coarse), dim=1)
        for fc in self.fc_layers:
            x = F.relu(fc(x))
            if self.coarse_pred_each_layer:
                x = torch.cat((x, coarse), dim=1)
        return self.predictor(x)


def calculate_uncertainty(logits: Tensor, classes: Tensor) -> Tensor:
    """(R, 1, ...): minus the distance of each region's own logit to 0.

    Args:
        logits: (R, K, ...); K is num_classes, or 1 when class-agnostic.
        classes: (R,) int64 in [0, num_classes).
    """
    return -masks_of_class(logits, classes)[:, None].abs()


def point_loss(logits: Tensor, labels: Tensor, classes: Tensor) -> Losses:
    """`loss_mask_point`: mean binary cross-entropy over the points of each region's own class.

    Source: PointRend, section 3.1.

    Args:
        logits: (R, K, P); K is num_classes, or 1 when class-agnostic.
        labels: (R, P) in [0, 1], between them at a mask's border.
        classes: (R,) int64 in [0, num_classes).

    Returns:
        One term, which without regions is zero but connected to `logits`.
    """
    if len(logits) == 0:
        return Losses({"loss_mask_point": logits.sum() * 0}, counts={"loss_mask_point": 0})
    own = masks_of_class(logits, classes)  # (R, P)
    loss = F.binary_cross_entropy_with_logits(own, labels.to(own.dtype))
    right = (own.detach() > 0) == (labels >= 0.5)
    metrics = {"point/accuracy": right.float().mean()}
    return Losses({"loss_mask_point": loss}, metrics, {"loss_mask_point": len(logits)})


class PointFeatures:
    """Samples named maps at the points of regions.

    Args:
        names: of the maps.
        strides: of the maps, in pixels.
    """

    def __init__(self, names: Sequence[str], strides: Sequence[int]) -> None:
        self.names, self.scales = tuple(names), [1.0 / stride for stride in strides]

    def __call__(
        self, features: dict[str, Tensor], boxes: Sequence[Tensor], point_coords: Tensor
    ) -> Tensor:
        """(R, C, P) at (R, P, 2) points of per-image (N_i, 4) boxes in pixels."""
        maps = [features[name] for name in self.names]
        regions = [Boxes(b) for b in boxes]
        return point_sample_fine_grained_features(maps, self.scales, regions, point_coords)[0]


@dataclass(frozen=True)
class MaskRenderer:
    """Predicts masks on a regular grid, then on finer ones where they are uncertain.

    Attributes:
        side: cells a side of the first grid.
        steps: how often to double it.
        num_points: cells that each step predicts anew.
    """

    side: int
    steps: int
    num_points: int

    def __call__(self, predict: Callable[[Tensor], Tensor], boxes: Tensor) -> Tensor:
        """(R, 1, side * 2**steps, side * 2**steps) mask logits.

        Args:
            predict: (R, P, 2) points -> (R, P) logits of each region's own class. The other
                classes' logits would change nothing: uncertainty looks at this one alone.
            boxes: (R, 4), for how many, in which precision and where.
        """
        grid = generate_regular_grid_point_coords(len(boxes), self.side, boxes.device, boxes.dtype)
        logits = predict(grid).reshape(-1, 1, self.side, self.side)
        return subdivide(
            logits,
            lambda points: predict(points)[:, None],
            lambda logits: -logits.abs(),
            steps=self.steps,
            num_points=self.num_points,
        )
