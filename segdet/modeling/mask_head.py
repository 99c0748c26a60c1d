"""Mask head of Mask R-CNN (arXiv:1703.06870, section 3): a small mask per box and class."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.config.ranges import NonNegativeInt, PositiveInt
from segdet.errors import ConfigError
from segdet.layers import Conv2d, Losses, NormName, c2_msra_fill, conv3x3_relu, normal_fill
from segdet.layers.prepared import FixedConv, Prepared, is_fixed, is_traced, prepare_conv
from segdet.layers.recompute import recompute
from segdet.modeling.roi_pooler import PoolerConfig
from segdet.structures import Proposals, Targets

REGIONS = 8  # whose masks are finished at a time, in the cache
GPU_REGIONS = 128  # where that is a GPU's, which wants few large kernels


@dataclass(frozen=True, kw_only=True)
class MaskHeadConfig(PoolerConfig):
    """MODEL.ROI_MASK_HEAD; defaults are detectron2's. The masks have twice the pooled cells."""

    name: str = "MaskRCNNConvUpsampleHead"
    num_conv: NonNegativeInt = 0
    conv_dim: PositiveInt = 256
    norm: NormName = ""
    cls_agnostic_mask: bool = False

    def __post_init__(self) -> None:
        if self.name not in MASK_HEADS:
            raise ConfigError(f"NAME {self.name!r} is unknown; known: {', '.join(MASK_HEADS)}")

    @property
    def build(self) -> Callable[[int, int], MaskRCNNConvUpsampleHead]:
        """The head's constructor with these settings: channels of the pooled maps, classes."""
        return MASK_HEADS[self.name](self)


class MaskRCNNConvUpsampleHead(nn.Module):
    """3x3 convolutions, a 2x deconvolution, and one mask channel per class.

    Args:
        in_channels: of the pooled features.
        num_classes: K.
        cls_agnostic_mask: one output channel instead of K.
        conv_dim: channels inside.
        num_conv: 3x3 convolutions before the deconvolution.
        norm: of those convolutions.
        spatial_attention: cells are weighed between those convolutions and the deconvolution.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        cls_agnostic_mask: bool = False,
        conv_dim: int,
        num_conv: int,
        norm: str = "",
        spatial_attention: bool = False,
    ) -> None:
        super().__init__()
        self.convs: list[nn.Module] = []
        channels = in_channels
        for k in range(1, num_conv + 1):
            conv = conv3x3_relu(channels, conv_dim, norm)
            self.add_module(f"mask_fcn{k}", conv)
            self.convs.append(conv)
            channels = conv_dim
        if spatial_attention:
            self.spatialAtt = SpatialAttention()  # so in the official weights
            self.convs.append(self.spatialAtt)
        self.deconv = nn.ConvTranspose2d(channels, conv_dim, kernel_size=2, stride=2)
        c2_msra_fill(self.deconv)
        num_masks = 1 if cls_agnostic_mask else num_classes
        self.predictor = Conv2d(conv_dim, num_masks, kernel_size=1)
        normal_fill(self.predictor, std=0.001)
        self._prepared: Prepared[FixedConv] = Prepared()

    def forward(self, pooled: Tensor, classes: Tensor | None = None) -> Tensor:
        """Mask logits.

        Args:
            pooled: (R, C, M / 2, M / 2).
            classes: (R,) int64; of each region only the mask of this class is wanted.

        Returns:
            (R, num_masks, M, M), or (R, 1, M, M) of the classes.
        """
        x = pooled
        for conv in self.convs:
            x = conv(x)
        if classes is None:
            return self.predictor(F.relu(self.deconv(x)))
        if is_traced():  # the number of parts would become that of any call
            return masks_of_class(self.predictor(F.relu(self.deconv(x))), classes)[:, None]
        parameters = (*self.deconv.parameters(), *self.predictor.parameters())
        finish = self._masks if is_fixed(x, *parameters) else self._learning_masks
        size = REGIONS if x.device.type == "cpu" else GPU_REGIONS
        parts = zip(x.split(size), classes.split(size), strict=True)
        return torch.cat([finish(*part) for part in parts])

    def _masks(self, x: Tensor, classes: Tensor) -> Tensor:
        """(r, C, S, S) to (r, 1, 2 S, 2 S)."""

        def prepare() -> FixedConv:
            return prepare_conv(*_as_convolution(self.deconv.weight, self.deconv.bias))

        deconv = self._prepared(prepare, self.deconv.weight, self.deconv.bias)
        return _choose(deconv(x, relu=True), classes, *self.predictor.parameters())

    def _learning_masks(self, x: Tensor, classes: Tensor) -> Tensor:
        """The same, keeping `x` alone for the gradient."""

        def finish(x: Tensor, weight: Tensor, bias: Tensor, *predictor: Tensor) -> Tensor:
            cells = F.relu_(F.conv2d(x, *_as_convolution(weight, bias)))
            return _choose(cells, classes, *predictor)

        deconv = (self.deconv.weight, cast(Tensor, self.deconv.bias))
        return recompute(finish, x, *deconv, *self.predictor.parameters())


def _as_convolution(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The 2x deconvolution (C, D, 2, 2), (D,) as a 1x1 convolution to 4 D channels.

    They are those of the 2x2 cells that a cell becomes.
    """
    weight = weight.permute(2, 3, 1, 0).flatten(0, 2)  # (2 * 2 * D, C)
    return weight[:, :, None, None], cast(Tensor, bias).repeat(4)


