"""YOLACT (Bolya et al. 2019, arXiv:1904.02689): masks combined of prototypes, in one stage.

Every prior box gets a class, a box and coefficients; a mask is the sigmoid of the image's
prototypes, weighed by them, within the box. YOLACT++ (arXiv:1912.06218) has deformable blocks in
the backbone, more prior boxes, and a net that predicts the IoU of each mask with its object, by
which masks rank (`mask_scores`); boxes keep their `scores`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.config.ranges import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from segdet.errors import ConfigError
from segdet.layers import Losses, at_least_float32, batched_nms, cross_class_fast_nms, fast_nms
from segdet.modeling.backbones import Backbone
from segdet.modeling.backbones.backbone import known, select_maps
from segdet.modeling.postprocessing import requested_size
from segdet.modeling.prior_boxes import decode, prior_boxes
from segdet.modeling.prototype_masks import combine_prototypes, size_of
from segdet.modeling.system import Needs, System, SystemConfig
from segdet.modeling.yolact_layers import (
    BilinearFPN,
    FastMaskIoUNet,
    PredictionHead,
    Predictions,
    ProtoNet,
    xavier_fill,
)
from segdet.modeling.yolact_loss import YolactLoss, read_image_targets
from segdet.structures import Boxes, Detections, ImageList, Targets

_log = logging.getLogger(__name__)

MASKS_AT_ONCE = 16  # that are resized together: what they take in memory is bounded


@dataclass(frozen=True, kw_only=True)
class YolactHeadConfig:
    """MODEL.YOLACT; defaults are yolact_base's."""

    num_classes: PositiveInt = 80
    num_prototypes: PositiveInt = 32
    # Pixels, a row for each level.
    anchor_scales: tuple[tuple[PositiveFloat, ...], ...] = ((24,), (48,), (96,), (192,), (384,))
    aspect_ratios: tuple[PositiveFloat, ...] = (1.0, 0.5, 2.0)  # width / height
    square_anchors: bool = True  # ratios change their size alone, as in the released weights
    iou_thresholds: tuple[Fraction, Fraction] = (0.4, 0.5)  # background below, objects from here on
    crowd_iou_threshold: Fraction = 0.7  # share of a box in a crowd above which it is ignored
    negatives_per_positive: NonNegativeInt = 3
    masks_to_train: PositiveInt = 100  # of an image
    discard_mask_area: NonNegativeInt = 25  # cells of a prototype; smaller objects teach no IoU
    cls_loss_weight: NonNegativeFloat = 1.0
    bbox_reg_loss_weight: NonNegativeFloat = 1.5
    mask_loss_weight: NonNegativeFloat = 6.125
    semantic_loss_weight: NonNegativeFloat = 1.0
    maskiou_loss_weight: NonNegativeFloat = 25.0
    score_thresh_test: NonNegativeFloat = 0.05
    nms_thresh_test: Fraction = 0.5
    topk_candidates_test: PositiveInt = 200  # of a class
    fast_nms: bool = True  # False: NMS as elsewhere, where boxes that are dropped drop no others
    cross_class_nms: bool = False  # a box has its best class alone, and Fast NMS sees all together
    min_images_for_bn: NonNegativeInt = 6  # of a process; with fewer, batch norm stays as loaded

    def __post_init__(self) -> None:
        if len({len(scales) for scales in self.anchor_scales}) != 1 or not self.aspect_ratios:
            raise ConfigError(
                "ANCHOR_SCALES must have as many for each level, and ASPECT_RATIOS one at least: "
                f"are {self.anchor_scales} and {self.aspect_ratios}"
            )
        low, high = self.iou_thresholds
        if not 0 < low <= high:
            raise ConfigError(f"IOU_THRESHOLDS must be ascending, are {self.iou_thresholds}")
        if self.cross_class_nms and not self.fast_nms:
            raise ConfigError("CROSS_CLASS_NMS needs FAST_NMS: True")

    def prior_sizes(self) -> list[list[tuple[float, float]]]:
        """Per level (width, height) of each of a cell's boxes, in pixels."""
        roots = [math.sqrt(ratio) for ratio in self.aspect_ratios]
        tall = roots if self.square_anchors else [1 / root for root in roots]
        shapes = list(zip(roots, tall, strict=True))
        return [
            [(s * w, s * h) for s in scales for w, h in shapes] for scales in self.anchor_scales
        ]

    def build(self, in_channels: int) -> PredictionHead:
        """The head for levels of `in_channels` channels."""
        return PredictionHead(
            in_channels,
            prior_sizes=self.prior_sizes(),
            num_classes=self.num_classes,
            num_prototypes=self.num_prototypes,
        )

    def build_loss(self) -> YolactLoss:
        """The training losses."""
        return YolactLoss(
            iou_thresholds=self.iou_thresholds,
            crowd_threshold=self.crowd_iou_threshold,
            negatives_per_positive=self.negatives_per_positive,
            masks_to_train=self.masks_to_train,
            discard_mask_area=self.discard_mask_area,
            weights={
                "loss_cls": self.cls_loss_weight,
                "loss_box_reg": self.bbox_reg_loss_weight,
                "loss_mask": self.mask_loss_weight,
                "loss_semantic": self.semantic_loss_weight,
                "loss_maskiou": self.maskiou_loss_weight,
            },
        )

    def build_selector(self, detections_per_image: int) -> Selector:
        """What makes detections of predictions."""
        return Selector(
            score_thresh=self.score_thresh_test,
            nms_thresh=self.nms_thresh_test,
            top_k=self.topk_candidates_test,
            detections_per_image=detections_per_image,
            fast=self.fast_nms,
            cross_class=self.cross_class_nms,
        )

    def trains_batch_norm(self, images_per_batch: int) -> bool:
        """Whether a process gets enough images of a batch; says so in the log."""
        workers = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        trains = images_per_batch // workers >= self.min_images_for_bn
        _log.info(
            "Batch norm %s: %d images of a process, %d are enough (MODEL.YOLACT.MIN_IMAGES_FOR_BN)",
            "trains" if trains else "is frozen",
            images_per_batch // workers,
            self.min_images_for_bn,
        )
        return trains


