"""Semantic FPN (Kirillov et al. 2019, arXiv:1901.02446, section 3.1): a class for every pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from segdet.layers import Losses
from segdet.modeling.backbones import Backbone
from segdet.modeling.postprocessing import requested_size, sem_seg_postprocess
from segdet.modeling.sem_seg_head import SemSegHead, SemSegHeadConfig
from segdet.modeling.system import Needs, System, SystemConfig
from segdet.structures import ImageList


@dataclass(frozen=True, kw_only=True)
class SemanticSegmentorConfig(SystemConfig):
    """MODEL, as a semantic segmentor reads it."""

    needs: ClassVar[Needs] = Needs(labels={"sem_seg": "MODEL.SEM_SEG_HEAD.NUM_CLASSES"})

    sem_seg_head: SemSegHeadConfig = field(default_factory=SemSegHeadConfig)

    def build(self) -> SemanticSegmentor:
        """The model with random weights."""
        backbone = self.build_backbone()
        return SemanticSegmentor(
            backbone,
            sem_seg_head=self.sem_seg_head.build(backbone.output_shape()),
            pixel_mean=self.pixel_mean,
            pixel_std=self.pixel_std,
        )


class SemanticSegmentor(System):
    """A backbone and a semantic head.

    Args:
        backbone: images to feature maps.
        sem_seg_head: feature maps to logits of every pixel.
        pixel_mean: one value a channel, subtracted from the images.
        pixel_std: one value a channel, divides them after that.
    """

    result = "sem_seg"

    def __init__(
        self,
        backbone: Backbone,
        *,
        sem_seg_head: SemSegHead,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__(backbone, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.sem_seg_head = sem_seg_head

    def read_targets(self, batched_inputs: list[dict]) -> Tensor:
        """The label maps (B, H, W) int64 of the padded images."""
        return self.read_sem_seg(batched_inputs, self.sem_seg_head)

    def losses(self, images: ImageList, targets: Tensor) -> Losses:
        """The head's losses."""
        return self.sem_seg_head(self.backbone(images.tensor), targets)

    def predict(self, images: ImageList) -> list[Tensor]:
        """Per image, logits (K, H, W) in network input pixels, without the padding."""
        logits = self.sem_seg_head.predict(self.backbone(images.tensor))
        padded = ImageList(logits, images.image_sizes)
        return [padded[i] for i in range(len(padded))]

    def postprocess(
        self, found: Sequence[Tensor], batched_inputs: list[dict]
    ) -> list[dict[str, Tensor]]:
        """Logits at the size that each input asks for."""
        results = []
        for logits, x in zip(found, batched_inputs, strict=True):
            size = (logits.shape[1], logits.shape[2])
            resized = sem_seg_postprocess(logits, size, *requested_size(x, size))
            results.append({"sem_seg": resized})
        return results
