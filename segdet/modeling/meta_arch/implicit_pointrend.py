"""Implicit PointRend (Cheng et al. 2021, arXiv:2104.06404): each mask is a small network.

PointRend whose coarse mask is gone: a head predicts, for every region, the parameters of a
perceptron, which tells from a point's place and its features whether it is of the object. It trains
on points drawn evenly, and predicts large masks by subdivision as PointRend does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.config.ranges import NonNegativeFloat
from segdet.errors import ConfigError
from segdet.layers import Losses
from segdet.modeling.backbones import Backbone
from segdet.modeling.mask_head import masks_of_class
from segdet.modeling.meta_arch.pointrend import CoarseMaskHead, PointPooler, PointRendConfig
from segdet.modeling.point_features import sample_point_labels
from segdet.modeling.point_head import MaskRenderer, PointFeatures, point_loss
from segdet.structures import Proposals, Targets


@dataclass(frozen=True, kw_only=True)
class ImplicitConfig:
    """MODEL.IMPLICIT_POINTREND; defaults are those of detectron2's PointRend."""

    image_feature_enabled: bool = True
    pos_enc_enabled: bool = True
    params_l2_regularizer: NonNegativeFloat = 1e-5

    def __post_init__(self) -> None:
        if not (self.image_feature_enabled or self.pos_enc_enabled):
            raise ConfigError(
                "IMAGE_FEATURE_ENABLED and POS_ENC_ENABLED are both off: points would have no "
                "features; set one to True"
            )


@dataclass(frozen=True, kw_only=True)
class ImplicitPointRendConfig(PointRendConfig):
    """MODEL, as Implicit PointRend reads it."""

    implicit_pointrend: ImplicitConfig = field(default_factory=ImplicitConfig)

    def build_mask_head(self, backbone: Backbone) -> ImplicitPointRendMaskHead:
        """The mask branch on the backbone's maps."""
        pooler, channels = self.build_pooler(backbone)
        fine_features, fine_channels = self.build_fine_features(backbone)
        point_head = ImplicitPointHead(
            fine_channels if self.implicit_pointrend.image_feature_enabled else 0,
            self.point_head.num_masks,
            fc_dim=self.point_head.fc_dim,
            num_fc=self.point_head.num_fc,
            encode_positions=self.implicit_pointrend.pos_enc_enabled,
        )
        return ImplicitPointRendMaskHead(
            pooler,
            parameter_head=self.roi_mask_head.build_trunk(channels, (point_head.num_params,)),
            point_head=point_head,
            fine_features=fine_features,
            num_points=self.point_head.train_num_points,
            params_l2_regularizer=self.implicit_pointrend.params_l2_regularizer,
            renderer=self._renderer(),
        )

    def _renderer(self) -> MaskRenderer:
        """As many cells in the first grid as each step predicts anew."""
        num_points = self.point_head.subdivision_num_points
        side = math.isqrt(num_points)
        if side**2 != num_points:
            raise ConfigError(
                f"POINT_HEAD.SUBDIVISION_NUM_POINTS must be a square, is {num_points}: Implicit "
                "PointRend starts from a grid of as many cells"
            )
        return MaskRenderer(side, self.point_head.subdivision_steps, num_points)


