"""PointRend for instances (Kirillov et al. 2020, arXiv:1912.08193): masks refined point by point.

Mask R-CNN with another mask branch: a coarse mask of few cells, and a perceptron that predicts the
logit of single points from the finest map's features there and from the coarse mask. It trains on
points that are uncertain, and predicts large masks by subdividing where they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.config.ranges import NonNegativeInt, PositiveInt
from segdet.errors import ConfigError
from segdet.layers import (
    Conv2d,
    Losses,
    c2_msra_fill,
    c2_xavier_fill,
    normal_fill,
    point_sample,
)
from segdet.modeling.backbones import Backbone
from segdet.modeling.backbones.backbone import pyramid
from segdet.modeling.mask_head import MaskHeadConfig, mask_loss, mask_targets, masks_of_class
from segdet.modeling.meta_arch.mask_rcnn import MaskRCNNConfig
from segdet.modeling.point_features import generate_regular_grid_point_coords, sample_point_labels
from segdet.modeling.point_head import (
    MaskRenderer,
    PointFeatures,
    PointHeadConfig,
    StandardPointHead,
    calculate_uncertainty,
    point_loss,
)
from segdet.modeling.roi_heads import StandardROIHeads, attach_masks
from segdet.structures import Detections, Proposals, Targets


@dataclass(frozen=True, kw_only=True)
class CoarseMaskHeadConfig(MaskHeadConfig):
    """MODEL.ROI_MASK_HEAD, as PointRend reads it; POOLER_TYPE counts for nothing."""

    in_features: tuple[str, ...] = ("p2",)
    fc_dim: PositiveInt = 1024
    num_fc: NonNegativeInt = 2
    output_side_resolution: PositiveInt = 7  # cells a side of the coarse mask
    point_head_on: bool = False

    def __post_init__(self) -> None:
        if self.pooler_resolution < 2 or self.pooler_resolution % 2:
            raise ConfigError(
                f"POOLER_RESOLUTION must be even and >= 2, is {self.pooler_resolution}: "
                "PointRend's convolution halves it"
            )

    def build_trunk(self, in_channels: int, output_shape: tuple[int, ...]) -> CoarseMaskHead:
        """The head with outputs of that shape for each region."""
        return CoarseMaskHead(
            in_channels,
            self.pooler_resolution,
            output_shape,
            conv_dim=self.conv_dim,
            fc_dim=self.fc_dim,
            num_fc=self.num_fc,
        )


@dataclass(frozen=True, kw_only=True)
class PointRendConfig(MaskRCNNConfig):
    """MODEL, as PointRend reads it."""

    roi_mask_head: CoarseMaskHeadConfig = field(default_factory=CoarseMaskHeadConfig)
    point_head: PointHeadConfig = field(default_factory=PointHeadConfig)

    def build_roi_heads(self, backbone: Backbone) -> PointRendROIHeads:
        """The second stage on the backbone's maps."""
        strides, channels = pyramid(backbone, self.roi_heads.in_features, "ROI_HEADS.IN_FEATURES")
        box_head = self.roi_box_head.build(channels)
        keypoint, nominal = self.roi_keypoint_head, self.roi_heads.nominal_foreground
        return PointRendROIHeads(
            self.roi_heads.in_features,
            sampler=self.roi_heads.build_sampler(),
            box_pooler=self.roi_box_head.build_pooler(strides),
            box_head=box_head,
            box_predictor=self.build_box_predictor(box_head.out_features),
            train_on_pred_boxes=self.roi_box_head.train_on_pred_boxes,
            mask_head=cast(Any, self.build_mask_head(backbone) if self.mask_on else None),
            keypoint_pooler=keypoint.build_pooler(strides) if self.keypoint_on else None,
            keypoint_head=keypoint.build(channels, nominal) if self.keypoint_on else None,
        )

    def build_mask_head(self, backbone: Backbone) -> nn.Module:
        """The mask branch on the backbone's maps."""
        head, num_classes = self.roi_mask_head, self.roi_heads.num_classes
        pooler, channels = self.build_pooler(backbone)
        masks, side = 1 if head.cls_agnostic_mask else num_classes, head.output_side_resolution
        coarse_head = head.build_trunk(channels, (masks, side, side))
        if not head.point_head_on:
            return CoarseOnlyMaskHead(pooler, coarse_head)
        fine_features, fine_channels = self.build_fine_features(backbone)
        return PointRendMaskHead(
            pooler,
            coarse_head,
            point_head=self.point_head.build(fine_channels, masks),
            fine_features=fine_features,
            sample_points=self.point_head.build_sampler(),
            renderer=self.point_head.build_renderer(side),
        )

    def build_pooler(self, backbone: Backbone) -> tuple[PointPooler, int]:
        """What the coarse head takes of each region, and how many channels that has."""
        head = self.roi_mask_head
        features, channels = self._features(backbone, "ROI_MASK_HEAD", head.in_features)
        return PointPooler(features, head.pooler_resolution), channels

    def build_fine_features(self, backbone: Backbone) -> tuple[PointFeatures, int]:
        """What the point head takes of each point, and how many channels that has."""
        self.point_head.check_num_classes(self.roi_heads.num_classes, "ROI_HEADS.NUM_CLASSES")
        return self._features(backbone, "POINT_HEAD", self.point_head.in_features)

    def _features(
        self, backbone: Backbone, section: str, names: Sequence[str]
    ) -> tuple[PointFeatures, int]:
        there = self.roi_heads.in_features
        if not names or not set(names) <= set(there):
            raise ConfigError(
                f"{section}.IN_FEATURES must be of ROI_HEADS.IN_FEATURES, are {list(names)} and "
                f"{list(there)}"
            )
        strides, channels = pyramid(backbone, names, f"{section}.IN_FEATURES")
        return PointFeatures(names, strides), channels * len(names)


