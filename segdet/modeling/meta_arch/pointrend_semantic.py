"""PointRend for semantic segmentation (Kirillov et al. 2020, arXiv:1912.08193, section 5).

Semantic FPN whose logits are predicted anew at uncertain points, from the finest map's features
there and from the coarse logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from segdet.errors import ConfigError
from segdet.layers import Losses, at_least_float32, point_sample
from segdet.modeling.backbones.backbone import pyramid
from segdet.modeling.meta_arch.semantic_segmentor import SemanticSegmentor, SemanticSegmentorConfig
from segdet.modeling.point_features import subdivide
from segdet.modeling.point_head import PointHeadConfig, StandardPointHead
from segdet.modeling.sem_seg_head import SEM_SEG_HEADS, SemSegHead, sem_seg_loss


@dataclass(frozen=True, kw_only=True)
class PointRendSemSegConfig(SemanticSegmentorConfig):
    """MODEL, as PointRend for semantic segmentation reads it."""

    point_head: PointHeadConfig = field(default_factory=PointHeadConfig)

    def build(self) -> SemanticSegmentor:
        """The model with random weights."""
        backbone = self.build_backbone()
        head, num_classes = self.point_head, self.sem_seg_head.num_classes
        head.check_num_classes(num_classes, "SEM_SEG_HEAD.NUM_CLASSES")
        self._check()
        if (name := head.coarse_sem_seg_head_name) not in SEM_SEG_HEADS:
            known = ", ".join(SEM_SEG_HEADS)
            raise ConfigError(
                f"POINT_HEAD.COARSE_SEM_SEG_HEAD_NAME {name!r} is unknown; known: {known}"
            )
        _, channels = pyramid(backbone, head.in_features, "POINT_HEAD.IN_FEATURES")
        return SemanticSegmentor(
            backbone,
            sem_seg_head=PointRendSemSegHead(
                SEM_SEG_HEADS[name](self.sem_seg_head, backbone.output_shape()),
                point_head=head.build(channels * len(head.in_features), num_classes),
                in_features=head.in_features,
                sample_points=head.build_sampler(),
                subdivision_steps=head.subdivision_steps,
                subdivision_num_points=head.subdivision_num_points,
            ),
            pixel_mean=self.pixel_mean,
            pixel_std=self.pixel_std,
        )

    def _check(self) -> None:
        if self.sem_seg_head.num_classes < 2:
            raise ConfigError(
                f"SEM_SEG_HEAD.NUM_CLASSES must be >= 2, is {self.sem_seg_head.num_classes}: "
                "PointRend looks where two classes are close"
            )
        steps, stride = self.point_head.subdivision_steps, self.sem_seg_head.common_stride
        if steps < 0 or 2**steps != stride:
            raise ConfigError(
                f"POINT_HEAD.SUBDIVISION_STEPS must double SEM_SEG_HEAD.COMMON_STRIDE's logits to "
                f"the image's size; 2**{steps} is not {stride}"
            )


class PointRendSemSegHead(SemSegHead):
    """A coarse semantic head, and a head that predicts points of its logits anew.

    Args:
        coarse_sem_seg_head: feature maps to coarse logits, and their loss.
        point_head: fine features and coarse logits of points to their logits.
        in_features: the maps that fine features are of.
        sample_points: chooses training points.
        subdivision_steps: how often the predicted logits are doubled in size.
        subdivision_num_points: cells that each step predicts anew.
    """

    def __init__(
        self,
        coarse_sem_seg_head: SemSegHead,
        *,
        point_head: StandardPointHead,
        in_features: Sequence[str],
        sample_points: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor],
        subdivision_steps: int,
        subdivision_num_points: int,
    ) -> None:
        super().__init__(
            coarse_sem_seg_head.num_classes,
            common_stride=coarse_sem_seg_head.common_stride,
            loss_weight=coarse_sem_seg_head.loss_weight,
            ignore_value=coarse_sem_seg_head.ignore_value,
        )
        self.coarse_sem_seg_head = coarse_sem_seg_head
        self.point_head = point_head
        self.in_features = tuple(in_features)
        self.sample_points = sample_points
        self.subdivision_steps = subdivision_steps
        self.subdivision_num_points = subdivision_num_points

    def layers(self, features: Mapping[str, Tensor]) -> Tensor:
        """The coarse logits (B, K, H / common_stride, W / common_stride)."""
        return self.coarse_sem_seg_head.layers(features)

    def forward(self, features: Mapping[str, Tensor], labels: Tensor) -> Losses:
        """`loss_sem_seg` of the coarse logits, and `loss_sem_seg_point` of points."""
        coarse = self.layers(features)
        losses = self.coarse_sem_seg_head.losses(coarse, labels)
        points = self.sample_points(coarse, calculate_uncertainty)
        logits = self.point_logits(features, coarse, points)
        gt_classes = sample_nearest(labels, points)
        point_loss = sem_seg_loss(logits, gt_classes, self.ignore_value)
        counts = {"loss_sem_seg_point": self.count(gt_classes)}
        return losses | Losses({"loss_sem_seg_point": point_loss}, {}, counts)

    def predict(self, features: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, K, H, W) of the padded images."""
        coarse = self.layers(features)
        return subdivide(
            at_least_float32(coarse),
            lambda points: self.point_logits(features, coarse, points),
            calculate_uncertainty,
            steps=self.subdivision_steps,
            num_points=self.subdivision_num_points,
        )

    def point_logits(
        self, features: Mapping[str, Tensor], coarse: Tensor, points: Tensor
    ) -> Tensor:
        """(B, K, P) at (B, P, 2) points of the padded images, from (B, K, H, W) coarse logits."""
        fine = torch.cat([point_sample(features[name], points) for name in self.in_features], dim=1)
        return self.point_head(fine, point_sample(coarse, points))


def calculate_uncertainty(sem_seg_logits: Tensor) -> Tensor:
    """(B, 1, ...): the second best logit minus the best, of (B, K, ...) with K >= 2."""
    best, second = sem_seg_logits.topk(2, dim=1).values.unbind(1)
    return (second - best)[:, None]


def sample_nearest(labels: Tensor, points: Tensor) -> Tensor:
    """(B, P) labels of the pixels that points lie in.

    Args:
        labels: (B, H, W) int64.
        points: (B, P, 2), the whole map being [0, 1] x [0, 1].
    """
    height, width = labels.shape[-2:]
    x = (points[..., 0] * width).long().clamp(0, width - 1)
    y = (points[..., 1] * height).long().clamp(0, height - 1)
    return labels.flatten(1).gather(1, y * width + x)
