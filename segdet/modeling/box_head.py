"""Fast R-CNN box head: classify each proposal and refine its box (arXiv:1504.08083)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.config.ranges import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from segdet.errors import ConfigError
from segdet.layers import (
    LinearReLU,
    Losses,
    NormName,
    c2_xavier_fill,
    conv3x3_relu,
    cross_entropy,
    normal_fill,
)
from segdet.modeling.box_coder import Box2BoxTransform, BoxRegressionLoss, check_box_loss
from segdet.modeling.box_kind import UPRIGHT, BoxKind
from segdet.modeling.federated import FederatedClasses
from segdet.modeling.roi_pooler import PoolerConfig
from segdet.structures import Detections, Proposals


@dataclass(frozen=True, kw_only=True)
class BoxHeadConfig(PoolerConfig):
    """MODEL.ROI_BOX_HEAD; defaults are detectron2's."""

    name: str = ""
    bbox_reg_loss_type: str = "smooth_l1"
    bbox_reg_loss_weight: NonNegativeFloat = 1.0
    bbox_reg_weights: tuple[PositiveFloat, ...] = (10.0, 10.0, 5.0, 5.0)
    smooth_l1_beta: NonNegativeFloat = 0.0
    num_fc: NonNegativeInt = 0
    fc_dim: PositiveInt = 1024
    num_conv: NonNegativeInt = 0
    conv_dim: PositiveInt = 256
    norm: NormName = ""
    cls_agnostic_bbox_reg: bool = False
    train_on_pred_boxes: bool = False
    use_fed_loss: bool = False
    use_sigmoid_ce: bool = False
    fed_loss_freq_weight_power: NonNegativeFloat = 0.5
    fed_loss_num_classes: PositiveInt = 50

    def __post_init__(self) -> None:
        if self.use_fed_loss and not self.use_sigmoid_ce:
            raise ConfigError("USE_FED_LOSS leaves out single classes: set USE_SIGMOID_CE to True")
        check_box_loss(self.bbox_reg_loss_type)

    @property
    def build(self) -> Callable[[int], FastRCNNConvFCHead]:
        """The head's constructor with these settings; takes the channels of the pooled maps."""
        if self.name not in BOX_HEADS:
            known = ", ".join(BOX_HEADS)
            raise ConfigError(f"ROI_BOX_HEAD.NAME {self.name!r} is unknown; known: {known}")
        return BOX_HEADS[self.name](self)

    def build_predictor(
        self,
        in_features: int,
        *,
        num_classes: int,
        score_thresh: float,
        nms_thresh: float,
        detections_per_image: int,
        box_transform: Box2BoxTransform | None = None,
        kind: BoxKind = UPRIGHT,
    ) -> FastRCNNOutputLayers:
        """The output layers for vectors of length `in_features`.

        `box_transform` stands in for the one of `bbox_reg_weights`, as a cascade's stages need.
        """
        return FastRCNNOutputLayers(
            in_features,
            num_classes=num_classes,
            cls_agnostic_bbox_reg=self.cls_agnostic_bbox_reg,
            use_sigmoid_ce=self.use_sigmoid_ce,
            federated=FederatedClasses(self.fed_loss_num_classes) if self.use_fed_loss else None,
            box_loss=BoxRegressionLoss(
                box_transform or kind.transform(self.bbox_reg_weights),
                loss_type=self.bbox_reg_loss_type,
                smooth_l1_beta=self.smooth_l1_beta,
                weight=self.bbox_reg_loss_weight,
            ),
            score_thresh=score_thresh,
            nms_thresh=nms_thresh,
            detections_per_image=detections_per_image,
            kind=kind,
        )


class FastRCNNConvFCHead(nn.Module):
    """Convolutions, then fully connected layers, on pooled features.

    Args:
        in_channels: of the pooled features.
        resolution: cells per side of the pooled features.
        conv_dims: output channels of each 3x3 convolution.
        fc_dims: output size of each fully connected layer.
        norm: of the convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        resolution: int,
        conv_dims: Sequence[int] = (),
        fc_dims: Sequence[int] = (),
        norm: str = "",
    ) -> None:
        super().__init__()
        if not fc_dims:
            raise ConfigError("ROI_BOX_HEAD needs a fully connected layer: NUM_FC is 0")
        self.convs: list[nn.Module] = []
        channels = in_channels
        for k, dim in enumerate(conv_dims, start=1):
            conv = conv3x3_relu(channels, dim, norm)
            self.add_module(f"conv{k}", conv)
            self.convs.append(conv)
            channels = dim
        self.fcs: list[LinearReLU] = []
        size = channels * resolution**2
        for k, dim in enumerate(fc_dims, start=1):
            fc = LinearReLU(size, dim)
            c2_xavier_fill(fc)
            self.add_module(f"fc{k}", fc)
            self.fcs.append(fc)
            size = dim
        self.out_features = size

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, C, resolution, resolution) -> (R, out_features)."""
        x = pooled
        for layer in (*self.convs, *self.fcs):
            x = layer(x)
        return x


