from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from segdet.structures.boxes import Boxes, Index
    from segdet.structures.keypoints import Keypoints
    from segdet.structures.masks import BitMasks, PolygonMasks

InstancesT = TypeVar("InstancesT", bound="Instances")


class Instances:
    """The objects of one image: an image size and fields of equal length.

    A field is read and written as an attribute and may be anything with a length that can be
    indexed: tensors, `Boxes`, masks, `Keypoints`, lists.

    Examples:
        >>> instances = Instances((480, 640), scores=torch.tensor([0.9, 0.3]))
        >>> instances.pred_classes = torch.tensor([2, 7])
        >>> instances[instances.scores > 0.5].pred_classes
        tensor([2])
    """

    _image_size: tuple[int, int]
    _fields: dict[str, Any]

    def __init__(self, image_size: tuple[int, int], **kwargs: Any) -> None:
        """Start with the given fields.

        Args:
            image_size: (height, width) that the fields refer to.
            kwargs: fields.
        """
        self._image_size = image_size
        self._fields = {}
        for name, value in kwargs.items():
            self.set(name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width)."""
        return self._image_size

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:
            self.set(name, value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # not a field; also asked for while unpickling
            raise AttributeError(name)
        return self.get(name)

    def __delattr__(self, name: str) -> None:
        self.remove(name)

    def set(self, name: str, value: Any) -> None:
        """Set a field.

        Raises:
            ValueError: its length differs from that of the other fields.
        """
        if name == "image_size":
            raise AttributeError("image_size is fixed; make new Instances for another size")
        others = [field for field in self._fields if field != name]
        if others and len(value) != len(self._fields[others[0]]):
            raise ValueError(
                f"field {name} has {len(value)} entries, but {others[0]} has "
                f"{len(self._fields[others[0]])}"
            )
        self._fields[name] = value

    def has(self, name: str) -> bool:
        """Whether there is a field of that name."""
        return name in self._fields

    def remove(self, name: str) -> None:
        """Drop a field.

        Raises:
            AttributeError: there is none of that name.
        """
        self.get(name)
        del self._fields[name]

    def get(self, name: str) -> Any:
        """A field's value.

        Raises:
            AttributeError: there is none of that name.
        """
        if name not in self._fields:
            there = ", ".join(self._fields) or "no fields"
            raise AttributeError(f"{type(self).__name__} has no {name} (it has {there})")
        return self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """All fields by name; changing the dict changes this object."""
        return self._fields

    def to(self: InstancesT, *args: Any, **kwargs: Any) -> InstancesT:
        """A copy whose fields had `.to(...)` called, where they have it."""
        moved = type(self)(self._image_size)
        for name, value in self._fields.items():
            moved.set(name, value.to(*args, **kwargs) if hasattr(value, "to") else value)
        return moved

    def __getitem__(self: InstancesT, item: Index) -> InstancesT:
        """The objects at an int (as one object), a slice, or an int64 or bool tensor.

        Raises:
            IndexError: an int out of range.
        """
        if isinstance(item, int):
            if not -len(self) <= item < len(self):
                raise IndexError(f"index {item} out of range for {len(self)} objects")
            item = slice(item, None, len(self))
        chosen = type(self)(self._image_size)
        for name, value in self._fields.items():
            chosen.set(name, _index_field(value, item))
        return chosen

    def __len__(self) -> int:
        for value in self._fields.values():
            return len(value)
        raise NotImplementedError(f"{type(self).__name__} without fields has no length")

    def __iter__(self) -> Iterator[Any]:
        raise NotImplementedError(f"{type(self).__name__} is not iterable; index it instead")

    @staticmethod
    def cat(instance_lists: Sequence[InstancesT]) -> InstancesT:
        """The objects of all, in order, with the fields of the first.

        Raises:
            ValueError: nothing to join, different image sizes, or a field that cannot be joined.
        """
        if len(instance_lists) == 0:
            raise ValueError("Instances.cat needs at least one Instances")
        first = instance_lists[0]
        if len(instance_lists) == 1:
            return first
        for other in instance_lists[1:]:
            if other.image_size != first.image_size:
                raise ValueError(f"image sizes differ: {first.image_size} and {other.image_size}")
        joined = type(first)(first.image_size)
        for name in first.get_fields():
            joined.set(name, _cat_field(name, [one.get(name) for one in instance_lists]))
        return joined

    def __repr__(self) -> str:
        number = len(self) if self._fields else 0
        height, width = self._image_size
        fields = ", ".join(f"{name}: {value}" for name, value in self._fields.items())
        return (
            f"{type(self).__name__}(num_instances={number}, image_height={height}, "
            f"image_width={width}, fields=[{fields}])"
        )


def _index_field(value: Any, item: slice | Sequence[int] | Tensor) -> Any:
    if not isinstance(value, list):
        return value[item]
    values = cast(list[Any], value)
    if isinstance(item, slice):
        return values[item]
    return [values[index] for index in torch.arange(len(values))[torch.as_tensor(item).cpu()]]


def _cat_field(name: str, values: list[Any]) -> Any:
    kind = cast(Any, type(values[0]))
    if issubclass(kind, Tensor):
        return torch.cat(values)
    if issubclass(kind, list):
        return [entry for value in values for entry in value]
    if hasattr(kind, "cat"):
        return kind.cat(values)
    raise ValueError(f"field {name} of type {kind.__name__} cannot be joined")


class Detections(Instances):
    """What a model found in one image, best first. Fields are detectron2's."""

    pred_boxes: Boxes  # (N, 4) XYXY, absolute pixels of `image_size` = (height, width)
    scores: Tensor  # (N,) in [0, 1], descending
    pred_classes: Tensor  # (N,) int64 in [0, num_classes)
    pred_masks: Tensor  # (N, H, W) bool, or (N, 1, M, M) probabilities before pasting
    mask_scores: Tensor  # (N,): scores times the predicted IoU of the mask; may leave [0, 1]
    pred_keypoints: Tensor  # (N, keypoints, 3): x and y in pixels, score


class Targets(Instances):
    """The annotated objects of one image; crowds, of class -1, only for systems that use them."""

    gt_boxes: Boxes  # (N, 4) XYXY, absolute pixels of `image_size`
    gt_classes: Tensor  # (N,) int64 in [0, num_classes)
    gt_masks: PolygonMasks | BitMasks  # in the frame of `image_size`
    gt_keypoints: Keypoints  # (N, keypoints, 3)


class Proposals(Instances):
    """Regions that may hold an object, best first; once sampled, with their objects too."""

    proposal_boxes: Boxes  # (R, 4) XYXY, absolute pixels of `image_size`
    objectness_logits: Tensor  # (R,)
    gt_boxes: Boxes  # (R, 4) of the matched object; absent where the image has none
    gt_classes: Tensor  # (R,) int64 in [0, num_classes]; num_classes is background
    gt_index: Tensor  # (R,) int64 row of the matched object in `Targets`; absent likewise
