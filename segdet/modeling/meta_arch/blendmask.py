"""BlendMask (Chen et al. 2020, arXiv:2001.00309): FCOS whose masks are blends of shared bases.

A few maps, the bases, are made for the whole image. FCOS predicts an attention map beside each box;
where boxes are cut out of the bases, the crops are summed up, weighted by it. With
MODEL.PANOPTIC_FPN.COMBINE.ENABLED, as the panoptic files have it, a semantic head completes the
instances to a panoptic map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from segdet.errors import ConfigError, DataError
from segdet.layers import Losses
from segdet.modeling.backbones import Backbone
from segdet.modeling.backbones.backbone import pyramid
from segdet.modeling.basis_module import BasisModuleConfig, ProtoNet, thing_labels
from segdet.modeling.blender import Blender, BlenderConfig, blended_mask_loss
from segdet.modeling.fcos import FCOS, FCOSConfig, TopFeatures
from segdet.modeling.fcos_head import TopLayer
from segdet.modeling.fcos_losses import at_least
from segdet.modeling.mask_head import mask_metrics
from segdet.modeling.meta_arch.panoptic_fpn import (
    Panoptic,
    PanopticConfig,
    PanopticParts,
    panoptic_results,
)
from segdet.modeling.proposals import ProposalGeneratorConfig
from segdet.modeling.sem_seg_head import SemSegHead, SemSegHeadConfig
from segdet.modeling.system import Needs, System, SystemConfig
from segdet.structures import Detections, ImageList, Targets


@dataclass(frozen=True, kw_only=True)
class BlendMaskConfig(SystemConfig):
    """MODEL, as BlendMask reads it."""

    needs: ClassVar[Needs] = Needs(
        labels={"annotations": "MODEL.FCOS.NUM_CLASSES"}, centred_crops=True
    )

    mask_on: bool = False
    proposal_generator: ProposalGeneratorConfig = field(default_factory=ProposalGeneratorConfig)
    fcos: FCOSConfig = field(default_factory=FCOSConfig)
    basis_module: BasisModuleConfig = field(default_factory=BasisModuleConfig)
    blendmask: BlenderConfig = field(default_factory=BlenderConfig)

    def build(self) -> BlendMask:
        """The model with random weights."""
        return BlendMask(**self.build_parts(self.build_backbone()))

    def build_parts(self, backbone: Backbone) -> dict[str, Any]:
        """The arguments of `BlendMask`."""
        self._check()
        _, channels = pyramid(backbone, self.fcos.in_features, "FCOS.IN_FEATURES")
        basis_module = self.basis_module.build(backbone.output_shape())
        return {
            "backbone": backbone,
            "proposal_generator": self.fcos.build(backbone),
            "basis_module": basis_module,
            "blender": self.blendmask.build(
                basis_module.num_bases, self.basis_module.common_stride // 2
            ),
            "tower_channels": channels,
            "mask_loss_weight": self.blendmask.instance_loss_weight,
            "pixel_mean": self.pixel_mean,
            "pixel_std": self.pixel_std,
        }

    def _check(self) -> None:
        if self.proposal_generator.name != "FCOS" or not self.mask_on:
            raise ConfigError("BlendMask needs PROPOSAL_GENERATOR.NAME FCOS and MASK_ON: True")
        if self.fcos.box_quality != "ctrness":
            raise ConfigError(
                f"FCOS.BOX_QUALITY must be ctrness, is {self.fcos.box_quality!r}: centerness "
                "weighs the mask loss"
            )
        if self.basis_module.loss_on and self.basis_module.num_classes < self.fcos.num_classes:
            raise ConfigError(
                f"BASIS_MODULE.NUM_CLASSES is {self.basis_module.num_classes}, "
                f"FCOS.NUM_CLASSES is {self.fcos.num_classes}; set both to the number of classes"
            )


@dataclass(frozen=True, kw_only=True)
class PanopticBlendMaskConfig(BlendMaskConfig):
    """MODEL, as panoptic BlendMask reads it."""

    needs: ClassVar[Needs] = Needs(
        labels={
            "annotations": "MODEL.FCOS.NUM_CLASSES",
            "sem_seg": "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
        },
        centred_crops=True,
    )

    sem_seg_head: SemSegHeadConfig = field(default_factory=SemSegHeadConfig)
    panoptic_fpn: PanopticConfig = field(default_factory=PanopticConfig)

    def build(self) -> PanopticBlendMask:
        """The model with random weights."""
        backbone = self.build_backbone()
        return PanopticBlendMask(
            panoptic_module=self.sem_seg_head.build(backbone.output_shape()),
            combine=self.panoptic_fpn.combine.build(),
            **self.build_parts(backbone),
        )


class BlendMaskTargets(NamedTuple):
    """The ground truth of a batch."""

    instances: list[Targets]
    basis_sem: Tensor | None  # (B, H, W) int64 of the padded images, 0 or class + 1
    sem_seg: Tensor | None = None  # (B, H, W) int64 likewise, for the panoptic one


class BlendMask(System):
    """Boxes and attention from FCOS, bases from the same maps, masks from both.

    Args:
        backbone: images to feature maps.
        proposal_generator: feature maps to boxes, and the box tower that the attention is made of.
        basis_module: feature maps to the bases.
        blender: bases, boxes and attention to masks.
        tower_channels: of the box tower.
        mask_loss_weight: factor of the mask loss.
        pixel_mean: one value a channel, subtracted from the images.
        pixel_std: one value a channel, divides them after that.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        proposal_generator: FCOS,
        basis_module: ProtoNet,
        blender: Blender,
        tower_channels: int,
        mask_loss_weight: float = 1.0,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__(backbone, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.proposal_generator = proposal_generator
        self.basis_module = basis_module
        self.blender = blender
        self.mask_loss_weight = mask_loss_weight
        self.top_layer = TopLayer(tower_channels, blender.attention_channels)

    def read_targets(self, batched_inputs: list[dict]) -> BlendMaskTargets:
        """`instances` of the batch, and its `basis_sem`, drawn from them where there is none."""
        instances = self.read_instances(batched_inputs)
        if self.basis_module.seg_head is None:
            return BlendMaskTargets(instances, None)
        maps = []
        for i, (x, targets) in enumerate(zip(batched_inputs, instances, strict=True)):
            labels = x["basis_sem"] if "basis_sem" in x else thing_labels(targets)
            try:
                self.basis_module.check_labels(labels, x["image"].shape[-2:])
            except (ValueError, DataError) as error:
                name = x.get("file_name", x.get("image_id", i))
                raise type(error)(f"image {name}: {error}") from None
            maps.append(self._moved(labels, torch.int64))
        return BlendMaskTargets(instances, self._pad(maps).tensor)

    def losses(self, images: ImageList, targets: BlendMaskTargets) -> Losses:
        """Those of FCOS, `loss_mask`, and `loss_basis_sem` of the semantic head."""
        return self.losses_of_maps(self.backbone(images.tensor), targets)

    def losses_of_maps(self, features: dict[str, Tensor], targets: BlendMaskTargets) -> Losses:
        """As `losses`, of the backbone's maps."""
        found = self.proposal_generator.head_outputs(features)
        box_losses, objects = self.proposal_generator.compare(
            found, targets.instances, self.top_layer
        )
        assert objects is not None, "there is a top layer"
        basis_losses = self.basis_module.losses(features, targets.basis_sem)
        bases = self.basis_module(features)
        return box_losses | basis_losses | self.mask_loss(bases, objects, targets.instances)

    def mask_loss(self, bases: Tensor, objects: TopFeatures, targets: Sequence[Targets]) -> Losses:
        """`loss_mask`: each location that has an object predicts its mask, in the object's box.

        Args:
            bases: (B, K, H, W).
            objects: attention and object of these locations.
            targets: per image, with `gt_masks`.
        """
        boxes = [t.gt_boxes.tensor for t in targets]
        side = self.blender.mask_side
        masks = [t.gt_masks.crop_and_resize(b, side) for t, b in zip(targets, boxes, strict=True)]
        gt_masks = torch.cat(masks).to(bases.device)[objects.gt_index]  # (P, R, R)
        # Objects repeat: the gradient of x[index] adds them up in an order that threads race for.
        pooled = self.blender.pool(bases, boxes).index_select(0, objects.gt_index)  # (P, K, R, R)
        logits = self.blender(pooled, objects.features)
        total = objects.centerness.sum()
        loss = blended_mask_loss(logits, gt_masks, objects.centerness, at_least(total))
        metrics = mask_metrics(logits.detach(), gt_masks) if len(logits) else {}
        return Losses({"loss_mask": loss * self.mask_loss_weight}, metrics, {"loss_mask": total})

    def predict(self, images: ImageList) -> Sequence[Detections | PanopticParts]:
        """Per image, the best detections; masks are (N, 1, R, R) probabilities."""
        return self.predict_of_maps(images, self.backbone(images.tensor))

    def predict_of_maps(self, images: ImageList, features: dict[str, Tensor]) -> list[Detections]:
        """As `predict`, with the backbone's maps."""
        detections = self.proposal_generator.predict(images, features, self.top_layer)
        bases = self.basis_module(features)
        pooled = self.blender.pool(bases, [d.pred_boxes.tensor for d in detections])
        attention = torch.cat([d.top_feats for d in detections])
        masks = self.blender(pooled, attention).sigmoid()[:, None]
        for d, own in zip(detections, masks.split([len(d) for d in detections]), strict=True):
            d.remove("top_feats")
            d.pred_masks = own
        return detections


class PanopticBlendMask(BlendMask):
    """BlendMask and a semantic head on the same feature maps, and a map of both.

    Args:
        panoptic_module: feature maps to logits of every pixel.
        combine: as in `PanopticFPN`.
        parts: the arguments of `BlendMask`.
    """

    def __init__(
        self,
        *,
        panoptic_module: SemSegHead,
        combine: Callable[[Detections, Tensor], Panoptic] | None,
        **parts: Any,
    ) -> None:
        super().__init__(**parts)
        self.panoptic_module = panoptic_module
        self.combine = combine

    def read_targets(self, batched_inputs: list[dict]) -> BlendMaskTargets:
        """As of BlendMask, with `sem_seg` of the batch."""
        sem_seg = self.read_sem_seg(batched_inputs, self.panoptic_module)
        return super().read_targets(batched_inputs)._replace(sem_seg=sem_seg)

    def losses(self, images: ImageList, targets: BlendMaskTargets) -> Losses:
        """Those of BlendMask and of the semantic head."""
        features = self.backbone(images.tensor)
        losses = self.panoptic_module(features, targets.sem_seg)
        return losses | self.losses_of_maps(features, targets)

    def predict(self, images: ImageList) -> list[PanopticParts]:
        """Per image, detections with (N, 1, R, R) mask probabilities, and semantic logits."""
        features = self.backbone(images.tensor)
        sem_seg = ImageList(self.panoptic_module.predict(features), images.image_sizes)
        detections = self.predict_of_maps(images, features)
        return [PanopticParts(one, sem_seg[i]) for i, one in enumerate(detections)]

    def postprocess(
        self, found: Sequence[PanopticParts], batched_inputs: list[dict]
    ) -> list[dict[str, Any]]:
        """`sem_seg`, `instances` and, if they are combined, `panoptic_seg`, at the asked size."""
        return panoptic_results(found, batched_inputs, self.combine)
