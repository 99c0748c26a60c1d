"""Folders of mask pictures: one of ids for each image, or one for each object."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from segdet.data.convert.objects import LabelledImage, LabelledObject, Labels
from segdet.data.image_io import image_size_of, opened
from segdet.data.readers.sem_seg_folder import PICTURES, files_below
from segdet.data.segment_ids import rgb2id
from segdet.errors import DataError


def read_masks(source: Path, images: Path, class_name: str) -> Labels:
    """Read masks of one class.

    Args:
        source: holds `STEM.png` for the image STEM, where each value (or colour) but 0 is an
            object; or a folder `STEM` of pictures, one for each object, nonzero inside. They may
            lie deeper, as in `STEM/masks`.
        images: folder of the images.
        class_name: of all objects.

    Raises:
        DataError: a picture cannot be read, is of another size than its image, or of none.
    """
    pictures = files_below(images)
    masks = {
        str(file.relative_to(source).with_suffix("")): file
        for file in sorted(source.rglob("*"))
        if file.suffix.lower() in PICTURES
    }
    if not masks:
        raise DataError(f"{source} has no pictures ({', '.join(PICTURES)})")
    of_image: dict[str, list[Path]] = {stem: [] for stem in pictures}
    for stem, file in masks.items():
        parents = [str(one) for one in Path(stem).parents]
        owner = next((one for one in (stem, *parents) if one in of_image), None)
        if owner is None:
            raise DataError(f"{file} is of no image in {images}")
        of_image[owner].append(file)
    found = (_read(stem, pictures, of_image, images, class_name, source) for stem in pictures)
    return Labels(found, [class_name])


def _read(
    stem: str,
    pictures: dict[str, str],
    of_image: dict[str, list[Path]],
    images: Path,
    class_name: str,
    source: Path,
) -> LabelledImage:
    height, width = image_size_of(pictures[stem])
    objects = []
    for file in of_image[stem]:
        ids = _ids(file)
        if ids.shape != (height, width):
            size = f"{ids.shape[1]} x {ids.shape[0]}"
            raise DataError(f"{file}: is {size}, its image {width} x {height}")
        is_map = str(file.relative_to(source).with_suffix("")) == stem
        found = _masks(ids, is_map)
        objects += [LabelledObject(class_name, str(file), mask=mask) for mask in found]
    return LabelledImage(str(Path(pictures[stem]).relative_to(images)), height, width, objects)


def _masks(ids: np.ndarray, is_map: bool) -> Iterator[np.ndarray]:
    if is_map:
        yield from (ids == value for value in np.unique(ids[ids > 0]))
    elif (ids > 0).any():
        yield ids > 0


def _ids(file: Path) -> np.ndarray:
    """(H, W) values; of colours one number each."""
    with opened(file) as image:
        if image.mode in ("RGB", "RGBA"):
            return rgb2id(np.asarray(image))
        values = np.array(image)  # a palette's indices, 8 or 16 bits, or one bit
        if values.ndim != 2 or values.dtype.kind not in "uib":
            raise DataError(f"masks have one integer channel or colours, this is mode {image.mode}")
        return values.astype(np.int64)
