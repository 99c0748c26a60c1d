"""What a check finds, and the summary of the data set that it passes by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from segdet.data.defects import KINDS, Defect, Severity
from segdet.errors import DataError


class Finding(NamedTuple):
    """A defect and where it is."""

    kind: str  # of `KINDS`
    file: str
    record: str  # "annotation 7"; "" for the file itself
    field: str  # "" for the record itself
    message: str
    row: int | None = None  # number of an annotation in its file's list

    @property
    def severity(self) -> Severity:
        """How much it matters."""
        return KINDS[self.kind].severity


class Findings(list[Finding]):
    """Findings in one file."""

    def __init__(self, file: object, found: Iterable[Finding] = ()) -> None:
        super().__init__(found)
        self.file = str(file)

    def add(
        self, kind: str, record: str, message: str, field: str = "", row: int | None = None
    ) -> None:
        """Something that the readers let pass."""
        self.append(Finding(kind, self.file, record, field, message, row))

    def take(self, error: DataError, record: str = "", row: int | None = None) -> None:
        """What a reader says."""
        assert isinstance(error, Defect), f"of no kind: {error}"
        message = str(error).removeprefix(f"{self.file}: ")
        self.append(Finding(error.kind, self.file, record, error.field, message, row))


SIZES = tuple(2.0**k for k in range(2, 11))  # bounds of `Summary.sizes`, pixels
SMALL, LARGE = 32.0**2, 96.0**2  # COCO's bounds of small and large, square pixels


@dataclass
class Summary:
    """What a data set holds, of records that can be read."""

    images: int = 0
    objects: int = 0  # without crowds
    crowds: int = 0
    with_mask: int = 0  # of the objects
    classes: list[str] = field(default_factory=list)
    objects_of_class: Counter[int] = field(default_factory=Counter)  # by place in `classes`
    images_of_class: Counter[int] = field(default_factory=Counter)
    sizes: Counter[int] = field(default_factory=Counter)  # root of the area, by place in `SIZES`
    areas: Counter[str] = field(default_factory=Counter)  # "small", "medium", "large"
    pixels_of_class: Counter[int] = field(default_factory=Counter)  # of label maps
    image_sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (width, height)

    def count_objects(self, image: np.ndarray, classes: np.ndarray, areas: np.ndarray) -> None:
        """Add objects to the histograms.

        Args:
            image: (N,) numbers of their images.
            classes: (N,) places in `classes`.
            areas: (N,) square pixels.
        """
        self.objects += len(image)
        if not len(image):
            return
        self.objects_of_class.update(_counted(classes))
        pairs = np.unique(np.stack([image, classes]), axis=1)
        self.images_of_class.update(_counted(pairs[1]))
        self.sizes.update(_counted(np.searchsorted(SIZES, np.sqrt(areas))))
        names = np.array(["small", "medium", "large"])
        self.areas.update(_counted(names[np.searchsorted([SMALL, LARGE], areas, side="right")]))


def _counted(values: np.ndarray) -> Counter[Any]:
    found, counts = np.unique(values, return_counts=True)
    return Counter(dict(zip(found.tolist(), counts.tolist(), strict=True)))


class Picture(NamedTuple):
    """A picture that a data set names."""

    record: str  # "image 7"
    path: str
    size: tuple[int, int] | None  # (height, width) that its record says


@dataclass
class Checked:
    """All about one data set."""

    name: str  # as the user said it
    findings: list[Finding] = field(default_factory=list)
    summary: Summary = field(default_factory=Summary)
    pictures: list[Picture] = field(default_factory=list)

    @property
    def severity(self) -> Severity | None:
        """The worst; None where there is nothing."""
        return max((one.severity for one in self.findings), default=None)
