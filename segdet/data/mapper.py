"""From a data set's record to a model's input."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch

from segdet.config.configurable import configurable
from segdet.config.node import CfgNode
from segdet.config.ranges import (
    Fraction,
    NonNegativeInt,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
    Range,
)
from segdet.config.reader import read_section
from segdet.data import transforms as T
from segdet.data.annotations import (
    annotations_to_instances,
    category_of,
    create_keypoint_hflip_indices,
    draw_things,
    filter_empty_instances,
    masks_from_segmentations,
    read_box,
    transform_instance_annotations,
)
from segdet.data.image_io import FORMATS, check_image_size, file_name_of, read_image
from segdet.data.mixing import CopyPasteConfig, Mix, MosaicConfig
from segdet.data.proposals import transform_proposals
from segdet.data.records import CROWD
from segdet.data.sem_seg import has_sem_seg, read_sem_seg
from segdet.errors import ConfigError, DataError
from segdet.modeling.meta_arch import needs_of
from segdet.modeling.system import Needs


def _require(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}, is {value!r}")


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """INPUT.CROP; defaults are detectron2's."""

    enabled: bool = False
    type: str = "relative_range"
    size: tuple[PositiveFloat, PositiveFloat] = (0.9, 0.9)  # height, width, as TYPE says
    single_category_max_area: PositiveFraction = 1.0  # of the labelled pixels; 1: any crop will do

    def __post_init__(self) -> None:
        _require("CROP.TYPE", self.type, T.RandomCrop.TYPES)

    def augmentation(self, ignore_value: int, needs: Needs) -> T.Augmentation:
        """The crop; `ignore_value` is the label that does not count."""
        if self.single_category_max_area == 1:
            kind = T.RandomCropWithInstance if needs.centred_crops else T.RandomCrop
            return kind(self.type, self.size)
        if needs.labels and "sem_seg" not in needs.labels:
            raise ConfigError(
                "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA below 1 looks at label maps, which the system "
                "that MODEL.META_ARCHITECTURE means does not learn from; leave it 1"
            )
        return T.RandomCrop_CategoryAreaConstraint(
            self.type, self.size, self.single_category_max_area, ignore_value
        )


@dataclass(frozen=True, kw_only=True)
class SSDConfig:
    """INPUT.SSD: SSD's augmentations, as YOLACT has them, before the resize."""

    photometric: bool = False
    expand: bool = False
    crop: bool = False

    def augmentations(self, image_format: str) -> list[T.Augmentation]:
        """Those that are on, in their order."""
        colours = [T.PhotometricDistortion(image_format)] if self.photometric else []
        canvas = [T.RandomExpand(image_format)] if self.expand else []
        return [*colours, *canvas, *([T.CropAroundCentres()] if self.crop else [])]


@dataclass(frozen=True, kw_only=True)
class LSJConfig:
    """INPUT.LSJ: large-scale jitter, instead of MIN_SIZE_TRAIN; detectron2's new baselines' values.

    Source: Simple Copy-Paste (Ghiasi et al. 2021, arXiv:2012.07177), section 3.
    """

    enabled: bool = False
    min_scale: PositiveFloat = 0.1
    max_scale: PositiveFloat = 2.0
    size: PositiveInt = 1024  # pixels a side that a picture fits at scale 1; cut or padded to these

    def __post_init__(self) -> None:
        if self.min_scale > self.max_scale:
            raise ConfigError(
                f"LSJ.MIN_SCALE must be at most MAX_SCALE = {self.max_scale}, is {self.min_scale}"
            )

    def augmentations(self, ignore_value: int) -> list[T.Augmentation]:
        """The resize and the crop."""
        size = self.size, self.size
        resize = T.ResizeScale(self.min_scale, self.max_scale, *size)
        return [resize, T.FixedSizeCrop(size, seg_pad_value=ignore_value)]


