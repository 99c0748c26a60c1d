import struct
import tracemalloc
import zlib
from pathlib import Path

import pytest
from PIL import Image

from segdet.data.detection_utils import read_image
from segdet.data.image_io import image_size_of
from segdet.data.limits import IMAGE_PIXELS, JSON_BYTES, limit
from segdet.data.readers.cityscapes import read_json
from segdet.data.readers.coco_json import read_coco_json
from segdet.data.readers.pascal_voc import parse_xml
from segdet.errors import ConfigError, DataError


def header_of(path: Path, width: int, height: int) -> None:
    """A PNG that says it is so large, and holds nothing."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body + b"\0\0\0\0IDAT" + b"\x35\xaf\x06\x1e")


@pytest.mark.parametrize("width, height", [(20_000, 10_000), (60_000, 60_000), (2**31 - 1, 1)])
@pytest.mark.parametrize("read", [read_image, image_size_of])
def test_bombs_are_refused_from_the_header(tmp_path, width, height, read):
    header_of(tmp_path / "bomb.png", width, height)
    before = Image.MAX_IMAGE_PIXELS
    tracemalloc.start()
    with pytest.raises(DataError, match=r"bomb.png"):
        read(tmp_path / "bomb.png")
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
    assert before == Image.MAX_IMAGE_PIXELS


def test_the_limits_can_be_set(tmp_path, monkeypatch):
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    (tmp_path / "a.json").write_text('{"images": [], "categories": [], "annotations": []}')
    assert read_image(tmp_path / "a.png").shape == (10, 20, 3)
    assert read_coco_json(tmp_path / "a.json", "").records == []
    monkeypatch.setenv(IMAGE_PIXELS, "199")
    monkeypatch.setenv(JSON_BYTES, "40")
    with pytest.raises(DataError, match=r"a.png: has 20 x 10 pixels, more than SEGDET_.* 199"):
        read_image(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a.json: has 5\d bytes, more than SEGDET_.* 40"):
        read_coco_json(tmp_path / "a.json", "")


@pytest.mark.parametrize("text", ["0", "-1", "many", "1e9"])
def test_a_limit_is_a_positive_number(monkeypatch, text):
    monkeypatch.setenv(IMAGE_PIXELS, text)
    with pytest.raises(ConfigError, match=f"{IMAGE_PIXELS} must be a number >= 1, is '{text}'"):
        limit(IMAGE_PIXELS)


@pytest.mark.parametrize("read", [parse_xml, read_json])
def test_every_annotation_file_has_a_limit(tmp_path, monkeypatch, read):
    (tmp_path / "a.txt").write_text("[" * 41)
    monkeypatch.setenv(JSON_BYTES, "40")
    with pytest.raises(DataError, match=r"a.txt: has 41 bytes, more than SEGDET_.* 40"):
        read(tmp_path / "a.txt")
