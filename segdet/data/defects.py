"""What can be wrong with a data set: the kinds of defects, and the errors that name them.

The readers state the rules: where one is broken they raise, drop or mend, with a `Defect` of one
of `KINDS`. `segdet check-data` asks the same functions, and looks further for what a reader lets
pass.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from segdet.errors import DataError


class Severity(IntEnum):
    """How much a defect matters; also the exit code of `segdet check-data`."""

    NOTE = 0  # training does what it should
    WARNING = 1  # training runs, but not on what the annotator meant
    ERROR = 2  # training stops


class Kind(NamedTuple):
    """A kind of defect."""

    severity: Severity
    training: str  # what training does with it


_STOPS = Kind(Severity.ERROR, "stops with this message")
_STOPS_THERE = Kind(Severity.ERROR, "stops with this message when it gets to the picture")
_LEARNS_FALSE = "learns from it as it stands"


def _drops(what: str) -> Kind:
    return Kind(Severity.WARNING, f"leaves {what} out, with a counted warning")


def _warns(training: str) -> Kind:
    return Kind(Severity.WARNING, training)


def _notes(training: str) -> Kind:
    return Kind(Severity.NOTE, training)


KINDS: dict[str, Kind] = {
    # files
    "file-unreadable": _STOPS,
    "json-invalid": _STOPS,
    "key-twice": _STOPS,
    "key-missing": _STOPS,
    "wrong-type": _STOPS,
    "no-annotations": Kind(Severity.ERROR, "stops; evaluation and prediction read the file"),
    "nothing-to-train-on": _STOPS,
    "file-missing": _STOPS,
    "xml-invalid": _STOPS,
    "nothing-pairs": _STOPS,
    "partner-missing": _drops("the file"),
    "name-twice": _STOPS,
    # numbers and ids
    "not-a-whole-number": _STOPS,
    "not-a-number": _STOPS,
    "not-finite": _STOPS,
    "too-large": _STOPS,
    "id-twice": _STOPS,
    "id-missing": _notes("reads it, with a counted warning; evaluation numbers it"),
    "ids-of-two-kinds": _STOPS,
    # categories
    "name-invalid": _STOPS,
    "category-names-equal": _warns("learns them as two classes"),
    "category-names-alike": _warns("learns them as two classes"),
    "category-ids-with-gaps": _notes("numbers the classes anew; results have the file's ids"),
    "category-unused": _notes("learns nothing of the class; its AP is no number"),
    "isthing-invalid": _STOPS,
    "frequency-invalid": _STOPS,
    "too-many-classes": _STOPS,
    # images
    "file-name-invalid": _STOPS,
    "file-name-outside": _STOPS,
    "file-name-twice": _warns("reads the picture once for each record, with that one's objects"),
    "size-missing": _notes("reads the size from the picture"),
    "size-invalid": _STOPS,
    "size-differs": _STOPS_THERE,
    "image-missing": _STOPS_THERE,
    "image-unreadable": _STOPS_THERE,
    "image-too-large": _STOPS_THERE,
    "image-rotated": _notes("turns the picture upright, as its EXIF says; objects must fit that"),
    "image-without-objects": _notes("leaves it out if DATALOADER.FILTER_EMPTY_ANNOTATIONS"),
    "image-twice": _warns("sees the same picture as several images"),
    "image-nearly-twice": _notes("sees almost the same picture as several images"),
    "image-in-two-sets": _warns("may see pictures that it is later evaluated on"),
    # annotations
    "image-unknown": _STOPS,
    "category-unknown": _STOPS,
    "iscrowd-invalid": _STOPS,
    "ignore-set": _STOPS,
    "annotation-twice": _warns("learns the object twice"),
    "box-missing": _notes("takes the box from the mask"),
    "box-underivable": _STOPS,
    "box-malformed": _STOPS,
    "box-empty": _drops("the annotation"),
    "box-outside": _drops("the annotation"),
    "box-past-border": _notes("clips the box to the image"),
    "box-off-its-mask": _warns("learns both, which contradict each other"),
    "mask-missing": _drops("the annotation, if the model has masks,"),
    "segmentation-malformed": _STOPS,
    "polygon-flat": _notes("takes the numbers as one polygon"),
    "polygon-odd": _STOPS,
    "polygon-short": _drops("the polygon"),
    "polygons-all-short": _drops("the annotation"),
    "polygon-without-area": _warns("finds (almost) no pixel in the polygon"),
    "polygon-crosses-itself": _warns("fills it by the even-odd rule, which may leave holes"),
    "polygon-past-border": _notes("cuts the mask at the border of the image"),
    "mask-outside": _drops("the annotation"),
    "rle-size": _STOPS,
    "rle-damaged": _STOPS,
    "mask-empty": _drops("the annotation"),
    "area-missing": _notes("does not need it; evaluation counts it from the mask"),
    "area-invalid": _warns("does not need it; evaluation stops"),
    "area-off-its-mask": _warns("does not need it; evaluation takes the object for another size"),
    "keypoints-malformed": _STOPS,
    "keypoint-count": _STOPS_THERE,
    "keypoint-visibility": _warns(_LEARNS_FALSE),
    "keypoint-outside": _warns("takes it as not labelled"),
    # panoptic and semantic annotation
    "annotated-twice": _STOPS,
    "image-without-annotation": _drops("the image"),
    "segment-id-invalid": _STOPS,
    "segment-unknown": _STOPS_THERE,
    "segment-without-pixels": _STOPS_THERE,
    "map-malformed": _STOPS_THERE,
    "map-size": _STOPS_THERE,
    "label-unknown": _STOPS_THERE,
    # LVIS, Pascal VOC, Cityscapes
    "absent-class-annotated": _warns("takes the class for absent and learns it from the object"),
    "class-unknown": _STOPS,
}


class Defect(DataError):
    """Something that breaks a rule of the data.

    Args:
        kind: of `KINDS`.
        message: what is wrong; names the field, the rule and the value.
        field: of the record; "" where it is the record or the file itself.
    """

    def __init__(self, kind: str, message: str, field: str = "") -> None:
        assert kind in KINDS, f"{kind} is no kind of defect"
        super().__init__(kind, message, field)  # all of it, for pickles from worker processes
        self.kind, self.message, self.field = kind, message, field

    def __str__(self) -> str:
        return self.message


class Drop(Defect):
    """The record is well formed but useless, and left out."""


def located(where: object, error: DataError) -> DataError:
    """The same error, its message beginning with where it was found."""
    message = f"{where}: {error}"
    return (
        Defect(error.kind, message, error.field)
        if isinstance(error, Defect)
        else DataError(message)
    )