@dataclass(frozen=True, kw_only=True)
class ColorConfig:
    """INPUT.COLOR: the image's weight in a mix is drawn from 1 - x to 1 + x; 0 is off."""

    brightness: Fraction = 0.0
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0

    def augmentations(self, image_format: str) -> list[T.Augmentation]:
        """Those that are on, in their order."""
        b, c, s = self.brightness, self.contrast, self.saturation
        brightness = [T.RandomBrightness(1 - b, 1 + b)] if b else []
        contrast = [T.RandomContrast(1 - c, 1 + c)] if c else []
        return [
            *brightness,
            *contrast,
            *([T.RandomSaturation(1 - s, 1 + s, image_format)] if s else []),
        ]


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """INPUT; defaults are detectron2's."""

    min_size_train: tuple[NonNegativeInt, ...] = (800,)  # pixels of the short side
    min_size_train_sampling: str = "choice"
    max_size_train: PositiveInt = 1333  # pixels of the long side
    min_size_test: NonNegativeInt = 800  # 0: no resize
    max_size_test: PositiveInt = 1333
    square_size: NonNegativeInt = 0  # > 0: pixels a side that images are stretched to, in float32
    random_flip: str = "horizontal"
    random_rotation: Annotated[float, Range(0, 180)] = 0.0  # degrees either way; the size stays
    lsj: LSJConfig = field(default_factory=LSJConfig)
    color: ColorConfig = field(default_factory=ColorConfig)
    copy_paste: CopyPasteConfig = field(default_factory=CopyPasteConfig)
    mosaic: MosaicConfig = field(default_factory=MosaicConfig)
    ssd: SSDConfig = field(default_factory=SSDConfig)
    crop: CropConfig = field(default_factory=CropConfig)
    format: str = "BGR"
    mask_format: str = "polygon"
    color_aug_ssd: bool = False
    ignore_value: int = field(default=255, metadata={"key": "MODEL.SEM_SEG_HEAD.IGNORE_VALUE"})
    mask_on: bool = field(default=False, metadata={"key": "MODEL.MASK_ON"})
    keypoint_on: bool = field(default=False, metadata={"key": "MODEL.KEYPOINT_ON"})
    train_names: tuple[str, ...] = field(default=(), metadata={"key": "DATASETS.TRAIN"})
    basis_loss_on: bool = field(default=False, metadata={"key": "MODEL.BASIS_MODULE.LOSS_ON"})
    load_proposals: bool = field(default=False, metadata={"key": "MODEL.LOAD_PROPOSALS"})
    proposal_topk_train: NonNegativeInt = field(
        default=2000, metadata={"key": "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN"}
    )
    proposal_topk_test: NonNegativeInt = field(
        default=1000, metadata={"key": "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST"}
    )

    def __post_init__(self) -> None:
        _require("MIN_SIZE_TRAIN_SAMPLING", self.min_size_train_sampling, ("choice", "range"))
        if not self.min_size_train:
            raise ConfigError("MIN_SIZE_TRAIN must have a size at least (0: no resize), has none")
        is_range = self.min_size_train_sampling == "range"
        if is_range and (
            len(self.min_size_train) != 2 or self.min_size_train[0] > self.min_size_train[1]
        ):
            raise ConfigError(
                f"MIN_SIZE_TRAIN must be a range (low, high), is {self.min_size_train}"
            )
        _require("RANDOM_FLIP", self.random_flip, ("horizontal", "vertical", "none"))
        _require("FORMAT", self.format, FORMATS)
        if self.color.saturation:
            _require("FORMAT, with COLOR.SATURATION,", self.format, ("BGR", "RGB"))
        if self.lsj.enabled and self.square_size:
            raise ConfigError("LSJ and SQUARE_SIZE both say the size: choose one")
        self._check_mixes()
        if self.color_aug_ssd:
            _require("FORMAT, with COLOR_AUG_SSD,", self.format, ("BGR", "RGB"))
        if self.ssd.photometric or self.ssd.expand:
            _require("FORMAT, with SSD.PHOTOMETRIC or EXPAND,", self.format, ("BGR", "RGB"))
        if self.color_aug_ssd and self.ssd.photometric:
            raise ConfigError("COLOR_AUG_SSD and SSD.PHOTOMETRIC are two of a kind: choose one")
        _require("MASK_FORMAT", self.mask_format, ("polygon", "bitmask"))

    def _check_mixes(self) -> None:
        on = {
            "LSJ": self.lsj.enabled,
            "MOSAIC": self.mosaic.prob,
            "COPY_PASTE": self.copy_paste.prob,
        }
        for name in (name for name in ("MOSAIC", "COPY_PASTE") if on[name]):
            if not self.mask_on:
                raise ConfigError(f"{name} needs MODEL.MASK_ON: it moves objects by their masks")
            if self.keypoint_on or self.load_proposals:
                key = "MODEL.KEYPOINT_ON" if self.keypoint_on else "MODEL.LOAD_PROPOSALS"
                raise ConfigError(f"{name} moves no keypoints or proposals; switch {key} off")
        for name in (name for name in ("LSJ", "MOSAIC") if on[name]):
            if self.basis_loss_on:
                raise ConfigError(
                    f"{name} pads pictures, which label maps of MODEL.BASIS_MODULE.LOSS_ON have no "
                    "value for; switch one of them off"
                )

    def mixes(self) -> list[Mix]:
        """What makes one training sample of several."""
        sections = self.mosaic, self.copy_paste
        return [section.build() for section in sections if section.prob]

    def augmentations(
        self, is_train: bool, needs: Needs | None = None
    ) -> list[T.Augmentation | T.Transform]:
        """For training SSD's, crop, resize, change colours and flip, as enabled; else resize alone.

        Official semantic configs mean crops of the resized image: systems that learn from label
        maps alone get these.

        Args:
            is_train: which of both.
            needs: of the system that learns.
        """
        if not is_train:
            return [self.resize_for_testing()]
        sizes, style = self.min_size_train, self.min_size_train_sampling
        resize = T.ResizeShortestEdge(sizes, self.max_size_train, style)
        augmentations: list[T.Augmentation | T.Transform] = [
            T.Stretch(self.square_size) if self.square_size else resize
        ]
        if self.lsj.enabled:
            augmentations = [*self.lsj.augmentations(self.ignore_value)]
        if self.crop.enabled:
            needs = needs or Needs()
            place = 1 if set(needs.labels) == {"sem_seg"} else 0
            augmentations.insert(place, self.crop.augmentation(self.ignore_value, needs))
        if self.random_rotation:
            angles = -self.random_rotation, self.random_rotation
            augmentations.append(T.RandomRotation(angles, expand=False))
        augmentations += self.color.augmentations(self.format)
        if self.color_aug_ssd:
            augmentations.append(T.ColorAugSSDTransform(self.format))
        if self.random_flip != "none":
            horizontal = self.random_flip == "horizontal"
            augmentations.append(T.RandomFlip(horizontal=horizontal, vertical=not horizontal))
        return [*self.ssd.augmentations(self.format), *augmentations]

    def cuts_objects(self) -> bool:
        """Whether training sees parts of objects, whose boxes then are those of the parts."""
        return self.crop.enabled or self.lsj.enabled or self.random_rotation != 0

    def resize_for_testing(self) -> T.Augmentation:
        """What brings an image to the size that the model sees."""
        if self.square_size:
            return T.Stretch(self.square_size)
        return T.ResizeShortestEdge((self.min_size_test, self.min_size_test), self.max_size_test)