@dataclass(frozen=True, kw_only=True)
class YOLACTConfig(SystemConfig):
    """MODEL, as YOLACT reads it; YOLACT++ with MASKIOU_ON and RESNETS' deformable stages."""

    needs: ClassVar[Needs] = Needs(labels={"annotations": "MODEL.YOLACT.NUM_CLASSES"}, crowds=True)

    mask_on: bool = False
    maskiou_on: bool = False
    yolact: YolactHeadConfig = field(default_factory=YolactHeadConfig)
    detections_per_image: PositiveInt = field(
        default=100, metadata={"key": "TEST.DETECTIONS_PER_IMAGE"}
    )
    ims_per_batch: PositiveInt = field(default=16, metadata={"key": "SOLVER.IMS_PER_BATCH"})

    def build(self) -> YOLACT:
        """The model with random weights."""
        if not self.mask_on:
            raise ConfigError("YOLACT needs MASK_ON: True")
        if self.fpn.norm or self.fpn.fuse_type != "sum":
            raise ConfigError("YOLACT's pyramid has neither FPN.NORM nor a FUSE_TYPE but sum")
        backbone = self.build_backbone()
        maps = select_maps(backbone.output_shape(), self.fpn.in_features, "FPN.IN_FEATURES")
        channels = {name: known(shape.channels) for name, shape in maps.items()}
        fpn = BilinearFPN(channels, self.fpn.out_channels)
        levels = len(maps) + fpn.EXTRA_LEVELS
        if len(self.yolact.anchor_scales) != levels:
            raise ConfigError(
                f"YOLACT.ANCHOR_SCALES must be for {levels} levels, those of FPN.IN_FEATURES and "
                f"{fpn.EXTRA_LEVELS} more, is for {len(self.yolact.anchor_scales)}"
            )
        return YOLACT(
            backbone,
            fpn=fpn,
            proto_net=ProtoNet(fpn.out_channels, self.yolact.num_prototypes),
            head=self.yolact.build(fpn.out_channels),
            maskiou_net=FastMaskIoUNet(self.yolact.num_classes) if self.maskiou_on else None,
            loss=self.yolact.build_loss(),
            selector=self.yolact.build_selector(self.detections_per_image),
            trains_batch_norm=self.yolact.trains_batch_norm(self.ims_per_batch),
            pixel_mean=self.pixel_mean,
            pixel_std=self.pixel_std,
        )


class Maps(NamedTuple):
    """What the network makes of a batch, before anything is selected."""

    size: tuple[int, int]  # (height, width) of the network input, in pixels
    priors: Tensor  # (P, 4) centre x, centre y, width, height in fractions of the input
    predictions: Predictions
    prototypes: Tensor  # (B, C, h, w)


