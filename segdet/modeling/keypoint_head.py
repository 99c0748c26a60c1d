"""Keypoint head of Mask R-CNN (arXiv:1703.06870, section 5): a heat map per keypoint and box."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.config.ranges import NonNegativeFloat, NonNegativeInt, PositiveInt
from segdet.errors import ConfigError
from segdet.layers import Losses, c2_msra_fill, conv3x3_relu
from segdet.modeling.roi_pooler import PoolerConfig
from segdet.structures import Proposals, Targets


@dataclass(frozen=True, kw_only=True)
class KeypointHeadConfig(PoolerConfig):
    """MODEL.ROI_KEYPOINT_HEAD; defaults are detectron2's. Heat maps have 4 times the cells."""

    name: str = "KRCNNConvDeconvUpsampleHead"
    conv_dims: tuple[PositiveInt, ...] = (512,) * 8
    num_keypoints: PositiveInt = 17  # 17 is COCO's person
    min_keypoints_per_image: NonNegativeInt = 1  # images with fewer are not trained on
    normalize_loss_by_visible_keypoints: bool = True
    loss_weight: NonNegativeFloat = 1.0

    def __post_init__(self) -> None:
        if self.name not in KEYPOINT_HEADS:
            raise ConfigError(f"NAME {self.name!r} is unknown; known: {', '.join(KEYPOINT_HEADS)}")

    @property
    def build(self) -> Callable[[int, float], KRCNNConvDeconvUpsampleHead]:
        """The head's constructor with these settings: channels of the pooled maps, regions.

        The latter are the foreground regions that an image is meant to have in training.
        """
        return KEYPOINT_HEADS[self.name](self)