def build_augmentation(cfg: CfgNode, is_train: bool) -> list[T.Augmentation | T.Transform]:
    """The augmentations that a config's INPUT asks for."""
    section = read_section(InputConfig, cfg, at="INPUT")
    return section.augmentations(is_train, needs_of(cfg.leaves()))


class DatasetMapper:
    """Reads a record's image, augments it, and makes tensors of it and of its annotations.

    `DatasetMapper(cfg, is_train=True)` takes its settings from a config; further arguments
    override them.

    Args:
        is_train: whether annotations are wanted.
        augmentations: augmentations or fixed transforms.
        image_format: see `read_image`.
        use_instance_mask: whether every object must have a mask, and brings it.
        use_keypoint: likewise for keypoints.
        instance_mask_format: "polygon" or "bitmask".
        keypoint_hflip_indices: from `create_keypoint_hflip_indices`.
        precomputed_proposal_topk: bring this many of the record's proposals; None: none.
        recompute_boxes: make boxes tight around the masks that augmentation left.
        use_basis_sem: bring a label map of the objects, see `draw_things`.
        use_crowds: bring crowds too, those that have what objects must have, of class -1.
    """

    @configurable
    def __init__(
        self,
        is_train: bool = True,
        *,
        augmentations: list[T.Augmentation | T.Transform],
        image_format: str,
        use_instance_mask: bool = False,
        use_keypoint: bool = False,
        instance_mask_format: str = "polygon",
        keypoint_hflip_indices: np.ndarray | None = None,
        precomputed_proposal_topk: int | None = None,
        recompute_boxes: bool = False,
        use_basis_sem: bool = False,
        use_crowds: bool = False,
    ) -> None:
        if recompute_boxes and not use_instance_mask:
            raise ConfigError("recompute_boxes needs use_instance_mask")
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.use_instance_mask, self.use_keypoint = use_instance_mask, use_keypoint
        self.instance_mask_format = instance_mask_format
        self.keypoint_hflip_indices = keypoint_hflip_indices
        self.precomputed_proposal_topk = precomputed_proposal_topk
        self.recompute_boxes = recompute_boxes
        self.use_basis_sem = use_basis_sem
        self.use_crowds = use_crowds

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """The constructor's arguments from a config; subclasses may change the dict."""
        section, needs = read_section(InputConfig, cfg, at="INPUT"), needs_of(cfg.leaves())
        names = section.train_names if section.keypoint_on and is_train else ()
        topk = section.proposal_topk_train if is_train else section.proposal_topk_test
        return {
            "is_train": is_train,
            "augmentations": section.augmentations(is_train, needs),
            "image_format": section.format,
            "use_instance_mask": section.mask_on,
            "use_keypoint": section.keypoint_on,
            "instance_mask_format": section.mask_format,
            "keypoint_hflip_indices": create_keypoint_hflip_indices(names) if names else None,
            "precomputed_proposal_topk": topk if section.load_proposals else None,
            "recompute_boxes": is_train and section.cuts_objects() and section.mask_on,
            "use_basis_sem": is_train and section.basis_loss_on and section.mask_on,
            "use_crowds": needs.crowds,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one record.

        Args:
            dataset_dict: a standard dict; it is not changed.

        Returns:
            The record's other keys, and `image` (C, H, W), uint8 or where augmentations make it
            so float32; for training `instances` (`Targets` in the frame of the image); with
            semantic labels (see `read_sem_seg`) also `sem_seg` (H, W) int64; if wanted `basis_sem`
            (H, W) int64; with proposals `proposals`.

        Raises:
            DataError: the image or an annotation cannot be used; says which.
        """
        # Annotations, the bulk of a record, are copied one by one and no deeper than they change.
        record = {k: v if k == "annotations" else copy.deepcopy(v) for k, v in dataset_dict.items()}
        try:
            return self._map(record)
        except DataError as error:
            raise DataError(f"image id {record.get('image_id')}: {error}") from None

    def _map(self, record: dict[str, Any]) -> dict[str, Any]:
        image = read_image(file_name_of(record), self.image_format)
        check_image_size(record, image)
        original_size = image.shape[:2]
        sem_seg = read_sem_seg(record) if has_sem_seg(record) else None
        aug_input = T.AugInput(image, sem_seg=sem_seg, boxes=self._boxes(record))
        transforms = self.augmentations(aug_input)
        image = aug_input.image
        record["image"] = _as_planes(image)
        if aug_input.sem_seg is not None:
            record["sem_seg"] = torch.as_tensor(aug_input.sem_seg.astype(np.int64))
        if self.precomputed_proposal_topk is not None:
            topk = self.precomputed_proposal_topk
            transform_proposals(record, image.shape[:2], transforms, proposal_topk=topk)
        if not self.is_train:
            record.pop("annotations", None)
            record.pop("sem_seg_file_name", None)
        elif "annotations" in record:
            if self.use_basis_sem:
                labels = draw_things(record["annotations"], original_size)
                labels = transforms.apply_segmentation(labels)
                record["basis_sem"] = torch.as_tensor(labels.astype(np.int64))
            self._transform_annotations(record, transforms, image.shape[:2])
        return record

    def _boxes(self, record: dict[str, Any]) -> np.ndarray | None:
        """(N, 4) XYXY of the objects that are no crowds, for augmentations that look at them."""
        if not self.is_train or "boxes" not in self.augmentations.looks_at():
            return None
        objects = [a for a in record.get("annotations", ()) if a.get("iscrowd", 0) == 0]
        return np.concatenate([np.empty((0, 4)), *(read_box(one) for one in objects)])

    def _transform_annotations(
        self,
        dataset_dict: dict[str, Any],
        transforms: T.TransformList,
        image_shape: tuple[int, int],
    ) -> None:
        """Replace `annotations` by `instances`, in place."""
        moved = []
        for i, original in enumerate(dataset_dict.pop("annotations")):
            annotation = dict(original)
            is_crowd = annotation.get("iscrowd", 0) != 0
            if is_crowd and not self._takes_crowd(annotation):
                continue
            self._select(annotation, i, dataset_dict)
            try:
                annotation["category_id"] = CROWD if is_crowd else category_of(annotation)
                moved.append(
                    transform_instance_annotations(
                        annotation,
                        transforms,
                        image_shape,
                        keypoint_hflip_indices=self.keypoint_hflip_indices,
                    )
                )
            except DataError as error:
                raise DataError(f"{dataset_dict['file_name']}, object {i}: {error}") from None
        targets = annotations_to_instances(moved, image_shape, self.instance_mask_format)
        if self.use_instance_mask and not moved:
            fmt = self.instance_mask_format
            targets.gt_masks = masks_from_segmentations([], image_shape, fmt)
        if self.recompute_boxes:
            targets.gt_boxes = targets.gt_masks.get_bounding_boxes()
            targets.gt_boxes.clip(image_shape)  # a rotation leaves polygons beyond the image
        dataset_dict["instances"] = filter_empty_instances(targets)

    def _takes_crowd(self, annotation: dict[str, Any]) -> bool:
        lacks_mask = self.use_instance_mask and "segmentation" not in annotation
        return self.use_crowds and not self.use_keypoint and not lacks_mask

    def _select(self, annotation: dict[str, Any], number: int, record: dict[str, Any]) -> None:
        """Keep of an annotation what is wanted; refuse it where that is missing."""
        wanted = {"segmentation": self.use_instance_mask, "keypoints": self.use_keypoint}
        for key, is_wanted in wanted.items():
            if not is_wanted:
                annotation.pop(key, None)
            elif key not in annotation:
                raise DataError(
                    f"{record['file_name']}, object {number}: has no {key}, which this model "
                    "needs; annotate it, or switch MODEL.MASK_ON or MODEL.KEYPOINT_ON off"
                )


def _as_planes(image: np.ndarray) -> torch.Tensor:
    """(C, H, W), contiguous, of an (H, W, C) array; without a copy where it lies so in memory."""
    planes = image.transpose(2, 0, 1)
    if planes.strides[2] < 0 and planes.flags.writeable:  # a mirror: numpy copies it 6 times slower
        return torch.from_numpy(planes[:, :, ::-1]).flip(2).contiguous()
    return torch.as_tensor(np.ascontiguousarray(planes))