class ImplicitPointHead(nn.Module):
    """A perceptron whose parameters come with each region; it learns none of its own.

    Args:
        in_channels: image features of a point; 0 leaves them out.
        num_masks: logits out.
        fc_dim: channels inside.
        num_fc: layers before the last.
        encode_positions: the point's place in its box enters too.
    """

    num_frequencies = 128  # of the encoded place, each with a sine and a cosine

    def __init__(
        self,
        in_channels: int,
        num_masks: int,
        *,
        fc_dim: int,
        num_fc: int,
        encode_positions: bool,
    ) -> None:
        super().__init__()
        self.use_features = in_channels > 0
        self.encode_positions = encode_positions
        self.positional_encoding_gaussian_matrix: Tensor
        if encode_positions:
            frequencies = torch.randn(2, self.num_frequencies)
            self.register_buffer("positional_encoding_gaussian_matrix", frequencies)
            in_channels += 2 * self.num_frequencies
        widths = [in_channels, *[fc_dim] * num_fc, num_masks]
        # (out, in) of each layer; all weights stand before all biases
        self.shapes = list(zip(widths[1:], widths[:-1], strict=True))
        self.num_params = sum(outputs * (inputs + 1) for outputs, inputs in self.shapes)

    def forward(self, features: Tensor, point_coords: Tensor, params: Tensor) -> Tensor:
        """Logits (R, num_masks, P).

        Args:
            features: (R, in_channels, P) of the image.
            point_coords: (R, P, 2) within each box.
            params: (R, num_params).
        """
        inputs = [self.encode(point_coords).to(features.dtype)] if self.encode_positions else []
        x = torch.cat([*inputs, features] if self.use_features else inputs, dim=1)
        weights, biases = self._split(params)
        for k, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            x = torch.baddbmm(bias, weight, F.relu(x) if k else x)
        return x

    def encode(self, point_coords: Tensor) -> Tensor:
        """(R, P, 2) -> (R, 256, P): sines, then cosines, of random projections."""
        frequencies = self.positional_encoding_gaussian_matrix
        x, y = (2 * point_coords - 1)[..., None].unbind(2)  # (R, P, 1) each
        # A matrix product would be taken in half under autocast, too coarse for places.
        angles = 2 * math.pi * (x * frequencies[0] + y * frequencies[1])  # (R, P, 128)
        return torch.cat((angles.sin(), angles.cos()), dim=2).transpose(1, 2)

    def _split(self, params: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Per layer, (R, out, in) weights and (R, out, 1) biases."""
        sizes = [outputs * inputs for outputs, inputs in self.shapes]
        sizes += [outputs for outputs, _ in self.shapes]
        parts = params.split(sizes, dim=1)
        layers = len(self.shapes)
        weights = [w.unflatten(1, s) for w, s in zip(parts[:layers], self.shapes, strict=True)]
        return weights, [bias[..., None] for bias in parts[layers:]]


class ImplicitPointRendMaskHead(nn.Module):
    """Predicts each region's perceptron, and masks by it.

    Args:
        pooler: feature maps and boxes to the parameter head's input.
        parameter_head: pooled features to (R, parameters).
        point_head: runs the perceptrons.
        fine_features: takes the points' features from the maps.
        num_points: to train on, in each region.
        params_l2_regularizer: weight of the parameters' mean square in the loss.
        renderer: predicts masks by points.
    """

    def __init__(
        self,
        pooler: PointPooler,
        *,
        parameter_head: CoarseMaskHead,
        point_head: ImplicitPointHead,
        fine_features: PointFeatures,
        num_points: int,
        params_l2_regularizer: float,
        renderer: MaskRenderer,
    ) -> None:
        super().__init__()
        self.pooler = pooler
        self.point_head = point_head
        self.parameter_head = parameter_head
        self.fine_features = fine_features
        self.num_points = num_points
        self.params_l2_regularizer = params_l2_regularizer
        self.renderer = renderer

    def losses(
        self, features: dict[str, Tensor], fg: Sequence[Proposals], targets: Sequence[Targets]
    ) -> Losses:
        """`loss_mask_point` and `loss_l2` of foreground proposals."""
        boxes = [p.proposal_boxes.tensor for p in fg]
        params = self.parameter_head(self.pooler(features, boxes))
        points = torch.rand(
            len(params), self.num_points, 2, device=params.device, dtype=boxes[0].dtype
        )
        labels = sample_point_labels(fg, targets, points)
        logits = self.point_head(self.fine_features(features, boxes, points), points, params)
        losses = point_loss(logits, labels, torch.cat([p.gt_classes for p in fg]))
        size = (params**2).mean() if len(params) else params.sum() * 0
        return losses | Losses({"loss_l2": self.params_l2_regularizer * size})

    def predict(
        self, features: dict[str, Tensor], boxes: Sequence[Tensor], classes: Tensor
    ) -> Tensor:
        """(R, 1, M, M) logits of each box's class, M being the renderer's."""
        params = self.parameter_head(self.pooler(features, boxes))

        def at(points: Tensor) -> Tensor:
            fine = self.fine_features(features, boxes, points)
            return masks_of_class(self.point_head(fine, points, params), classes)

        return self.renderer(at, torch.cat(list(boxes)))