def _conv_fc_head(section: BoxHeadConfig) -> Callable[[int], FastRCNNConvFCHead]:
    return functools.partial(
        FastRCNNConvFCHead,
        resolution=section.pooler_resolution,
        conv_dims=[section.conv_dim] * section.num_conv,
        fc_dims=[section.fc_dim] * section.num_fc,
        norm=section.norm,
    )


# MODEL.ROI_BOX_HEAD.NAME -> section to constructor, which takes the channels of the pooled maps
BOX_HEADS: dict[str, Callable[[BoxHeadConfig], Callable[[int], FastRCNNConvFCHead]]] = {
    "FastRCNNConvFCHead": _conv_fc_head
}


class FastRCNNOutputLayers(nn.Module):
    """Class scores and box deltas, their losses, and the final detections.

    Args:
        in_features: length of the input vectors.
        num_classes: foreground classes K; the background is column K.
        box_loss: of the foreground's deltas; its transform decodes them too.
        cls_agnostic_bbox_reg: one box for all classes instead of one each.
        use_sigmoid_ce: classes are scored one by one instead of by softmax.
        federated: chooses the classes that count in the loss; None: all. Needs `use_sigmoid_ce`.
        score_thresh: detections need a score above it.
        nms_thresh: IoU above which the lower of two detections of one class goes.
        detections_per_image: the best this many are kept.
        kind: of the boxes.
    """

    def __init__(
        self,
        in_features: int,
        *,
        num_classes: int,
        box_loss: BoxRegressionLoss,
        cls_agnostic_bbox_reg: bool = False,
        use_sigmoid_ce: bool = False,
        federated: FederatedClasses | None = None,
        score_thresh: float,
        nms_thresh: float,
        detections_per_image: int,
        kind: BoxKind = UPRIGHT,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ConfigError(f"ROI_HEADS.NUM_CLASSES must be >= 1, is {num_classes}")
        self.num_classes = num_classes
        self.box_loss = box_loss
        self.box_transform = box_loss.box_transform
        self.cls_agnostic_bbox_reg = cls_agnostic_bbox_reg
        self.use_sigmoid_ce = use_sigmoid_ce
        self.federated = federated
        self.score_thresh = score_thresh
        self.nms_thresh = nms_thresh
        self.detections_per_image = detections_per_image
        self.kind = kind
        num_boxes = 1 if cls_agnostic_bbox_reg else num_classes
        self.cls_score = nn.Linear(in_features, num_classes + 1)
        self.bbox_pred = nn.Linear(in_features, num_boxes * self.box_transform.box_dim)
        normal_fill(self.cls_score, std=0.01)
        normal_fill(self.bbox_pred, std=0.001)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(R, in_features) -> logits (R, K + 1) and deltas (R, K * 4), or (R, 4) if agnostic."""
        return self.cls_score(x), self.bbox_pred(x)

    def losses(self, logits: Tensor, deltas: Tensor, proposals: Sequence[Proposals]) -> Losses:
        """`loss_cls` and `loss_box_reg` of the sampled proposals.

        Args:
            logits: (R, K + 1); deltas: (R, K * 4) or (R, 4); rows in the order of `proposals`.
            proposals: with `gt_classes` in [0, K], and `gt_boxes` where the image has objects.
        """
        gt_classes = torch.cat([p.gt_classes for p in proposals])
        boxes = torch.cat([p.proposal_boxes.tensor for p in proposals])
        # An image without objects has no gt_boxes; its rows are background and never read.
        gt_boxes = torch.cat(
            [(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals]
        )
        fg = torch.nonzero((gt_classes >= 0) & (gt_classes < self.num_classes)).squeeze(1)
        own = self._deltas_of_class(deltas[fg], gt_classes[fg])
        # All sampled proposals, foreground or not, share the normaliser (detectron2).
        box_loss = self.box_loss(own, boxes[fg], gt_boxes[fg]) / max(len(gt_classes), 1)
        return Losses(
            {"loss_cls": self._cls_loss(logits, gt_classes), "loss_box_reg": box_loss},
            classification_metrics(logits.detach(), gt_classes),
            dict.fromkeys(("loss_cls", "loss_box_reg"), len(gt_classes)),
        )

    def _cls_loss(self, logits: Tensor, gt_classes: Tensor) -> Tensor:
        if not self.use_sigmoid_ce:
            return cross_entropy(logits, gt_classes)
        one_hot = F.one_hot(gt_classes, self.num_classes + 1)[:, :-1].to(logits.dtype)
        counts = self.federated and self.federated.draw(gt_classes, self.num_classes)
        loss = F.binary_cross_entropy_with_logits(
            logits[:, :-1], one_hot, weight=counts, reduction="sum"
        )
        return loss / max(len(gt_classes), 1)

    def _deltas_of_class(self, deltas: Tensor, classes: Tensor) -> Tensor:
        """(N, 4): the deltas of each row's class; the only ones when class-agnostic."""
        if self.cls_agnostic_bbox_reg:
            return deltas
        rows = torch.arange(len(deltas), device=deltas.device)
        return deltas.unflatten(1, (-1, self.box_transform.box_dim))[rows, classes]

    @torch.no_grad()
    def boxes_of_gt_class(self, deltas: Tensor, proposals: Sequence[Proposals]) -> list[Tensor]:
        """Per image, each proposal moved by its ground truth class's deltas (not clipped)."""
        gt_classes = torch.cat([p.gt_classes for p in proposals])
        boxes = torch.cat([p.proposal_boxes.tensor for p in proposals])
        own = self._deltas_of_class(deltas, gt_classes.clamp(0, self.num_classes - 1))
        moved = self.box_transform.apply_deltas(own, boxes)
        return list(moved.split([len(p) for p in proposals]))

    def predict(
        self, logits: Tensor, deltas: Tensor, proposals: Sequence[Proposals]
    ) -> list[Detections]:
        """Per image, the detections above the score threshold after per-class NMS, best first."""
        boxes = self.predict_boxes(deltas, proposals)
        scores = self.predict_scores(logits).split([len(p) for p in proposals])
        return [
            self.select(image_boxes, image_scores, p.image_size)
            for image_boxes, image_scores, p in zip(boxes, scores, proposals, strict=True)
        ]

    def predict_scores(self, logits: Tensor) -> Tensor:
        """(R, K + 1) probabilities."""
        return logits.sigmoid() if self.use_sigmoid_ce else logits.softmax(dim=-1)

    def predict_boxes(self, deltas: Tensor, proposals: Sequence[Proposals]) -> list[Tensor]:
        """Per image, (R_i, K * 4) boxes, or (R_i, 4) if agnostic; not clipped."""
        boxes = torch.cat([p.proposal_boxes.tensor for p in proposals])
        moved = self.box_transform.apply_deltas(deltas, boxes)
        return list(moved.split([len(p) for p in proposals]))

    def select(self, boxes: Tensor, scores: Tensor, image_size: tuple[int, int]) -> Detections:
        """The detections of one image.

        Args:
            boxes: (R, K * 4), or (R, 4) for all classes.
            scores: (R, K + 1); the last column, background, is not looked at.
            image_size: (height, width) to clip to.
        """
        finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores).all(dim=1)
        boxes, scores = boxes[finite], scores[finite, : self.num_classes]
        box_dim = self.box_transform.box_dim
        every = self.kind.structure(boxes.reshape(-1, box_dim))
        every.clip(image_size)
        boxes = every.tensor.reshape(len(scores), boxes.shape[1] // box_dim, box_dim)
        rows, classes = torch.nonzero(scores > self.score_thresh, as_tuple=True)
        scores = scores[rows, classes].to(boxes.dtype)
        boxes = boxes[rows, classes if boxes.shape[1] > 1 else torch.zeros_like(classes)]
        keep = self.kind.batched_nms(boxes, scores, classes, self.nms_thresh)
        keep = keep[: self.detections_per_image]
        return Detections(
            image_size,
            pred_boxes=self.kind.structure(boxes[keep]),
            scores=scores[keep],
            pred_classes=classes[keep],
        )


@torch.no_grad()
def classification_metrics(logits: Tensor, gt_classes: Tensor) -> dict[str, Tensor]:
    """Accuracy over all sampled proposals and over foreground ones; `logits` (R, K + 1)."""
    if len(gt_classes) == 0:
        return {}
    background = logits.shape[1] - 1
    pred = logits.argmax(dim=1)
    fg = gt_classes < background
    metrics = {"fast_rcnn/cls_accuracy": (pred == gt_classes).float().mean()}
    if bool(fg.any()):
        metrics["fast_rcnn/fg_cls_accuracy"] = (pred == gt_classes)[fg].float().mean()
        metrics["fast_rcnn/false_negative"] = (pred == background)[fg].float().mean()
    return metrics
