from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.planted_defects import random_picture
from segdet.data.check.findings import Checked, Picture
from segdet.data.check.pictures import check_pictures
from segdet.data.image_io import glance_at, read_image
from segdet.errors import DataError


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def check(folder: Path, sets: dict[str, list[str]]) -> list[tuple[str, str, str]]:
    checks = [
        Checked(name, pictures=[Picture(one, str(folder / one), None) for one in files])
        for name, files in sets.items()
    ]
    check_pictures(checks, 1)
    return [(checked.name, f.kind, f.record) for checked in checks for f in checked.findings]


def test_pictures_that_show_the_same_are_found(tmp_path: Path, rng: np.random.Generator):
    one = random_picture(rng).resize((480, 360), Image.Resampling.BICUBIC)
    one.save(tmp_path / "a.png")
    one.save(tmp_path / "a.jpg", quality=40)
    one.resize((200, 150)).save(tmp_path / "small.png")
    one.point(lambda v: v * 0.9 + 10).save(tmp_path / "paler.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    for i in range(3):
        random_picture(rng).save(tmp_path / f"{i}.png")
    found = check(
        tmp_path,
        {
            "train": ["0.png", "a.png", "1.png", "copy.png", "small.png"],
            "val": ["2.png", "a.jpg", "copy.png", "paler.png"],
        },
    )
    assert sorted(found) == [
        ("train", "image-nearly-twice", "small.png"),
        ("train", "image-twice", "copy.png"),
        ("val", "image-in-two-sets", "a.jpg"),
        ("val", "image-in-two-sets", "copy.png"),
        ("val", "image-in-two-sets", "paler.png"),
        ("val", "image-nearly-twice", "paler.png"),
    ]


def test_pictures_that_show_nothing_are_not_compared(tmp_path: Path):
    for i in range(3):
        Image.new("RGB", (40, 30), (i, i, i)).save(tmp_path / f"{i}.png")
    assert check(tmp_path, {"train": ["0.png", "1.png"], "val": ["2.png"]}) == []


def test_many_pictures_are_all_compared(tmp_path: Path, rng, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("segdet.data.check.pictures._ROWS", 3)
    for i in range(10):
        random_picture(rng).save(tmp_path / f"{i}.png")
    Image.open(tmp_path / "8.png").save(tmp_path / "again.jpg", quality=90)
    names = [f"{i}.png" for i in range(10)]
    found = check(tmp_path, {"train": [*names, "again.jpg"]})
    assert found == [("train", "image-nearly-twice", "again.jpg")]


def test_a_glance_takes_and_refuses_what_reading_does(shared_data: Path):
    for file in sorted((shared_data / "nasty" / "images").iterdir()):
        try:
            image = read_image(file, "L")[:, :, 0]
        except DataError as error:
            with pytest.raises(DataError) as caught:
                glance_at(file, 32)
            assert str(caught.value) == str(error)
            continue
        glance = glance_at(file, 8)
        assert glance.size == image.shape
        if min(image.shape) > 8:
            small = Image.fromarray(image).resize((8, 8), Image.Resampling.BOX)
            assert np.abs(np.asarray(small).astype(int) - glance.grey).max() <= 12