class YOLACT(System):
    """Prior boxes with classes, boxes and coefficients, and prototypes for the masks.

    Args:
        backbone: images to feature maps.
        fpn: makes levels of them.
        proto_net: makes prototypes of the finest level.
        head: predicts for the prior boxes of all levels.
        maskiou_net: grades masks, for `mask_scores`; None: they rank by the boxes' scores.
        loss: compares all that with the ground truth.
        selector: finds the detections.
        trains_batch_norm: otherwise batch norm keeps its statistics and does not learn.
        pixel_mean: one value a channel, subtracted from the images.
        pixel_std: one value a channel, divides them after that.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        fpn: BilinearFPN,
        proto_net: ProtoNet,
        head: PredictionHead,
        maskiou_net: FastMaskIoUNet | None,
        loss: YolactLoss,
        selector: Selector,
        trains_batch_norm: bool,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__(backbone, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.proto_net = proto_net
        self.maskiou_net = maskiou_net
        self.fpn = fpn
        self.prediction_layers = nn.ModuleList([head])
        self.semantic_seg_conv = nn.Conv2d(fpn.out_channels, head.num_classes, 1)
        xavier_fill(self.semantic_seg_conv)
        self.loss = loss
        self.selector = selector
        self._frozen = [] if trains_batch_norm else _batch_norms(self)
        for norm in self._frozen:
            norm.requires_grad_(False)

    def train(self, mode: bool = True) -> YOLACT:
        """As of every module, but for a batch norm that does not learn."""
        super().train(mode)
        for norm in self._frozen:
            norm.eval()
        return self

    def losses(self, images: ImageList, targets: list[Targets]) -> Losses:
        """`loss_cls`, `loss_box_reg`, `loss_mask`, `loss_semantic`; with its net `loss_maskiou`."""
        size, levels = size_of(images.tensor), self.levels(images)
        maps = self.read_out(levels, size)
        return self.loss(
            maps.priors,
            maps.predictions,
            maps.prototypes,
            at_least_float32(self.semantic_seg_conv(levels[0])),
            [read_image_targets(target, size, maps.priors) for target in targets],
            self.maskiou_net,
        )

    def predict(self, images: ImageList) -> list[Detections]:
        """Per image, the best detections; masks (N, 1, h, w), of the prototypes' size."""
        maps = self.read_out(self.levels(images), size_of(images.tensor))
        return self.detect(maps, self.select(maps), images)

    def levels(self, images: ImageList) -> list[Tensor]:
        """The pyramid's maps (B, D, h, w), finest first."""
        return self.fpn(self.backbone(images.tensor))

    def read_out(self, levels: Sequence[Tensor], size: tuple[int, int]) -> Maps:
        """What the head and the prototypes' net make of them; `size` is the network input's."""
        head = cast(PredictionHead, self.prediction_layers[0])
        predictions = Predictions(*map(at_least_float32, head(levels)))
        cells = [size_of(x) for x in levels]
        priors = prior_boxes(cells, head.prior_sizes, size, like=predictions.deltas)
        return Maps(size, priors, predictions, at_least_float32(self.proto_net(levels[0])))

    def select(self, maps: Maps) -> list[Selection]:
        """Per image, the prior boxes that are detections."""
        scores = maps.predictions.logits.softmax(-1)[..., 1:]  # (B, P, K)
        deltas = maps.predictions.deltas
        images = zip(deltas, scores, strict=True)
        return [self.selector(maps.priors, *one, maps.size) for one in images]

    def detect(
        self, maps: Maps, selected: Sequence[Selection], images: ImageList
    ) -> list[Detections]:
        """Per image, what was selected, with masks and, where they are graded, `mask_scores`."""
        height, width = size_of(images.tensor)
        found = []
        for i, (one, image_size) in enumerate(zip(selected, images.image_sizes, strict=True)):
            coefficients = maps.predictions.coefficients[i][one.rows]
            masks = combine_prototypes(maps.prototypes[i], coefficients, one.boxes)
            detections = Detections(
                image_size,
                pred_boxes=Boxes(one.boxes * one.boxes.new_tensor((width, height)).repeat(2)),
                scores=one.scores,
                pred_classes=one.classes,
            )
            if self.maskiou_net is not None:
                ious = at_least_float32(self.maskiou_net(masks))
                detections.mask_scores = one.scores * ious.gather(1, one.classes[:, None])[:, 0]
            detections.pred_masks = _without_padding(masks, (height, width), image_size)[:, None]
            found.append(detections)
        return found

    def postprocess(
        self, found: Sequence[Detections], batched_inputs: list[dict]
    ) -> list[dict[str, Any]]:
        """Results at the size that each input asks for."""
        return [
            {self.result: resize_detections(d, *requested_size(x, d.image_size))}
            for d, x in zip(found, batched_inputs, strict=True)
        ]


