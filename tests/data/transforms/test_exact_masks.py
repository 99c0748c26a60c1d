"""A mask that is augmented is the mask of the augmented image, but for pixels at its border."""

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segdet.data import transforms as T
from segdet.structures import polygons_to_bitmask

# Everything that moves pixels, with the (height, width) of the image.
MOVES = {
    "resize": lambda h, w: T.ResizeShortestEdge((30, 160), sample_style="range"),
    "stretch": lambda h, w: T.RandomResize([(50, 90), (100, 40)]),
    "flip": lambda h, w: T.RandomFlip(1.0),
    "flip up": lambda h, w: T.RandomFlip(1.0, horizontal=False, vertical=True),
    "crop": lambda h, w: T.RandomCrop("relative_range", (0.4, 0.4)),
    "crop by labels": lambda h, w: T.RandomCrop_CategoryAreaConstraint("relative", (0.6, 0.6), 0.8),
    "jitter": lambda h, w: T.AugmentationList(
        [T.ResizeScale(0.4, 2.0, h, w), T.FixedSizeCrop((64, 64), pad_value=0, seg_pad_value=9)]
    ),
    "rotation": lambda h, w: T.RandomRotation((-180, 180)),
    "rotation in place": lambda h, w: T.RandomRotation((-40, 40), expand=False),
    "extent": lambda h, w: T.RandomExtent((0.5, 1.5), (0.4, 0.4)),
}
HEIGHTS = st.integers(48, 90)


def blob(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(n, 2) corners of a star without spikes, parts of which may lie outside."""
    angle = np.linspace(0, 2 * np.pi, int(rng.integers(5, 12)), endpoint=False)
    radius = rng.uniform(0.7, 1.0, len(angle)) * rng.uniform(12, 30)
    middle = rng.uniform(0.1, 0.9, 2) * [width, height]
    return middle + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)


def grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    """What is at most that far, along each axis, from a mask; what is outside is not in it."""
    padded = np.pad(mask, pixels)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * pixels + 1,) * 2)
    return windows.any((2, 3))


def border(mask: np.ndarray, pixels: int) -> np.ndarray:
    return grown(mask, pixels) & grown(~mask, pixels)


def check(augmentation: T.Augmentation, height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    outline = blob(rng, height, width)
    mask = polygons_to_bitmask([outline.reshape(-1)], height, width)
    aug_input = T.AugInput(np.repeat(mask[:, :, None], 3, 2) * np.uint8(255), sem_seg=mask * 1)
    np.random.seed(seed)
    transform = augmentation(aug_input)
    seen = aug_input.image[:, :, 0] >= 128
    outlines = transform.apply_polygons([outline.copy()])
    drawn = polygons_to_bitmask([part.reshape(-1) for part in outlines], *seen.shape)
    moved = aug_input.sem_seg == 1
    # One pixel of the image before is several behind an enlargement.
    corners = transform.apply_coords(np.array([[0.0, 0], [1, 0], [0, 1]]))
    enlarged = np.linalg.norm(corners[1:] - corners[0], axis=1).max()
    pixels = max(1, math.ceil(enlarged))
    for one in (drawn, moved):
        wrong = (one != seen) & ~border(one, pixels) & ~border(seen, pixels)
        assert not wrong.any(), f"{wrong.sum()} pixels away from the border, by {transform}"


@pytest.mark.parametrize("name", MOVES)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(height=HEIGHTS, width=HEIGHTS, seed=st.integers(0, 1 << 20))
def test_one_after_the_other(name, height, width, seed):
    check(MOVES[name](height, width), height, width, seed)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    names=st.lists(st.sampled_from(sorted(MOVES)), min_size=2, max_size=3),
    height=HEIGHTS,
    width=HEIGHTS,
    seed=st.integers(0, 1 << 20),
)
def test_several_in_a_row(names, height, width, seed):
    # Each step may round by a pixel of its own: the coarsest image of the row is what counts.
    steps = [MOVES[name](height, width) for name in names if name not in ("jitter", "resize")]
    check(T.AugmentationList([*steps, T.RandomFlip(0.5)]), height, width, seed)


def albumentations_moves() -> list:
    package = pytest.importorskip("albumentations")
    return [
        T.AlbumentationsAdapter(one)
        for one in (
            package.HorizontalFlip(p=1),
            package.Rotate((20, 70), p=1),
            package.RandomCrop(40, 40, p=1),
            package.Affine(scale=(0.7, 1.3), shear=(-10, 10), p=1),
        )
    ]


def torchvision_moves() -> list:
    package = pytest.importorskip("torchvision.transforms.v2")
    return [
        T.TorchvisionAdapter(one)
        for one in (
            package.RandomHorizontalFlip(1.0),
            package.RandomRotation((20, 70)),
            package.RandomResizedCrop((60, 60), (0.4, 1.0)),
            package.RandomAffine((-30, 30), (0.1, 0.2), (0.7, 1.3)),
        )
    ]


@pytest.mark.parametrize("moves", [albumentations_moves, torchvision_moves])
def test_adapters(moves):
    for augmentation in moves():
        for seed in range(6):
            check(augmentation, 60 + seed, 80 - seed, seed)


@pytest.mark.parametrize(
    "adapter, package",
    [(T.AlbumentationsAdapter, "albumentations"), (T.TorchvisionAdapter, "torchvision")],
)
def test_an_adapter_tells_what_it_lacks(adapter, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(Exception, match=f"needs {package}"):
        adapter(None)


def test_colours_of_adapters_are_drawn_from_numpys_generator():
    color = pytest.importorskip("torchvision.transforms.v2").ColorJitter(0.5)
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)

    def draw(seed: int) -> np.ndarray:
        np.random.seed(seed)
        return T.TorchvisionAdapter(color).get_transform(image).apply_image(image)

    assert (draw(1) == draw(1)).all() and (draw(1) != draw(2)).any()