def _choose(cells: Tensor, classes: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The masks of `classes`, without those of others.

    Args:
        cells: (R, 4 D, S, S), as such a convolution gives them.
        classes: (R,) int64.
        weight: (num_masks, D, 1, 1).
        bias: (num_masks,).

    Returns:
        (R, 1, 2 S, 2 S).
    """
    side = cells.shape[-1]
    if len(bias) == 1:
        classes = torch.zeros_like(classes)
    cells = cells.permute(0, 2, 3, 1).reshape(len(cells), 4 * side**2, weight.shape[1])
    own = weight[classes].flatten(2)  # (R, D, 1)
    logits = torch.baddbmm(bias[classes][:, None, None], cells, own)
    logits = logits.view(len(cells), side, side, 2, 2).transpose(2, 3)
    return logits.reshape(len(cells), 1, 2 * side, 2 * side)


class SpatialAttention(nn.Module):
    """Weighs the cells of each map by the mean and the maximum of their channels.

    Source: CenterMask (arXiv:1911.06667), section 3.2, "SAG-Mask", equation 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size=3, padding=1, bias=False)
        c2_msra_fill(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        """(R, C, S, S) to the same shape."""
        summary = torch.cat((x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)), dim=1)
        return x * self.conv(summary).sigmoid()


def _conv_upsample_head(
    section: MaskHeadConfig, spatial_attention: bool = False
) -> Callable[[int, int], MaskRCNNConvUpsampleHead]:
    return functools.partial(
        MaskRCNNConvUpsampleHead,
        cls_agnostic_mask=section.cls_agnostic_mask,
        conv_dim=section.conv_dim,
        num_conv=section.num_conv,
        norm=section.norm,
        spatial_attention=spatial_attention,
    )


# MODEL.ROI_MASK_HEAD.NAME -> section to constructor: channels of the pooled maps, classes
MASK_HEADS: dict[str, Callable[[MaskHeadConfig], Callable[[int, int], MaskRCNNConvUpsampleHead]]]
MASK_HEADS = {
    "MaskRCNNConvUpsampleHead": _conv_upsample_head,
    "SpatialAttentionMaskHead": functools.partial(_conv_upsample_head, spatial_attention=True),
}


def mask_loss(logits: Tensor, gt_masks: Tensor, gt_classes: Tensor) -> Losses:
    """`loss_mask`: mean binary cross-entropy over the mask channel of each ROI's own class.

    Source: Mask R-CNN (arXiv:1703.06870), section 3, "L_mask".

    Args:
        logits: (R, K, M, M); K is num_classes, or 1 when class-agnostic.
        gt_masks: (R, M, M) bool, the ground truth cropped to each ROI.
        gt_classes: (R,) int64 in [0, num_classes).

    Returns:
        One term. When R == 0 it is zero but still connected to `logits`, so a batch without
        objects trains and every worker reduces the same parameters.

    Raises:
        ValueError: mask sizes differ.
    """
    if logits.shape[-2:] != gt_masks.shape[-2:]:
        raise ValueError(f"mask sizes differ: {logits.shape=}, {gt_masks.shape=}")
    if len(logits) == 0:
        return Losses({"loss_mask": logits.sum() * 0}, counts={"loss_mask": 0})
    own = masks_of_class(logits, gt_classes)  # (R, M, M)
    loss = F.binary_cross_entropy_with_logits(own, gt_masks.to(own.dtype))
    metrics = mask_metrics(own.detach(), gt_masks)
    return Losses({"loss_mask": loss}, metrics, {"loss_mask": len(logits)})


def own_masks(head: nn.Module, pooled: Tensor, classes: Tensor) -> Tensor:
    """(R, 1, M, M) mask logits of one class for each region.

    Args:
        head: a mask head.
        pooled: (R, C, S, S), its input.
        classes: (R,) int64.
    """
    if type(head).forward is MaskRCNNConvUpsampleHead.forward:
        return head(pooled, classes)
    return masks_of_class(head(pooled), classes)[:, None]  # a plug-in's takes no classes


def masks_of_class(logits: Tensor, classes: Tensor) -> Tensor:
    """(R, M, M): each row's channel of `logits` (R, K, M, M); the only one when K == 1."""
    channel = classes if logits.shape[1] > 1 else torch.zeros_like(classes)
    return logits[torch.arange(len(logits), device=logits.device), channel]


def mask_targets(proposals: Sequence[Proposals], targets: Sequence[Targets], side: int) -> Tensor:
    """(R, side, side) bool: each foreground proposal's object, cropped to the proposal's box.

    Args:
        proposals: foreground only, with `gt_index`, the row of the image's targets.
        targets: with `gt_masks`.
    """
    return torch.cat(
        [
            target.gt_masks.crop_and_resize(p.proposal_boxes.tensor, side, p.gt_index)
            if len(p)
            else torch.zeros(0, side, side, dtype=torch.bool, device=p.gt_classes.device)
            for p, target in zip(proposals, targets, strict=True)
        ]
    )


@torch.no_grad()
def mask_metrics(logits: Tensor, gt_masks: Tensor) -> dict[str, Tensor]:
    """Pixel accuracy, false positives and false negatives of (R, M, M) logits, decided at 0."""
    pred, gt = logits > 0, gt_masks.bool()
    num_positive = gt.sum().clamp(min=1)
    num_negative = (~gt).sum().clamp(min=1)
    return {
        "mask_rcnn/accuracy": (pred == gt).float().mean(),
        "mask_rcnn/false_positive": (pred & ~gt).sum() / num_negative,
        "mask_rcnn/false_negative": (~pred & gt).sum() / num_positive,
    }