class Selection(NamedTuple):
    """Prior boxes of an image that are detections, best first."""

    rows: Tensor  # (N,) int64, among all prior boxes
    boxes: Tensor  # (N, 4) XYXY in fractions of the input, not clipped
    scores: Tensor  # (N,)
    classes: Tensor  # (N,) int64


class Selector:
    """Finds the detections of an image by Fast NMS (section 4.2), or by NMS as the original has it.

    With Fast NMS, a box whose best class is above the threshold competes in every class, also where
    its score is below; so the last of an image's detections may have low scores.

    Args:
        score_thresh: prior boxes need a best score above it; without Fast NMS, every score.
        nms_thresh: IoU with a better box of its class above which a box goes.
        top_k: boxes of a class that Fast NMS considers, the best ones.
        detections_per_image: that remain, the best of all classes.
        fast: boxes that are dropped drop others.
        cross_class: a box has its best class alone, and all compete with each other; `top_k` is
            then the only limit.
    """

    def __init__(
        self,
        *,
        score_thresh: float,
        nms_thresh: float,
        top_k: int,
        detections_per_image: int,
        fast: bool,
        cross_class: bool,
    ) -> None:
        self.score_thresh = score_thresh
        self.nms_thresh = nms_thresh
        self.top_k = top_k
        self.detections_per_image = detections_per_image
        self.fast = fast
        self.cross_class = cross_class

    def __call__(
        self, priors: Tensor, deltas: Tensor, scores: Tensor, size: tuple[int, int]
    ) -> Selection:
        """Select.

        Args:
            priors: (P, 4) centre x, centre y, width, height in fractions.
            deltas: (P, 4).
            scores: (P, K), without the background's.
            size: (height, width) of the network input, in pixels.
        """
        rows = (scores.amax(1) > self.score_thresh).nonzero()[:, 0]
        boxes = decode(deltas[rows], priors[rows])
        of_class = scores[rows].T  # (K, N)
        if not self.fast:
            kept, classes, best = self._greedy_nms(boxes, of_class, size)
        elif self.cross_class:
            kept, classes, best = cross_class_fast_nms(boxes, of_class, self.nms_thresh, self.top_k)
        else:
            kept, classes, best = fast_nms(
                boxes, of_class, self.nms_thresh, self.top_k, self.detections_per_image
            )
        return Selection(rows[kept], boxes[kept], best, classes)

    def _greedy_nms(
        self, boxes: Tensor, scores: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, classes and scores; boxes reach one pixel further, and go also at the threshold."""
        classes, rows = (scores > self.score_thresh).nonzero().unbind(1)
        best = scores[classes, rows]
        pixel = boxes.new_tensor((0, 0, 1 / size[1], 1 / size[0]))
        below = math.nextafter(self.nms_thresh, 0)
        kept = batched_nms((boxes + pixel)[rows], best, classes, below)
        kept = kept[: self.detections_per_image]
        return rows[kept], classes[kept], best[kept]


def resize_detections(found: Detections, height: int, width: int) -> Detections:
    """Detections in an image of `height` by `width` pixels.

    As in the original, boxes end at whole pixels, and those without a pixel are dropped.

    Args:
        found: in pixels of their `image_size`, with `pred_masks` (N, 1, h, w) probabilities; not
            changed.
        height: of the result, in pixels.
        width: of the result, in pixels.

    Returns:
        With `pred_masks` (N, height, width) bool.
    """
    boxes = found.pred_boxes.clone()
    boxes.scale(width / found.image_size[1], height / found.image_size[0])
    boxes.clip((height, width))
    fields = found.get_fields() | {"pred_boxes": Boxes(boxes.tensor.trunc())}
    result = Detections((height, width), **fields)
    result = result[result.pred_boxes.nonempty()]
    masks = [
        F.interpolate(some, (height, width), mode="bilinear")[:, 0] > 0.5
        for some in result.pred_masks.split(MASKS_AT_ONCE)
    ]
    result.pred_masks = torch.cat(masks)
    return result


def _without_padding(
    masks: Tensor, padded_size: tuple[int, int], image_size: tuple[int, int]
) -> Tensor:
    """(N, h, w) masks of a padded image to those of the image, at any resolution."""
    if padded_size == image_size:
        return masks
    resized = F.interpolate(masks[:, None], padded_size, mode="bilinear")[:, 0]
    return resized[:, : image_size[0], : image_size[1]]


def _batch_norms(module: nn.Module) -> list[nn.Module]:
    return [one for one in module.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
