import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from segdet.report.analysis import analyses_of
from segdet.report.gallery import Sources, choose, gallery_of, outcomes_of, outline, picture
from segdet.report.run import read_run
from segdet.report.tested import read_tested
from segdet.structures import polygons_to_bitmask


def test_an_outline_is_the_mask():
    ys, xs = np.mgrid[:60, :80]
    ring = ((xs - 40) ** 2 + (ys - 30) ** 2 < 500) & ((xs - 40) ** 2 + (ys - 30) ** 2 > 120)
    ring[5:20, 2:12] = True  # and a part of its own
    path = outline(ring, (60, 80))
    assert re.fullmatch(r"(M[\d ]+z){3}", path)
    loops = [np.array(part.split(), float) for part in re.findall(r"M([\d ]+)z", path)]
    drawn = sum(polygons_to_bitmask([loop], 60, 80).astype(int) for loop in loops) % 2 == 1
    assert (drawn & ring).sum() / (drawn | ring).sum() > 0.93
    assert len(path) < 500  # no stairs


def test_an_outline_is_drawn_in_the_size_of_the_picture():
    mask = np.zeros((100, 50), np.uint8)
    mask[20:60, 10:30] = 1
    numbers = outline(mask, (50, 25)).strip("Mz").split()
    corners = set(zip(numbers[::2], numbers[1::2], strict=True))
    assert corners == {("5", "10"), ("15", "10"), ("15", "30"), ("5", "30")}
    assert outline(mask * 0, (50, 25)) == ""


@pytest.mark.parametrize("most_bytes", [100_000, 3_000, 1])
def test_a_picture_fits_its_share_of_the_page(tmp_path, most_bytes):
    noise = np.random.default_rng(0).integers(0, 255, (800, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    source, size = picture(str(tmp_path / "noise.png"), most_bytes)
    data = base64.b64decode(source.removeprefix("data:image/jpeg;base64,"))
    with Image.open(io.BytesIO(data)) as image:
        assert (image.height, image.width) == size and max(size) <= 640
    assert len(data) <= most_bytes or max(size) < 64


@pytest.fixture
def tested(run_folder):
    return read_tested(read_run(run_folder))


def test_chooses_the_worst_the_best_and_random_ones(tested):
    ((analysis,),) = analyses_of([tested]).values()
    outcomes = outcomes_of(analysis)
    picks = choose(*outcomes, 6)
    assert sorted(picks) == list(range(6))
    words = [word for own in picks.values() for word in own]
    assert words.count("worst") == words.count("best") == 2
    right, wrong, there = outcomes
    mistakes = np.isin(analysis.errors.kind, range(1, 6))  # neither right nor ignored
    assert (right == there).all() and wrong.sum() == mistakes.sum()
    worst, best = ([i for i, own in picks.items() if name in own] for name in ("worst", "best"))
    assert wrong[worst].sum() > wrong[best].sum()
    assert len(choose(*outcomes, 3)) == 3 and choose(*outcomes, 0) == {}


def test_the_gallery_draws_what_was_found_and_what_is_there(tested):
    ((analysis,),) = analyses_of([tested]).values()
    sources = Sources(6)
    gallery = gallery_of(tested, [analysis, None], 6, sources)
    assert gallery is not None and len(gallery["pictures"]) == len(sources.pictures) == 6
    kinds = {kind["key"] for kind in gallery["kinds"]}
    for one in gallery["pictures"]:
        found, nothing = one["runs"]
        assert nothing == [] and {row["k"] for row in found} <= kinds
        assert [row["n"] for row in found] == list(range(len(found)))
        for row in found:
            x, y, width, height = row["b"]
            assert x >= 0 and x + width <= one["width"] + 1 and y + height <= one["height"] + 1
            assert row["k"] != "correct" or one["truth"][row["g"]]["c"] == row["c"]
        assert all(row["p"].startswith("M") for row in one["truth"])
    assert sum(len(one["truth"]) for one in gallery["pictures"]) == len(tested.truth)


def test_there_is_no_gallery_where_no_picture_can_be_read(tested):
    ((analysis,),) = analyses_of([tested]).values()
    tested.files[:] = [f"{file}.gone" for file in tested.files]
    assert gallery_of(tested, [analysis], 6, Sources(6)) is None
