"""A region proposal network alone (Faster R-CNN, arXiv:1506.01497, section 3.1)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from segdet.errors import ConfigError
from segdet.layers import Losses
from segdet.modeling.anchors import AnchorGeneratorConfig
from segdet.modeling.backbones import Backbone
from segdet.modeling.backbones.backbone import pyramid
from segdet.modeling.box_kind import ROTATED, UPRIGHT, BoxKind
from segdet.modeling.fcos import FCOS, FCOSConfig
from segdet.modeling.proposals import (
    PrecomputedProposals,
    ProposalGenerator,
    ProposalGeneratorConfig,
)
from segdet.modeling.rpn import RPN, RPNConfig
from segdet.modeling.system import Needs, System, SystemConfig
from segdet.structures import ImageList, Proposals, Targets


@dataclass(frozen=True, kw_only=True)
class ProposalNetworkConfig(SystemConfig):
    """MODEL, as a proposal network reads it."""

    needs: ClassVar[Needs] = Needs(labels={"annotations": None})

    proposal_generator: ProposalGeneratorConfig = field(default_factory=ProposalGeneratorConfig)
    anchor_generator: AnchorGeneratorConfig = field(default_factory=AnchorGeneratorConfig)
    rpn: RPNConfig = field(default_factory=RPNConfig)
    fcos: FCOSConfig = field(default_factory=FCOSConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (name := self.proposal_generator.name) not in PROPOSAL_GENERATORS:
            known = ", ".join(PROPOSAL_GENERATORS)
            raise ConfigError(f"PROPOSAL_GENERATOR.NAME {name!r} is unknown; known: {known}")

    def build(self) -> System:
        """The model with random weights."""
        backbone = self.build_backbone()
        generator = self.build_proposal_generator(backbone)
        if isinstance(generator, PrecomputedProposals):
            raise ConfigError(
                "PROPOSAL_GENERATOR.NAME PrecomputedProposals leaves a ProposalNetwork no work"
            )
        if isinstance(generator, FCOS):
            raise ConfigError(
                "PROPOSAL_GENERATOR.NAME FCOS finds detections, which a ProposalNetwork does not "
                "return; use META_ARCHITECTURE OneStageDetector"
            )
        return ProposalNetwork(
            backbone,
            proposal_generator=generator,
            pixel_mean=self.pixel_mean,
            pixel_std=self.pixel_std,
        )

    @property
    def build_proposal_generator(self) -> Callable[[Backbone], ProposalGenerator]:
        """Builds what PROPOSAL_GENERATOR.NAME names, on a backbone's maps."""
        return functools.partial(PROPOSAL_GENERATORS[self.proposal_generator.name], self)


def _rpn(section: ProposalNetworkConfig, backbone: Backbone, kind: BoxKind = UPRIGHT) -> RPN:
    strides, channels = pyramid(backbone, section.rpn.in_features, "RPN.IN_FEATURES")
    anchors = section.anchor_generator.build(strides)
    build_head = section.rpn.build_head(strides)
    return section.rpn.build(
        build_head(channels, anchors.anchors_per_cell, anchors.box_dim),
        anchors,
        min_size=section.proposal_generator.min_size,
        kind=kind,
    )


def _fcos(section: ProposalNetworkConfig, backbone: Backbone) -> FCOS:
    """CenterMask2's FCOS: of the towers, all of the box tower is deformable, nothing else is."""
    return section.fcos.build(backbone, deformable=(0, 0, section.fcos.num_box_convs))


PRECOMPUTED = "PrecomputedProposals"
# MODEL.PROPOSAL_GENERATOR.NAME -> what builds it
PROPOSAL_GENERATORS: dict[str, Callable[[ProposalNetworkConfig, Backbone], ProposalGenerator]] = {
    "RPN": _rpn,
    "RRPN": functools.partial(_rpn, kind=ROTATED),  # arXiv:1703.01086
    "FCOS": _fcos,
    PRECOMPUTED: lambda section, backbone: PrecomputedProposals(),
}


class ProposalNetwork(System):
    """Boxes that may hold an object of any class.

    Args:
        backbone: images to feature maps.
        proposal_generator: feature maps to those boxes.
        pixel_mean: one value a channel, subtracted from the images.
        pixel_std: one value a channel, divides them after that.
    """

    result = "proposals"

    def __init__(
        self,
        backbone: Backbone,
        *,
        proposal_generator: ProposalGenerator,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__(backbone, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.proposal_generator = proposal_generator

    def losses(self, images: ImageList, targets: list[Targets]) -> Losses:
        """`loss_rpn_cls` and `loss_rpn_loc`."""
        return self.proposal_generator.losses(images, self.backbone(images.tensor), targets)[1]

    def predict(self, images: ImageList) -> list[Proposals]:
        """Per image, the best proposals."""
        return self.proposal_generator.predict(images, self.backbone(images.tensor))
