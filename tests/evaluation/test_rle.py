import numpy as np
import pycocotools.mask as mask_api
import pytest
import torch

from segdet.evaluation.rle import count_pixels, encode_masks


def random_masks(number: int, height: int, width: int) -> torch.Tensor:
    """From empty to full."""
    return torch.rand(number, height, width) < torch.linspace(0, 1, number)[:, None, None]


def by_pycocotools(masks: torch.Tensor) -> list[dict]:
    columns = np.asfortranarray(masks.numpy().astype(np.uint8).transpose(1, 2, 0))
    return [
        {"size": rle["size"], "counts": rle["counts"].decode()} for rle in mask_api.encode(columns)
    ]


@pytest.mark.parametrize(
    "number, height, width", [(40, 37, 53), (2, 1, 1), (30, 3, 4), (9, 200, 1), (9, 1, 200)]
)
def test_strings_are_those_of_pycocotools(number, height, width):
    masks = random_masks(number, height, width)
    assert encode_masks(masks) == by_pycocotools(masks)
    columns = torch.rand(number, 1, width).gt(0.5).expand(-1, height, -1)  # runs beyond columns
    assert encode_masks(columns) == by_pycocotools(columns)
    assert encode_masks(masks.byte() * 7) == by_pycocotools(masks)


def test_an_object_in_a_corner_or_nowhere():
    masks = torch.zeros(3, 6, 7, dtype=torch.bool)
    masks[0, :2, :3] = masks[1, 4:, 5:] = True
    assert encode_masks(masks) == by_pycocotools(masks)


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
