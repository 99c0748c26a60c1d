from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdet.data import transforms as T
from segdet.data.image_io import (
    check_image_size,
    convert_image_to_rgb,
    image_size_of,
    read_image,
    read_labels,
)
from segdet.errors import DataError

# nasty/README.md, picture by picture. Text: the error, besides the file's name.
REFUSED = {
    "truncated_half.jpg": "truncated",
    "truncated_tail.jpg": "truncated",
    "truncated_header.jpg": "Truncated",
    "truncated.png": "truncated",
    "zero_byte.jpg": "cannot be read",
    "text.jpg": "cannot be read",
    "float32.tif": "floating-point pixels",
    "bomb_header.png": "refused: .*pixels",
    "bomb_real.png": "refused: .*pixels",
    "bomb_header.jpg": "refused: .*pixels",
}
DAMAGED = {"corrupt_middle.jpg", "bad_crc.png"}  # any picture, or an error
SIZES = {"1x1.png": (1, 1), "w1_h5000.png": (5000, 1), "w5000_h1.png": (1, 5000)}
# Read as the photo of that name (its first letter's worth of noise apart).
LIKE = {
    "png_named.jpg": "ok_1.jpg",
    "jpg_named.png": "ok_1.jpg",
    "cmyk.jpg": "ok_1.jpg",
    "progressive.jpg": "ok_1.jpg",
    "rgb16.png": "ok_1.jpg",
    "rgba.png": "ok_1.jpg",
    "palette.png": "ok_1.jpg",
    "palette_transparent.png": "ok_1.jpg",
    "photo.bmp": "ok_1.jpg",
    "photo.webp": "ok_1.jpg",
    "animated.gif": "ok_1.jpg",
    "multipage.tif": "ok_1.jpg",
    "exif_invalid_9.jpg": "ok_2.jpg",
    "exif_garbage.jpg": "ok_2.jpg",
    "näme with späce 图.jpg": "ok_3.jpg",
    "ok_1.jpg": "ok_1.jpg",
    "ok_2.jpg": "ok_2.jpg",
    "ok_3.jpg": "ok_3.jpg",
}
GREY = {"gray.jpg", "gray16.png", "gray8.png", "gray_alpha.png", "bilevel.png"}
EXIF = {f"exif_{orientation}.jpg" for orientation in range(1, 9)}


def test_tables_cover_every_nasty_picture(nasty: Path):
    files = {file.name for file in (nasty / "images").iterdir()}
    assert files == REFUSED.keys() | DAMAGED | SIZES.keys() | LIKE.keys() | GREY | EXIF


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(nasty: Path, name: str):
    start = time.process_time()
    with pytest.raises(DataError, match=f"{name}.*{REFUSED[name]}"):
        read_image(nasty / "images" / name, "BGR")
    assert time.process_time() - start < 5


@pytest.mark.parametrize("name", sorted(DAMAGED))
def test_damaged_gives_a_picture_or_names_the_file(nasty: Path, name: str):
    try:
        image = read_image(nasty / "images" / name, "BGR")
    except DataError as error:
        assert name in str(error)
    else:
        assert image.shape == (120, 160, 3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", LIKE)
def test_reads_as_the_photo_itself(nasty: Path, name: str):
    image = read_image(nasty / "images" / name, "RGB")
    photo = read_image(nasty / "images" / LIKE[name], "RGB")
    assert image.shape == (120, 160, 3) and image.dtype == np.uint8 and image.flags.c_contiguous
    assert np.abs(image.astype(int) - photo).mean() < 16  # palettes are coarse
    assert np.abs(image.mean((0, 1)) - photo.mean((0, 1))).max() < 3


@pytest.mark.parametrize("name", sorted(GREY))
def test_grey_becomes_three_equal_channels(nasty: Path, name: str):
    image = read_image(nasty / "images" / name, "RGB")
    assert image.shape == (120, 160, 3)
    assert (image == image[:, :, :1]).all()
    assert image.min() < 30 and image.max() > 225 and abs(image.mean() - 181) < 2


def test_sixteen_bits_are_scaled(nasty: Path):
    deep = read_image(nasty / "images" / "gray16.png", "L").astype(int)
    assert np.abs(deep - read_image(nasty / "images" / "gray8.png", "L")).max() <= 1


@pytest.mark.parametrize("name", sorted(EXIF))
def test_exif_turns_upright(nasty: Path, name: str):
    image = read_image(nasty / "images" / name, "RGB").astype(int)
    assert image.shape == (120, 160, 3)
    assert image_size_of(nasty / "images" / name) == (120, 160)
    red, blue = image[5, 5], image[-6, -6]
    assert red[0] > 200 and red[2] < 60, "red block top left"
    assert blue[2] > 200 and blue[0] < 60, "blue block bottom right"


@pytest.mark.parametrize("name", SIZES)
def test_thin_pictures_keep_a_pixel_after_the_resize(nasty: Path, name: str):
    image = read_image(nasty / "images" / name, "BGR")
    assert image.shape[:2] == SIZES[name]
    resized, _ = T.apply_augmentations([T.ResizeShortestEdge(800, 1333)], image)
    assert min(resized.shape[:2]) >= 1 and max(resized.shape[:2]) <= 1333


def test_formats(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png") == pixels).all()
    assert (read_image(tmp_path / "a.png", "RGB") == pixels).all()
    assert (read_image(tmp_path / "a.png", "BGR") == pixels[:, :, ::-1]).all()
    assert read_image(tmp_path / "a.png", "L").shape == (6, 7, 1)
    yuv = read_image(tmp_path / "a.png", "YUV-BT.601")
    np.testing.assert_allclose(yuv[..., 0], pixels @ [0.299, 0.587, 0.114] / 255, atol=1e-9)
    for format in ("RGB", "BGR", "YUV-BT.601"):
        image = read_image(tmp_path / "a.png", format)
        assert (convert_image_to_rgb(image, format) == pixels).all()
    with pytest.raises(DataError, match="must be one of BGR, RGB"):
        read_image(tmp_path / "a.png", "BRG")


def test_missing_file_and_folder_are_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"nope\.jpg does not exist"):
        read_image(tmp_path / "nope.jpg", "BGR")
    with pytest.raises(DataError, match=r"cannot be read \(IsADirectoryError"):
        read_image(tmp_path, "BGR")


def test_check_image_size_names_file_and_both_sizes():
    record = {"file_name": "a.jpg", "width": 160, "height": 120}
    check_image_size(record, np.zeros((120, 160, 3)))
    with pytest.raises(DataError, match=r"a\.jpg: .* is 120 x 160 .* says 160 x 120"):
        check_image_size(record, np.zeros((160, 120, 3)))
    record = {"file_name": "a.jpg"}
    check_image_size(record, np.zeros((120, 160, 3)))
    assert record["width"] == 160 and record["height"] == 120


def test_labels_are_indices_not_colours(tmp_path: Path):
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    image = Image.fromarray(labels)
    image.save(tmp_path / "grey.png")
    image.putpalette(list(range(255, -1, -1)) * 3)
    image.save(tmp_path / "palette.png")
    assert (read_labels(tmp_path / "grey.png") == labels).all()
    assert (read_labels(tmp_path / "palette.png") == labels).all()
    image.convert("RGB").save(tmp_path / "rgb.png")
    with pytest.raises(DataError, match=r"rgb\.png.*one integer channel.*RGB"):
        read_labels(tmp_path / "rgb.png")
