"""How large the files of a data set may be; environment variables say otherwise."""

from __future__ import annotations

import os
from pathlib import Path

from segdet.data.defects import Defect
from segdet.errors import ConfigError

IMAGE_PIXELS = "SEGDET_MAX_IMAGE_PIXELS"
JSON_BYTES = "SEGDET_MAX_JSON_BYTES"
# Pillow refuses twice its MAX_IMAGE_PIXELS, this many; the largest of the known sets has 1.1 GB.
DEFAULTS = {IMAGE_PIXELS: 178_956_970, JSON_BYTES: 4 << 30}


def limit(name: str) -> int:
    """The value of one of `DEFAULTS`, or of the environment variable of that name.

    Raises:
        ConfigError: the variable is no positive whole number.
    """
    text = os.environ.get(name, "")
    if not text:
        return DEFAULTS[name]
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"the environment variable {name} must be a number >= 1, is {text!r}")
    return int(text)


def check_image(width: int, height: int) -> None:
    """Refuse a picture by what its header says, before it is decoded.

    Raises:
        Defect: it has too many pixels.
    """
    if width * height > limit(IMAGE_PIXELS):
        message = f"has {width} x {height} pixels, more than {IMAGE_PIXELS} = {limit(IMAGE_PIXELS)}"
        raise Defect("image-too-large", message, "file_name")


def check_file(file: Path) -> None:
    """Refuse an annotation file by its size, before it is read.

    Raises:
        Defect: it is too large.
        OSError: it cannot be found.
    """
    size = file.stat().st_size
    if size > limit(JSON_BYTES):
        message = f"has {size} bytes, more than {JSON_BYTES} = {limit(JSON_BYTES)}"
        raise Defect("file-unreadable", message)
