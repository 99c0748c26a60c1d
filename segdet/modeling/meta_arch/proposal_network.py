"""A region proposal network alone (Faster R-CNN, arXiv:1506.01497, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from segdet.errors import ConfigError
from segdet.layers import Losses
from segdet.modeling.anchors import AnchorGeneratorConfig
from segdet.modeling.backbones import Backbone
from segdet.modeling.backbones.backbone import pyramid
from segdet.modeling.box_kind import ROTATED, UPRIGHT, BoxKind
from segdet.modeling.proposals import PrecomputedProposals, ProposalGeneratorConfig
from segdet.modeling.rpn import RPN, RPNConfig
from segdet.modeling.system import System, SystemConfig
from segdet.structures import ImageList, Proposals, Targets


@dataclass(frozen=True, kw_only=True)
class ProposalNetworkConfig(SystemConfig):
    """MODEL, as a proposal network reads it."""

    proposal_generator: ProposalGeneratorConfig = field(default_factory=ProposalGeneratorConfig)
    anchor_generator: AnchorGeneratorConfig = field(default_factory=AnchorGeneratorConfig)
    rpn: RPNConfig = field(default_factory=RPNConfig)

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
        return ProposalNetwork(
            backbone,
            proposal_generator=generator,
            pixel_mean=self.pixel_mean,
            pixel_std=self.pixel_std,
        )

    def build_proposal_generator(self, backbone: Backbone) -> RPN | PrecomputedProposals:
        """What PROPOSAL_GENERATOR.NAME names, on the backbone's maps."""
        return PROPOSAL_GENERATORS[self.proposal_generator.name](self, backbone)

    def build_rpn(self, backbone: Backbone, kind: BoxKind = UPRIGHT) -> RPN:
        """A region proposal network for a kind of boxes, on the backbone's maps."""
        strides, channels = pyramid(backbone, self.rpn.in_features, "RPN.IN_FEATURES")
        return self.rpn.build(
            channels,
            self.anchor_generator.build(strides),
            min_size=self.proposal_generator.min_size,
            kind=kind,
        )


PRECOMPUTED = "PrecomputedProposals"
# MODEL.PROPOSAL_GENERATOR.NAME -> what builds it
PROPOSAL_GENERATORS: dict[
    str, Callable[[ProposalNetworkConfig, Backbone], RPN | PrecomputedProposals]
] = {
    "RPN": lambda section, backbone: section.build_rpn(backbone),
    "RRPN": lambda section, backbone: section.build_rpn(backbone, ROTATED),  # arXiv:1703.01086
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
        proposal_generator: RPN,
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
