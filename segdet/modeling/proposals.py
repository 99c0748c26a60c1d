"""Where proposals come from: the setting that chooses, and proposals computed beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from segdet.config.ranges import NonNegativeFloat
from segdet.layers import Losses
from segdet.structures import ImageList, Proposals, Targets


@dataclass(frozen=True, kw_only=True)
class ProposalGeneratorConfig:
    """MODEL.PROPOSAL_GENERATOR; the names are in `PROPOSAL_GENERATORS`."""

    name: str = "RPN"
    min_size: NonNegativeFloat = 0  # boxes with a side of at most this many pixels are dropped


class ProposalGenerator(Protocol):
    """The first stage of an R-CNN."""

    def losses(
        self, images: ImageList, features: dict[str, Tensor], targets: Sequence[Targets]
    ) -> tuple[list[Proposals], Losses]:
        """What the heads train on, and the losses of the first stage."""
        ...

    def predict(self, images: ImageList, features: dict[str, Tensor]) -> list[Any]:
        """Per image, what the heads work on: Proposals; of FCOS, Detections."""
        ...


class ImagesWithProposals(ImageList):
    """A batch of images and, per image, the proposals that came with it."""

    proposals: list[Proposals]


class PrecomputedProposals(nn.Module):
    """Stands in for an RPN where the inputs bring `proposals`; Fast R-CNN (arXiv:1504.08083)."""

    def read(self, images: ImageList, batched_inputs: Sequence[dict]) -> ImagesWithProposals:
        """The images with the proposals of their inputs, on the same device.

        Raises:
            ValueError: an input has none.
        """
        missing = [
            x.get("image_id", i) for i, x in enumerate(batched_inputs) if "proposals" not in x
        ]
        if missing:
            raise ValueError(
                "this model takes `proposals` (Instances with proposal_boxes and "
                f"objectness_logits); the inputs of images {missing} have none"
            )
        both = ImagesWithProposals(images.tensor, images.image_sizes)
        both.proposals = [x["proposals"].to(images.tensor.device) for x in batched_inputs]
        return both

    def losses(
        self, images: ImageList, features: dict[str, Tensor], targets: Sequence[Targets]
    ) -> tuple[list[Proposals], Losses]:
        """The proposals as they came, and no losses."""
        return self.predict(images, features), Losses()

    def predict(self, images: ImageList, features: dict[str, Tensor]) -> list[Proposals]:
        """The proposals as they came."""
        assert isinstance(images, ImagesWithProposals), "made by `read`"
        return images.proposals
