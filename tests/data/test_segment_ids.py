import numpy as np
import pytest
from PIL import Image

from segdet.data.segment_ids import (
    id2rgb,
    read_segment_ids,
    rgb2id,
    segments_of_labels,
    write_segment_ids,
)
from segdet.errors import DataError

IDS = np.array([[0, 1, 255], [256, 65535, 65536], [256**3 - 1, 7, 1_000_000]])


def test_ids_are_written_and_read_back(tmp_path):
    assert id2rgb(np.array(1 + 2 * 256 + 3 * 65536)).tolist() == [1, 2, 3]
    write_segment_ids(tmp_path / "ids.png", IDS)
    assert np.asarray(Image.open(tmp_path / "ids.png"))[1, 0].tolist() == [0, 1, 0]
    read = read_segment_ids(tmp_path / "ids.png")
    assert read.dtype == np.int32
    np.testing.assert_array_equal(read, IDS)


@pytest.mark.parametrize("ids", [[-1, 4], [0, 256**3]])
def test_ids_beyond_three_bytes_are_refused(ids):
    with pytest.raises(DataError, match=r"segment ids must be in \[0, 16777216\), .* they are in"):
        id2rgb(np.array(ids))
    with pytest.raises(DataError, match="segment ids must be integers, are float64"):
        id2rgb(np.zeros(3))


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_other_pictures_of_exact_colours_mean_the_same(tmp_path, mode):
    picture = Image.fromarray(id2rgb(IDS)).convert(mode, palette=Image.Palette.ADAPTIVE)
    if mode == "RGBA":
        picture.putalpha(17)
    picture.save(tmp_path / "ids.png")
    np.testing.assert_array_equal(read_segment_ids(tmp_path / "ids.png"), IDS)


def test_broken_pictures_are_named(shared_data, tmp_path):
    folder = shared_data / "nasty/panoptic"
    with pytest.raises(DataError, match=r"absent.png does not exist"):
        read_segment_ids(folder / "absent.png")
    Image.new("L", (4, 4)).save(tmp_path / "grey.png")
    with pytest.raises(DataError, match=r"grey.png: .* hold ids as RGB, this is mode L"):
        read_segment_ids(tmp_path / "grey.png")


def test_real_pictures(shared_data):
    folder = shared_data / "coco_panoptic_sample/annotations/panoptic_examples"
    for file in sorted(folder.glob("*.png")):
        rgb = np.asarray(Image.open(file))
        ids = read_segment_ids(file)
        np.testing.assert_array_equal(id2rgb(ids), rgb)
        np.testing.assert_array_equal(rgb2id(rgb), rgb.astype(int) @ [1, 256, 65536])


def test_values_of_bottom_up_models_say_their_segments():
    labels = np.array([[-1, 7000, 7001], [3000, 7001, -1]])
    ids, segments = segments_of_labels(labels, 1000, [7])
    assert ids.tolist() == [[0, 7001, 7002], [3001, 7002, 0]]
    assert segments == [
        {"id": 3001, "category_id": 3, "isthing": False},
        {"id": 7001, "category_id": 7, "isthing": True},
        {"id": 7002, "category_id": 7, "isthing": True},
    ]
