"""What every system shares: reading images in, giving losses or results out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from segdet.config.ranges import PositiveFloat
from segdet.errors import ConfigError, DataError
from segdet.layers import Losses
from segdet.modeling.backbones import Backbone, BackboneSections
from segdet.modeling.postprocessing import detector_postprocess, requested_size
from segdet.modeling.sem_seg_head import SemSegHead
from segdet.structures import ImageList, Targets
from segdet.utils.mixed_precision import AMPConfig


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a system learns from; the data's side brings and checks it.

    Args:
        labels: "annotations" and "sem_seg" (label maps), as far as it needs them, -> the config's
            key that counts their classes, None where all classes are one; empty: nothing is known.
        crowds: targets hold crowds, too, of class -1.
        centred_crops: crops of INPUT.CROP hold the centre of an object, as AdelaiDet's do.
    """

    labels: Mapping[str, str | None] = field(default_factory=dict)
    crowds: bool = False
    centred_crops: bool = False


@dataclass(frozen=True, kw_only=True)
class SystemConfig(BackboneSections, ABC):
    """The MODEL keys of every system; a system's section subclasses it."""

    needs: ClassVar[Needs] = Needs()

    pixel_std: tuple[PositiveFloat, ...] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if len(self.pixel_mean) != len(self.pixel_std):
            raise ConfigError(
                f"PIXEL_MEAN and PIXEL_STD must have one value a channel, have "
                f"{len(self.pixel_mean)} and {len(self.pixel_std)}"
            )

    @abstractmethod
    def build(self) -> System:
        """The model."""


class System(nn.Module, ABC):
    """A model: images in, losses or detections out.

    Args:
        backbone: its `size_divisibility` decides how batches are padded.
        pixel_mean: one value a channel, subtracted from the images.
        pixel_std: one value a channel, divides them after that.
    """

    result = "instances"  # the key of what `predict` finds, in the results
    amp = AMPConfig()  # TEST.AMP, if `build_model` has built it

    def __init__(
        self, backbone: Backbone, *, pixel_mean: Sequence[float], pixel_std: Sequence[float]
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values).reshape(-1, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the images go."""
        return self.pixel_mean.device

    @abstractmethod
    def losses(self, images: ImageList, targets: Any) -> Losses:
        """The training losses; needs targets, as `read_targets` gives them, not `.training`."""

    @abstractmethod
    def predict(self, images: ImageList) -> Sequence[Any]:
        """Per image, what was found, in network input pixels; `postprocess` takes it."""

    def forward(self, batched_inputs: list[dict]) -> Losses | list[dict]:
        """Losses when training, results otherwise.

        Args:
            batched_inputs: per image, `image` (C, H, W) in the config's channel order; for losses
                `instances` (Targets in the image's pixels) or `sem_seg` (H, W) int64 labels, as
                the system needs; for results optionally `height` and `width`, the size that
                results are scaled to (the image's own by default).

        Returns:
            In training a dict of named scalars, with `.metrics` beside; otherwise a list of
            dicts with `instances` (Detections), `proposals` (Proposals), `sem_seg` or
            `panoptic_seg`.
        """
        images = self.preprocess_image(batched_inputs)
        if self.training:
            return self.losses(images, self.read_targets(batched_inputs))
        return self.postprocess(self.find(images), batched_inputs)

    def find(self, images: ImageList) -> Sequence[Any]:
        """What `predict` finds, in the precision of TEST.AMP."""
        with self.amp.autocast(self.device.type):
            return self.predict(images)

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalised images, padded right and bottom with zeros to one size."""
        pixels = [self._moved(x["image"], self.pixel_mean.dtype) for x in batched_inputs]
        return self._pad([(image - self.pixel_mean) / self.pixel_std for image in pixels])

    def _moved(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """On the model's device. Asked for both at once, torch converts before it copies."""
        return tensor.to(self.device, non_blocking=True).to(dtype)

    def _pad(self, maps: list[Tensor], value: float = 0.0) -> ImageList:
        """(..., H, W) each, at the right and the bottom, to one size that the backbone takes."""
        return ImageList.from_tensors(
            maps,
            self.backbone.size_divisibility,
            pad_value=value,
            padding_constraints=self.backbone.padding_constraints,
        )

    def read_targets(self, batched_inputs: list[dict]) -> Any:
        """The ground truth of the batch, on the model's device; here list[Targets]."""
        return self.read_instances(batched_inputs)

    def read_instances(self, batched_inputs: list[dict]) -> list[Targets]:
        """The annotated objects of each image."""
        _refuse_without("instances", batched_inputs)
        return [x["instances"].to(self.device) for x in batched_inputs]

    def read_sem_seg(self, batched_inputs: list[dict], head: SemSegHead) -> Tensor:
        """The label maps (B, H, W) int64, padded as the images are, with `head.ignore_value`.

        Raises:
            ValueError: an image has none, or one of another size.
            DataError: an image has labels that are no classes of the head.
        """
        _refuse_without("sem_seg", batched_inputs)
        for i, x in enumerate(batched_inputs):
            try:
                head.check_labels(x["sem_seg"], x["image"].shape[-2:])
            except (ValueError, DataError) as error:
                name = x.get("file_name", x.get("image_id", i))
                raise type(error)(f"image {name}: {error}") from None
        maps = [self._moved(x["sem_seg"], torch.int64) for x in batched_inputs]
        return self._pad(maps, head.ignore_value).tensor

    def postprocess(self, found: Sequence[Any], batched_inputs: list[dict]) -> list[dict[str, Any]]:
        """Results at the size that each input asks for."""
        return [
            {self.result: detector_postprocess(d, *requested_size(x, d.image_size))}
            for d, x in zip(found, batched_inputs, strict=True)
        ]


def _refuse_without(key: str, batched_inputs: list[dict]) -> None:
    missing = [x.get("image_id", i) for i, x in enumerate(batched_inputs) if key not in x]
    if missing:
        raise ValueError(f"training needs `{key}`; the inputs of images {missing} have none")