class PointRendROIHeads(StandardROIHeads):
    """Standard heads whose mask branch takes the feature maps themselves, and pools on its own.

    That `mask_head` has `losses(features, proposals, targets)`, and `predict(features, boxes,
    classes)` for the mask logits of each box's class.
    """

    def _mask_losses(
        self, maps: Sequence[Tensor], fg: Sequence[Proposals], targets: Sequence[Targets]
    ) -> Losses:
        if self.mask_head is None:
            return Losses()
        features = dict(zip(self.in_features, maps, strict=True))
        return cast(Any, self.mask_head).losses(features, fg, targets)

    def predict_masks(
        self, features: dict[str, Tensor], detections: list[Detections]
    ) -> list[Detections]:
        """The detections with `pred_masks` added; unchanged where there is no mask head."""
        if self.mask_head is None:
            return detections
        boxes = [d.pred_boxes.tensor for d in detections]
        classes = torch.cat([d.pred_classes for d in detections])
        return attach_masks(cast(Any, self.mask_head).predict(features, boxes, classes), detections)


class PointPooler:
    """Regular grids of samples, of the same maps for regions of any size: no RoIAlign, no levels.

    Args:
        features: samples the maps.
        side: cells a side of the grid.
    """

    def __init__(self, features: PointFeatures, side: int) -> None:
        self.features, self.side = features, side

    def __call__(self, features: dict[str, Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """(R, C, side, side) for per-image (N_i, 4) boxes in pixels."""
        rows, like = sum(len(b) for b in boxes), boxes[0]
        grid = generate_regular_grid_point_coords(rows, self.side, like.device, like.dtype)
        return self.features(features, boxes, grid).unflatten(2, (self.side, self.side))


class CoarseMaskHead(nn.Module):
    """Halves the pooled map and flattens it to fully connected layers.

    Args:
        in_channels: of the pooled features.
        side: cells a side of them, even.
        output_shape: of a region's outputs.
        conv_dim: channels before the fully connected layers; more are reduced first.
        fc_dim: width of those layers.
        num_fc: how many before the prediction.
    """

    def __init__(
        self,
        in_channels: int,
        side: int,
        output_shape: tuple[int, ...],
        *,
        conv_dim: int,
        fc_dim: int,
        num_fc: int,
    ) -> None:
        super().__init__()
        self.output_shape = output_shape
        self.convs: list[nn.Module] = []
        channels = min(in_channels, conv_dim)
        if in_channels > conv_dim:
            self.reduce_channel_dim_conv = Conv2d(
                in_channels, conv_dim, kernel_size=1, activation=F.relu
            )
            self.convs.append(self.reduce_channel_dim_conv)
        self.reduce_spatial_dim_conv = Conv2d(
            channels, conv_dim, kernel_size=2, stride=2, activation=F.relu
        )
        self.convs.append(self.reduce_spatial_dim_conv)
        for conv in self.convs:
            c2_msra_fill(cast(Conv2d, conv))
        self.fcs: list[nn.Module] = []
        features = conv_dim * (side // 2) ** 2
        for k in range(1, num_fc + 1):
            fc = nn.Linear(features, fc_dim)
            c2_xavier_fill(fc)
            self.add_module(f"fc{k}", fc)
            self.fcs.append(fc)
            features = fc_dim
        self.prediction = nn.Linear(features, math.prod(output_shape))
        normal_fill(self.prediction, std=0.001)

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, C, side, side) -> (R, *output_shape)."""
        x = pooled
        for conv in self.convs:
            x = conv(x)
        x = x.flatten(1)
        for fc in self.fcs:
            x = F.relu(fc(x))
        return self.prediction(x).unflatten(1, self.output_shape)


class CoarseOnlyMaskHead(nn.Module):
    """Coarse masks as they are.

    Args:
        pooler: feature maps and boxes to the coarse head's input.
        coarse_head: pooled features to (R, K, M, M) logits.
    """

    def __init__(self, pooler: PointPooler, coarse_head: CoarseMaskHead) -> None:
        super().__init__()
        self.pooler = pooler
        self.register_module("point_head", None)  # where official state dicts have one
        self.coarse_head = coarse_head

    def coarse_logits(self, features: dict[str, Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """(R, K, M, M) for per-image (N_i, 4) boxes."""
        return self.coarse_head(self.pooler(features, boxes))

    def losses(
        self, features: dict[str, Tensor], fg: Sequence[Proposals], targets: Sequence[Targets]
    ) -> Losses:
        """`loss_mask` of foreground proposals."""
        return self.coarse_losses(features, fg, targets)[0]

    def coarse_losses(
        self, features: dict[str, Tensor], fg: Sequence[Proposals], targets: Sequence[Targets]
    ) -> tuple[Losses, Tensor]:
        """`loss_mask`, and the (R, K, M, M) logits that it is of."""
        coarse = self.coarse_logits(features, [p.proposal_boxes.tensor for p in fg])
        gt_masks = mask_targets(fg, targets, coarse.shape[-1])
        return mask_loss(coarse, gt_masks, torch.cat([p.gt_classes for p in fg])), coarse

    def predict(
        self, features: dict[str, Tensor], boxes: Sequence[Tensor], classes: Tensor
    ) -> Tensor:
        """(R, 1, M, M) logits of each box's class."""
        return masks_of_class(self.coarse_logits(features, boxes), classes)[:, None]


class PointRendMaskHead(CoarseOnlyMaskHead):
    """A coarse mask, and a head that predicts points of it anew from finer features.

    Args:
        pooler: feature maps and boxes to the coarse head's input.
        coarse_head: pooled features to (R, K, M, M) logits.
        point_head: fine features and coarse logits of points to their logits.
        fine_features: takes the point head's features from the maps.
        sample_points: chooses training points.
        renderer: predicts masks by points.
    """

    def __init__(
        self,
        pooler: PointPooler,
        coarse_head: CoarseMaskHead,
        *,
        point_head: StandardPointHead,
        fine_features: PointFeatures,
        sample_points: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor],
        renderer: MaskRenderer,
    ) -> None:
        super().__init__(pooler, coarse_head)
        self.point_head = point_head
        self.fine_features = fine_features
        self.sample_points = sample_points
        self.renderer = renderer

    def point_logits(
        self,
        features: dict[str, Tensor],
        boxes: Sequence[Tensor],
        coarse: Tensor,
        points: Tensor,
    ) -> Tensor:
        """(R, K, P) at (R, P, 2) points, where the coarse logits are (R, K, M, M)."""
        fine = self.fine_features(features, boxes, points)
        return self.point_head(fine, point_sample(coarse, points))

    def losses(
        self, features: dict[str, Tensor], fg: Sequence[Proposals], targets: Sequence[Targets]
    ) -> Losses:
        """`loss_mask` and `loss_mask_point` of foreground proposals."""
        losses, coarse = self.coarse_losses(features, fg, targets)
        boxes = [p.proposal_boxes.tensor for p in fg]
        classes = torch.cat([p.gt_classes for p in fg])
        points = self.sample_points(coarse, lambda logits: calculate_uncertainty(logits, classes))
        labels = sample_point_labels(fg, targets, points)
        logits = self.point_logits(features, boxes, coarse, points)
        return losses | point_loss(logits, labels, classes)

    def predict(
        self, features: dict[str, Tensor], boxes: Sequence[Tensor], classes: Tensor
    ) -> Tensor:
        """(R, 1, M, M) logits of each box's class, M being the renderer's."""
        coarse = self.coarse_logits(features, boxes)

        def at(points: Tensor) -> Tensor:
            return masks_of_class(self.point_logits(features, boxes, coarse, points), classes)

        return self.renderer(at, torch.cat(list(boxes)))
