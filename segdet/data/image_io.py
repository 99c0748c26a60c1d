"""Picture files to arrays: every kind that Pillow decodes, upright, in 8 bit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from segdet.data.defects import Defect, located
from segdet.data.limits import check_image
from segdet.data.tar_shards import source_of
from segdet.errors import DataError

FORMATS = ("BGR", "RGB", "L", "YUV-BT.601")

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Source: ITU-R BT.601; rows are Y, U, V.
_YUV_FROM_RGB = np.array(
    [[0.299, 0.587, 0.114], [-0.14713, -0.28886, 0.436], [0.615, -0.51499, -0.10001]]
)
_RGB_FROM_YUV = np.array([[1.0, 0.0, 1.13983], [1.0, -0.39465, -0.58060], [1.0, 2.03211, 0.0]])


def read_image(file_name: str | os.PathLike[str], format: str | None = None) -> np.ndarray:
    """Read a picture, turned upright by its EXIF orientation.

    Grey, palette, CMYK and 1-bit pictures are expanded to three channels, alpha is dropped,
    16 bits are scaled to 8; of several frames the first is read.

    Args:
        file_name: any file that Pillow decodes; its content decides, not its name.
        format: "BGR", "RGB", "L" (grey) or "YUV-BT.601"; None keeps the file's own channels.

    Returns:
        (H, W, 3) uint8, contiguous; (H, W, 1) for "L"; (H, W, 3) float for "YUV-BT.601".

    Raises:
        DataError: the file is absent, broken, too large, or of floating-point pixels.
    """
    if format is not None and format not in FORMATS:
        raise DataError(f"image format must be one of {', '.join(FORMATS)}, is {format!r}")
    with opened(file_name) as image:
        return _to_array(_to_8_bit(_upright(image)), format)


def read_labels(file_name: str | os.PathLike[str]) -> np.ndarray:
    """Read a semantic label map: one channel of class ids; a palette's indices are the ids.

    Returns:
        (H, W) uint8 (or the integer type of a deeper file).

    Raises:
        DataError: the file is absent or broken, or has more than one channel.
    """
    with opened(file_name) as image:
        labels = np.array(image)
        if labels.ndim != 2 or labels.dtype.kind not in "ui":
            message = f"label maps have one integer channel, this is mode {image.mode}"
            raise Defect("map-malformed", message)
        return labels


def image_size_of(file_name: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width) of a picture as `read_image` returns it, from its header alone."""
    with opened(file_name) as image:
        width, height = image.size
        return (width, height) if _orientation(image) >= 5 else (height, width)


class Glance(NamedTuple):
    """What is seen of a picture that is decoded whole, but small."""

    size: tuple[int, int]  # (height, width), upright
    turned: bool  # whether its EXIF turns it upright
    grey: np.ndarray  # (side, side) uint8, upright


def glance_at(file_name: str | os.PathLike[str], side: int) -> Glance:
    """Decode a picture by the rules of `read_image`, faster where its format can shrink itself.

    Args:
        file_name: as there.
        side: of `Glance.grey`, in pixels.

    Raises:
        DataError: as there.
    """
    with opened(file_name) as image:
        width, height = image.size
        orientation = _orientation(image)
        image.draft("L", (4 * side, 4 * side))
        small = _to_8_bit(image)
        if "transparency" in small.info:
            small = small.convert("RGBA")
        small = small.convert("L").resize((side, side), Image.Resampling.BOX)
        if orientation != 1:
            small = small.transpose(_UPRIGHT[orientation])
        size = (width, height) if orientation >= 5 else (height, width)
        return Glance(size, orientation != 1, np.asarray(small))


def file_name_of(record: dict[str, Any]) -> str:
    """The image file of a record.

    Raises:
        DataError: the record names none.
    """
    if "file_name" not in record:
        raise DataError(f"a record has no file_name: {record!r:.200}")
    return record["file_name"]


def check_image_size(dataset_dict: dict[str, Any], image: np.ndarray) -> None:
    """Compare an image with its record; a record without a size gets the image's.

    Args:
        dataset_dict: a standard dict with `file_name`, maybe `height` and `width`.
        image: (H, W, ...), upright.

    Raises:
        DataError: the sizes differ.
    """
    height, width = image.shape[:2]
    known = dataset_dict.get("height", height), dataset_dict.get("width", width)
    compare_size(dataset_dict["file_name"], (height, width), known)
    dataset_dict["width"], dataset_dict["height"] = width, height


def compare_size(file_name: str, size: tuple[int, int], known: tuple[int, int]) -> None:
    """Refuse a picture whose (height, width) is not the one known from its record."""
    if known != size:
        raise Defect(
            "size-differs",
            f"{file_name}: the picture is {size[1]} x {size[0]} (width x height, upright), its "
            f"record says {known[1]} x {known[0]}; correct the annotation file",
            "width, height",
        )


def convert_image_to_rgb(image: np.ndarray, format: str) -> np.ndarray:
    """Turn an array in one of the input formats into (H, W, 3) uint8 RGB.

    Args:
        image: (H, W, C) or (H, W) as `read_image` returns it.
        format: the format it is in.
    """
    image = np.asarray(image)
    if format == "BGR":
        return np.ascontiguousarray(image[:, :, ::-1])
    if format == "YUV-BT.601":
        return np.clip(image @ _RGB_FROM_YUV.T * 255.0, 0, 255).round().astype(np.uint8)
    if format == "L":
        return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    if format == "RGB":
        return image
    raise DataError(f"image format must be one of {', '.join(FORMATS)}, is {format!r}")


@contextmanager
def opened(file_name: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """The open picture; whatever goes wrong with it becomes a DataError that names the file."""
    try:
        with Image.open(source_of(file_name)) as image:
            check_image(*image.size)
            yield image
    except FileNotFoundError:
        raise Defect("image-missing", f"image {file_name} does not exist", "file_name") from None
    except DataError as error:
        raise located(f"image {file_name}", error) from None
    except Image.DecompressionBombError as error:
        message = f"image {file_name} is refused: {error}"
        raise Defect("image-too-large", message, "file_name") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        reason = f"{type(error).__name__}: {error}"
        message = f"image {file_name} cannot be read ({reason})"
        raise Defect("image-unreadable", message, "file_name") from error


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # an unreadable EXIF block is no reason to lose the picture
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _upright(image: Image.Image) -> Image.Image:
    orientation = _orientation(image)
    return image if orientation == 1 else image.transpose(_UPRIGHT[orientation])


def _to_8_bit(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise _unreadable("floating-point pixels have no agreed range; convert it to 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.int64)  # "I;16", or "I" for 16 bits in older Pillow
    if values.min() < 0 or values.max() > 65535:
        raise _unreadable("pixels have more than 16 bits; convert it to 8 or 16 bits")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def _unreadable(message: str) -> Defect:
    return Defect("image-unreadable", message, "file_name")


def _to_array(image: Image.Image, format: str | None) -> np.ndarray:
    if format is None:
        return np.array(image)
    if "transparency" in image.info:  # a direct conversion of such palettes warns
        image = image.convert("RGBA")
    if format == "L":
        return np.array(image.convert("L"))[:, :, None]
    image = image if image.mode == "RGB" else image.convert("RGB")
    if format == "BGR":  # Pillow turns the channels round as it unpacks them
        pixels = np.frombuffer(bytearray(image.tobytes("raw", "BGR")), np.uint8)
        return pixels.reshape(image.height, image.width, 3)
    rgb = np.array(image)
    return rgb / 255.0 @ _YUV_FROM_RGB.T if format == "YUV-BT.601" else rgb
