import numpy as np
import pycocotools.mask as mask_api
import pytest
import torch

from segdet.evaluation.rle import count_pixels, encode_masks


def random_masks(number: int, height: int, width: int) -> torch.Tensor:
    """From empty to full."""
    return torch.rand(number, height, width) < torch.linspace(0, 1, number)[:, None, None]


@pytest.mark.parametrize("number, height, width", [(9, 37, 53), (1, 1, 1), (3, 200, 1)])
def test_decoding_gives_the_masks_back(number, height, width):
    masks = random_masks(number, height, width)
    rles = encode_masks(masks)
    assert all(rle["size"] == [height, width] and type(rle["counts"]) is str for rle in rles)
    decoded = np.stack([mask_api.decode(rle) for rle in rles])
    np.testing.assert_array_equal(decoded, masks.numpy())


def test_no_masks_give_no_rles():
    assert encode_masks(torch.zeros(0, 4, 5, dtype=torch.bool)) == []


def test_pixels_of_sound_strings_are_counted():
    masks = random_masks(600, 31, 17)  # more than are counted at once
    counts = [rle["counts"] for rle in encode_masks(masks)]
    assert (count_pixels(counts) == 31 * 17).all()
    assert count_pixels([]).shape == (0,)


@pytest.mark.parametrize("broken", ["", "abc", "~~~~", "ÿ", "图", "o" * 23, "P", "1 2"])
def test_broken_strings_are_found_and_leave_their_neighbours_alone(broken):
    good = encode_masks(torch.eye(40, dtype=torch.bool)[None])[0]["counts"]
    assert count_pixels([good, broken, good]).tolist() == [1600, -1, 1600]


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_string_never_passes_for_whole(seed):
    rng = np.random.default_rng(seed)
    good = encode_masks(random_masks(8, 20, 30))[5]["counts"]
    for _ in range(50):
        cut = rng.integers(1, len(good))
        count = count_pixels([good[:cut]])[0]
        assert count < 600  # -1, or fewer pixels