class KRCNNConvDeconvUpsampleHead(nn.Module):
    """3x3 convolutions, a 2x deconvolution to a map per keypoint, and 2x bilinear upsampling.

    Args:
        in_channels: of the pooled features.
        nominal_regions: foreground regions that an image is meant to have in training.
        num_keypoints: output channels.
        conv_dims: output channels of each 3x3 convolution.
        loss_weight: of the loss.
        normalize_by_visible: the loss of an image is divided by the number of its keypoints that
            are visible, instead of by those of `nominal_regions`.
    """

    def __init__(
        self,
        in_channels: int,
        nominal_regions: float,
        *,
        num_keypoints: int,
        conv_dims: Sequence[int],
        loss_weight: float = 1.0,
        normalize_by_visible: bool = True,
    ) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.loss_normalizer = None if normalize_by_visible else num_keypoints * nominal_regions
        self.convs: list[nn.Module] = []
        channels = in_channels
        for k, dim in enumerate(conv_dims, start=1):
            conv = conv3x3_relu(channels, dim)
            self.add_module(f"conv_fcn{k}", conv)
            self.convs.append(conv)
            channels = dim
        self.score_lowres = nn.ConvTranspose2d(
            channels, num_keypoints, kernel_size=4, stride=2, padding=1
        )
        c2_msra_fill(self.score_lowres)

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, C, M / 4, M / 4) -> logits (R, num_keypoints, M, M)."""
        x = pooled
        for conv in self.convs:
            x = conv(x)
        x = self.score_lowres(x)
        return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)

    def losses(
        self, logits: Tensor, proposals: Sequence[Proposals], targets: Sequence[Targets]
    ) -> Losses:
        """`loss_keypoint` of foreground proposals.

        Args:
            logits: (R, num_keypoints, M, M); rows in the order of `proposals`.
            proposals: as `with_visible_keypoints` leaves them.
            targets: with `gt_keypoints`.
        """
        cells, visible = [], []
        for p, target in zip(proposals, targets, strict=True):
            if len(p) == 0:
                continue
            points = target.gt_keypoints.tensor[p.gt_index]
            image = keypoint_targets(points, p.proposal_boxes.tensor, logits.shape[-1])
            cells.append(image[0])
            visible.append(image[1])
        normalizer = None
        if self.loss_normalizer is not None:
            normalizer = self.loss_normalizer * len(proposals)
        if not cells:
            loss, count = logits.sum() * 0, 0
        else:
            loss = keypoint_loss(logits, torch.cat(cells), torch.cat(visible), normalizer)
            count = torch.cat(visible).sum()
        counts = {"loss_keypoint": count} if normalizer is None else {}
        return Losses({"loss_keypoint": loss * self.loss_weight}, {}, counts)


def _conv_deconv_head(
    section: KeypointHeadConfig,
) -> Callable[[int, float], KRCNNConvDeconvUpsampleHead]:
    return functools.partial(
        KRCNNConvDeconvUpsampleHead,
        num_keypoints=section.num_keypoints,
        conv_dims=section.conv_dims,
        loss_weight=section.loss_weight,
        normalize_by_visible=section.normalize_loss_by_visible_keypoints,
    )


# MODEL.ROI_KEYPOINT_HEAD.NAME -> section to constructor, as `KeypointHeadConfig.build` says
KEYPOINT_HEADS: dict[
    str, Callable[[KeypointHeadConfig], Callable[[int, float], KRCNNConvDeconvUpsampleHead]]
] = {"KRCNNConvDeconvUpsampleHead": _conv_deconv_head}


def keypoint_loss(
    logits: Tensor, cells: Tensor, visible: Tensor, normalizer: float | None = None
) -> Tensor:
    """Cross-entropy over the cells of each visible keypoint's map.

    Source: Mask R-CNN (arXiv:1703.06870), section 5, "a m^2-way softmax".

    Args:
        logits: (R, K, M, M), a map for each of K keypoints.
        cells: (R, K) int64 in [0, M * M), row by row: where each keypoint is.
        visible: (R, K) bool; the others do not count.
        normalizer: divides the sum; None for the number of visible keypoints.

    Returns:
        Scalar. Without a visible keypoint it is zero but still connected to `logits`.
    """
    count = int(visible.sum())
    if count == 0:
        return logits.sum() * 0
    loss = F.cross_entropy(logits.flatten(2)[visible], cells[visible], reduction="sum")
    return loss / (count if normalizer is None else normalizer)


def keypoint_targets(keypoints: Tensor, boxes: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """The cell of each keypoint in a grid of `side` by `side` cells over its box.

    Args:
        keypoints: (R, K, 3): x, y in pixels, visibility.
        boxes: (R, 4) XYXY in the same pixels.

    Returns:
        cells (R, K) int64, row by row, 0 where not visible; visible (R, K) bool: labelled
        keypoints inside the box, of which the right and the bottom edge are part.
    """
    low, high = boxes[:, None, :2], boxes[:, None, 2:]  # (R, 1, 2)
    points = keypoints[..., :2]
    cell = ((points - low) * (side / (high - low))).floor().to(torch.int64)  # (R, K, 2)
    cell = torch.where(points == high, side - 1, cell)
    inside = ((cell >= 0) & (cell < side)).all(dim=-1)
    visible = inside & (keypoints[..., 2] > 0)
    return (cell[..., 1] * side + cell[..., 0]) * visible, visible


def with_visible_keypoints(
    proposals: Sequence[Proposals], targets: Sequence[Targets]
) -> list[Proposals]:
    """Per image, the foreground proposals that a visible keypoint of their object lies in.

    Args:
        proposals: foreground only, with `gt_index`, the row of the image's targets.
        targets: with `gt_keypoints`.
    """
    kept = []
    for p, target in zip(proposals, targets, strict=True):
        if len(p):
            keypoints = target.gt_keypoints.tensor[p.gt_index]  # (R, K, 3)
            points, boxes = keypoints[..., :2], p.proposal_boxes.tensor[:, None]
            inside = ((points >= boxes[..., :2]) & (points <= boxes[..., 2:])).all(dim=-1)
            p = p[(inside & (keypoints[..., 2] >= 1)).any(dim=1)]
        kept.append(p)
    return kept


@torch.no_grad()
def heatmaps_to_keypoints(maps: Tensor, boxes: Tensor) -> Tensor:
    """The best position of each keypoint, searched at the resolution of the image.

    Each map is resized (bicubic) to the pixels that its box covers, so that the peak is found
    between cells, as in Detectron.

    Args:
        maps: (R, K, M, M) logits.
        boxes: (R, 4) XYXY in pixels.

    Returns:
        (R, K, 4): x and y in pixels, the logit of the peak, and its score: exp(logit) over the
        sum of exp over the map's own cells, which a peak between cells may bring above 1.
    """
    found = maps.new_zeros(*maps.shape[:2], 4)
    sizes = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)  # (R, 2): width, height
    for i, (width, height) in enumerate(sizes.ceil().to(torch.int64).tolist()):
        full = F.interpolate(
            maps[i : i + 1], size=(height, width), mode="bicubic", align_corners=False
        )[0]  # (K, height, width)
        best, position = full.flatten(1).max(dim=1)
        cells = torch.stack((position % width, position // width), dim=1)  # (K, 2): x, y
        step = sizes[i] / sizes[i].ceil()
        found[i, :, :2] = (cells + 0.5) * step + boxes[i, :2]
        found[i, :, 2] = best
        # exp(0) over the sum of the map's own cells, shifted alike so that nothing overflows.
        found[i, :, 3] = 1 / (maps[i] - best[:, None, None]).exp().sum(dim=(1, 2))
    return found
