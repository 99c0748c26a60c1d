"""FCOS (Tian et al. 2019, arXiv:1904.01355, and 2006.09214) as a detector of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from segdet.errors import ConfigError
from segdet.layers import Losses
from segdet.modeling.backbones import Backbone
from segdet.modeling.fcos import FCOS, FCOSConfig
from segdet.modeling.proposals import ProposalGeneratorConfig
from segdet.modeling.system import Needs, System, SystemConfig
from segdet.structures import Detections, ImageList, Targets


@dataclass(frozen=True, kw_only=True)
class OneStageDetectorConfig(SystemConfig):
    """MODEL, as AdelaiDet's OneStageDetector reads it."""

    needs: ClassVar[Needs] = Needs(
        labels={"annotations": "MODEL.FCOS.NUM_CLASSES"}, centred_crops=True
    )

    proposal_generator: ProposalGeneratorConfig = field(default_factory=ProposalGeneratorConfig)
    fcos: FCOSConfig = field(default_factory=FCOSConfig)

    def build(self) -> System:
        """The model with random weights."""
        if self.proposal_generator.name != "FCOS":
            raise ConfigError(
                "META_ARCHITECTURE OneStageDetector needs PROPOSAL_GENERATOR.NAME FCOS, "
                f"which is {self.proposal_generator.name!r}"
            )
        backbone = self.build_backbone()
        return OneStageDetector(
            backbone,
            proposal_generator=self.fcos.build(backbone),
            pixel_mean=self.pixel_mean,
            pixel_std=self.pixel_std,
        )


class OneStageDetector(System):
    """FCOS on the maps of a backbone.

    Args:
        backbone: images to feature maps.
        proposal_generator: feature maps to detections.
        pixel_mean: one value a channel, subtracted from the images.
        pixel_std: one value a channel, divides them after that.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        proposal_generator: FCOS,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__(backbone, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.proposal_generator = proposal_generator

    def losses(self, images: ImageList, targets: list[Targets]) -> Losses:
        """`loss_fcos_cls`, `loss_fcos_loc` and `loss_fcos_ctr` or `loss_fcos_iou`."""
        found = self.proposal_generator.head_outputs(self.backbone(images.tensor))
        return self.proposal_generator.compare(found, targets)[0]

    def predict(self, images: ImageList) -> list[Detections]:
        """Per image, the best detections."""
        return self.proposal_generator.predict(images, self.backbone(images.tensor))
