"""FCIS (Li et al. 2017, arXiv:1611.07709): fully convolutional instance-aware segmentation.

Two score maps for each class and part of an object say whether a pixel is that part's inside or
outside. Their larger one tells what a region holds, the two against each other where; so regions
are classified and segmented without weights of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from segdet.config.ranges import PositiveInt
from segdet.errors import ConfigError
from segdet.layers import Losses
from segdet.modeling.backbones import Backbone
from segdet.modeling.backbones.backbone import pyramid
from segdet.modeling.box_coder import Box2BoxTransform
from segdet.modeling.box_head import BoxHeadConfig
from segdet.modeling.fcis_head import FCISHead, FCISHeadConfig, FCISLoss, RegionTargets, ScoreMaps
from segdet.modeling.fcis_rpn import FCISRPNConfig
from segdet.modeling.mask_voting import MaskVoting, ScoredRegions
from segdet.modeling.meta_arch.proposal_network import ProposalNetworkConfig
from segdet.modeling.postprocessing import requested_size
from segdet.modeling.roi_heads import ProposalSampler, ROIHeadsConfig
from segdet.modeling.rpn import RPN
from segdet.modeling.system import Needs, System
from segdet.structures import Detections, ImageList, Proposals, Targets, clip_boxes

EVERY = 1 << 30  # proposals of an image: as many as there are


@dataclass(frozen=True, kw_only=True)
class FCISConfig(ProposalNetworkConfig):
    """MODEL, as FCIS reads it."""

    needs: ClassVar[Needs] = Needs(labels={"annotations": "MODEL.ROI_HEADS.NUM_CLASSES"})

    mask_on: bool = False  # which the data's side asks for masks by
    rpn: FCISRPNConfig = field(default_factory=FCISRPNConfig)
    fcis: FCISHeadConfig = field(default_factory=FCISHeadConfig)
    roi_heads: ROIHeadsConfig = field(default_factory=ROIHeadsConfig)
    roi_box_head: BoxHeadConfig = field(default_factory=BoxHeadConfig)  # BBOX_REG_WEIGHTS alone
    detections_per_image: PositiveInt = field(
        default=100, metadata={"key": "TEST.DETECTIONS_PER_IMAGE"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (name := self.proposal_generator.name) != "RPN":
            raise ConfigError(f"FCIS needs PROPOSAL_GENERATOR.NAME RPN, is {name}")
        if len(self.roi_heads.in_features) != 1:
            raise ConfigError(
                f"FCIS works on one map; ROI_HEADS.IN_FEATURES is {self.roi_heads.in_features}"
            )

    def build(self) -> FCIS:
        """The model with random weights."""
        if not self.mask_on:
            raise ConfigError("FCIS needs MASK_ON: True")
        backbone = self.build_backbone()
        heads = self.roi_heads
        (stride,), channels = pyramid(backbone, heads.in_features, "ROI_HEADS.IN_FEATURES")
        generator = self.build_proposal_generator(backbone)
        assert isinstance(generator, RPN), "as checked above"
        box_transform = Box2BoxTransform(self.roi_box_head.bbox_reg_weights)
        return FCIS(
            backbone,
            proposal_generator=generator,
            in_feature=heads.in_features[0],
            head=self.fcis.build(channels, heads.num_classes, stride),
            sampler=self.build_sampler(),
            loss=self.fcis.build_loss(box_transform, heads.batch_size_per_image),
            ohem=self.fcis.ohem,
            voting=self.build_voting(),
            pixel_mean=self.pixel_mean,
            pixel_std=self.pixel_std,
        )

    def build_sampler(self) -> ProposalSampler:
        """Of training proposals: all of them where the hardest are to be found among them."""
        if not self.fcis.ohem:
            return self.roi_heads.build_sampler()
        every = replace(self.roi_heads, batch_size_per_image=EVERY, positive_fraction=1.0)
        return every.build_sampler()

    def build_voting(self) -> MaskVoting:
        """What makes detections of regions."""
        return MaskVoting(
            score_thresh=self.roi_heads.score_thresh_test,
            nms_thresh=self.roi_heads.nms_thresh_test,
            vote_thresh=self.fcis.vote_thresh,
            mask_thresh=self.fcis.mask_thresh,
            detections_per_image=self.detections_per_image,
            min_size=self.proposal_generator.min_size,
        )


class FCIS(System):
    """Proposals, scored and segmented by one set of maps for the image.

    Args:
        backbone: images to feature maps.
        proposal_generator: feature maps to boxes that may hold an object.
        in_feature: name of the map that the head works on.
        head: that map to score maps, and these to the scores of regions.
        sampler: chooses training proposals.
        loss: of the regions.
        ohem: train on the hardest of the sampled proposals, not on all.
        voting: makes detections of scored regions.
        pixels: `pixel_mean`, subtracted from the images, and `pixel_std`, divides them after that;
            one value a channel each.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        proposal_generator: RPN,
        in_feature: str,
        head: FCISHead,
        sampler: ProposalSampler,
        loss: FCISLoss,
        ohem: bool,
        voting: MaskVoting,
        **pixels: Sequence[float],
    ) -> None:
        super().__init__(backbone, **pixels)
        self.proposal_generator = proposal_generator
        self.in_feature = in_feature
        self.head = head
        self.sampler = sampler
        self.loss = loss
        self.ohem = ohem
        self.voting = voting

    def losses(self, images: ImageList, targets: list[Targets]) -> Losses:
        """`loss_rpn_cls`, `loss_rpn_loc`, `loss_cls`, `loss_mask` and `loss_box_reg`."""
        features = self.backbone(images.tensor)  # name -> (B, C, H / stride, W / stride)
        proposals, rpn_losses = self.proposal_generator.losses(images, features, targets)
        maps = self.head(features[self.in_feature])
        return rpn_losses | self.region_losses(maps, proposals, targets)

    def region_losses(
        self, maps: ScoreMaps, proposals: Sequence[Proposals], targets: Sequence[Targets]
    ) -> Losses:
        """`loss_cls`, `loss_mask` and `loss_box_reg`; their gradients reach `maps`."""
        sampled, metrics = self.sampler(proposals, targets)
        num_classes = self.sampler.num_classes
        wanted = [
            self.loss.targets(p, t, num_classes) for p, t in zip(sampled, targets, strict=True)
        ]
        if self.ohem:
            wanted = [self._hardest(maps, i, one) for i, one in enumerate(wanted)]
        joined = RegionTargets(*map(torch.cat, zip(*wanted, strict=True)))
        scores = self.head.regions(maps, [one.boxes for one in wanted], joined.classes)
        return Losses({}, metrics) | self.loss(scores, joined, len(targets))

    @torch.no_grad()
    def _hardest(self, maps: ScoreMaps, image: int, targets: RegionTargets) -> RegionTargets:
        """A pass without gradients over all regions, so that they cost memory only where kept."""
        mine = ScoreMaps(*(one[image : image + 1] for one in maps))
        scores = self.head.regions(mine, [targets.boxes], targets.classes)
        return targets.take(self.loss.hardest(scores, targets))

    def predict(self, images: ImageList) -> list[ScoredRegions]:
        """Per image, its proposals and again the same with refined boxes, all scored."""
        features = self.backbone(images.tensor)
        proposals = self.proposal_generator.predict(images, features)
        maps = self.head(features[self.in_feature])
        return self.score(maps, proposals)

    def score(self, maps: ScoreMaps, proposals: Sequence[Proposals]) -> list[ScoredRegions]:
        """Both passes over the score maps; the boxes of the second are not refined again."""
        boxes = [p.proposal_boxes.tensor for p in proposals]
        counts = [len(b) for b in boxes]
        first = self.head.regions(maps, boxes)
        moved = self.loss.box_transform.apply_deltas(first.deltas, torch.cat(boxes))
        refined = [
            clip_boxes(b, p.image_size) for b, p in zip(moved.split(counts), proposals, strict=True)
        ]
        second = self.head.regions(maps, refined)
        passes = [
            (boxes, first.class_logits.split(counts), first.mask_logits.split(counts)),
            (refined, second.class_logits.split(counts), second.mask_logits.split(counts)),
        ]
        found = []
        for i, p in enumerate(proposals):
            both, logits, masks = (
                torch.cat((one[i], two[i])) for one, two in zip(*passes, strict=True)
            )
            found.append(
                ScoredRegions(
                    image_size=p.image_size,
                    boxes=both,
                    scores=logits.softmax(dim=1)[:, :-1],
                    masks=masks.sigmoid(),
                )
            )
        return found

    def postprocess(
        self, found: Sequence[ScoredRegions], batched_inputs: list[dict]
    ) -> list[dict[str, Any]]:
        """Detections at the size that each input asks for: the vote is taken there."""
        results = []
        for regions, x in zip(found, batched_inputs, strict=True):
            detections: Detections = self.voting(regions, requested_size(x, regions.image_size))
            results.append({self.result: detections})
        return results
