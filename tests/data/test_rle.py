import numpy as np
import pycocotools.mask as mask_util
import pytest

from segdet.data.rle import decode_rle, rle_runs, tight_box
from segdet.errors import DataError


@pytest.mark.parametrize("seed", range(20))
def test_decodes_what_pycocotools_encodes(seed):
    rng = np.random.default_rng(seed)
    height, width = (int(v) for v in rng.integers(1, 60, 2))
    mask = (rng.random((height, width)) < rng.random()).astype(np.uint8)
    rle = mask_util.encode(np.asfortranarray(mask))
    text = {"size": [height, width], "counts": rle["counts"].decode()}
    runs = {"size": [height, width], "counts": rle_runs(rle).tolist()}
    for form in (rle, text, runs):
        assert (decode_rle(form) == mask).all()


def test_long_runs_take_several_characters():
    mask = np.zeros((2000, 3000), np.uint8)
    mask[100:1900, 1500:1600] = 1
    rle = mask_util.encode(np.asfortranarray(mask))
    assert (decode_rle(rle) == mask).all()


@pytest.mark.parametrize(
    "rle, message",
    [
        ({"counts": [4]}, "size must be"),
        ({"size": [2], "counts": [4]}, "size must be"),
        ({"size": [2, -2], "counts": [4]}, "size must be"),
        ({"size": [2, 2.0], "counts": [4]}, "size must be"),
        ({"size": [2, 2]}, "counts must be a string or a list"),
        ({"size": [2, 2], "counts": []}, "counts must be a string or a list"),
        ({"size": [2, 2], "counts": [1.5, 2.5]}, "counts must be a string or a list"),
        ({"size": [2, 2], "counts": ["4"]}, "counts must be a string or a list"),
        ({"size": [2, 2], "counts": [[4]]}, "counts must be a string or a list"),
        ({"size": [2, 2], "counts": [5, -1]}, "must be >= 0, hold -1"),
        ({"size": [2, 2], "counts": [2, 1000000]}, "sum to 1000002, .* has 4 pixels"),
        ({"size": [2, 2], "counts": [3]}, "sum to 3"),
        ({"size": [2, 2], "counts": ""}, "not a COCO RLE string"),
        ({"size": [2, 2], "counts": "~~~~"}, "not a COCO RLE string"),
        ({"size": [2, 2], "counts": "é"}, "characters"),
        ({"size": [2, 2], "counts": "T"}, "not a COCO RLE string"),
        ({"size": [2, 2], "counts": "oooooooooo0"}, "more than 35 bits"),
    ],
)
def test_refuses(rle, message):
    with pytest.raises(DataError, match=message):
        rle_runs(rle)


def test_tight_box():
    mask = np.zeros((5, 7), bool)
    assert tight_box(mask) is None
    mask[1, 2] = mask[3, 6] = True
    assert tight_box(mask) == (2, 1, 7, 4)
