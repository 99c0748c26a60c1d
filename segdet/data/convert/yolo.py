"""Ultralytics' YOLO labels: a text file for each image, coordinates as shares of its sides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import yaml

from segdet.data.convert.objects import LabelledImage, LabelledObject, Labels
from segdet.data.defects import located
from segdet.data.image_io import image_size_of
from segdet.data.readers.sem_seg_folder import PICTURES, files_below
from segdet.errors import DataError

_SLACK = 0.01  # by which a share may leave [0, 1]: tools round


def read_yolo(source: Path, images: Path, classes: Path | None = None) -> Labels:
    """Read a folder of labels; images without a file have no objects.

    Source: docs.ultralytics.com, "Instance Segmentation Datasets": a line is the number of the
    class and the corners of a polygon, or of a box its centre, width and height.

    Args:
        source: folder of the text files.
        images: folder of the images, of the same names below it.
        classes: a `data.yaml`, or a text file of names, one a line; None looks for `data.yaml` and
            `classes.txt` in the folder and above it.

    Raises:
        DataError: a line cannot be used, or a file is of no image.
    """
    names = read_names(classes or _find_names(source))
    if not source.is_dir():
        raise DataError(f"{source} is no folder")
    texts = {str(f.relative_to(source).with_suffix("")): f for f in sorted(source.rglob("*.txt"))}
    pictures = files_below(images)
    texts.pop("classes", None)
    if lone := sorted(texts.keys() - pictures.keys()):
        raise DataError(f"{texts[lone[0]]} is of no image in {images} ({', '.join(PICTURES)})")
    return Labels(_read(texts, pictures, images, names), names)


def _find_names(source: Path) -> Path:
    places = [
        folder / name for folder in (source, *source.resolve().parents[:2]) for name in _NAMES
    ]
    for file in places:
        if file.is_file():
            return file
    raise DataError(
        f"{source}: neither {' nor '.join(_NAMES)} is there or above; give --classes FILE"
    )


_NAMES = ("data.yaml", "classes.txt")


def read_names(file: Path) -> list[str]:
    """Names of classes by their numbers, from a `data.yaml` or a text file."""
    try:
        text = file.read_text("utf-8")
        if file.suffix not in (".yaml", ".yml"):
            return [line.strip() for line in text.splitlines() if line.strip()]
        tree = yaml.safe_load(text)
        names = tree["names"]
        if isinstance(names, str):  # which has characters by number, too
            raise TypeError
        listed = [names[k] for k in range(len(names))]
    except (OSError, UnicodeError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from None
    except (yaml.YAMLError, TypeError, KeyError, ValueError, RecursionError):
        message = "must be YAML with `names`: a list, or a map from 0, 1, ... to names"
        raise DataError(f"{file}: {message}") from None
    return [str(name) for name in listed]


def _read(
    texts: dict[str, Path], pictures: dict[str, str], images: Path, names: Sequence[str]
) -> Iterator[LabelledImage]:
    for stem, picture in pictures.items():
        height, width = image_size_of(picture)
        objects = []
        for number, line in enumerate(_lines_of(texts[stem]) if stem in texts else (), 1):
            if not line.strip():
                continue
            where = f"{texts[stem]}, line {number}"
            try:
                objects.append(_object(line, where, (height, width), names))
            except DataError as error:
                raise located(where, error) from None
        yield LabelledImage(str(Path(picture).relative_to(images)), height, width, objects)


def _lines_of(file: Path) -> list[str]:
    try:
        return file.read_text("utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from None


def _object(line: str, where: str, size: tuple[int, int], names: Sequence[str]) -> LabelledObject:
    height, width = size
    try:
        number, *shares = (float(word) for word in line.split())
    except ValueError:
        raise DataError(f"must hold numbers, is {line!r:.80}") from None
    if not (number.is_integer() and 0 <= number < len(names)):
        raise DataError(f"class {number:g} has no name; there are {len(names)}")
    values = np.array(shares)
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        message = "must be a class and x, y of 3 points or more, or x, y, width, height of a box"
        raise DataError(f"{message}; it has {len(values)} numbers after the class")
    if not ((values >= -_SLACK) & (values <= 1 + _SLACK)).all():
        raise DataError("coordinates must be shares of the image's sides, in [0, 1]")
    name = names[int(number)]
    if len(values) == 4:
        x, y, w, h = values.tolist()
        box = (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height
        return LabelledObject(name, where, box=box)
    points = values.clip(0, 1).reshape(-1, 2) * (width, height)
    return LabelledObject(name, where, [points.reshape(-1).tolist()])
