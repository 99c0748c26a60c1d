"""COCO's compressed run lengths, many at a time: masks in, and a check of others' strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_api
import torch
from torch import Tensor

from segdet.evaluation.label_maps import boundary_of, boundary_width

_AT_ONCE = 256  # strings: keeps the check's arrays within the caches
_LONGEST = 7  # characters a number: 35 bits, more than any image has pixels


def encode_masks(masks: Tensor) -> list[dict]:
    """Encode masks as COCO's compressed RLE, ready for json.

    Args:
        masks: (N, H, W) bool, or numbers whose non-zero pixels belong to the object.

    Returns:
        N dicts {"size": [H, W], "counts": str}.
    """
    pixels = masks.detach().cpu().bool().numpy()
    has_pixels = np.any(pixels, axis=2)  # (N, H)
    runs = map(_runs, pixels, has_pixels)
    return [compress(one.tolist(), pixels.shape[1], pixels.shape[2]) for one in runs]


def edge_of(rle: Any) -> dict[str, Any]:
    """The inner edge of a mask, 2% of the image's diagonal wide.

    Source: Boundary IoU (Cheng et al. 2021, arXiv:2103.16562), section 4.

    Args:
        rle: compressed.

    Returns:
        The edge, likewise.
    """
    pixels = mask_api.decode(rle)  # (H, W) uint8
    x, y, width, height = (int(side) for side in mask_api.toBbox(rle))
    window = np.s_[y : y + height, x : x + width]  # around it all is 0, as beyond the image
    pixels[window] = boundary_of(pixels[window], boundary_width(*pixels.shape))
    return encode_masks(torch.from_numpy(pixels)[None])[0]


def compress(runs: list[int], height: int, width: int) -> dict[str, Any]:
    """COCO's compressed RLE {"size", "counts": str} of run lengths that fill the image."""
    size = [height, width]
    rle: Any = mask_api.frPyObjects({"size": size, "counts": runs}, height, width)  # type: ignore[arg-type]
    return {"size": size, "counts": rle["counts"].decode("ascii")}


def _runs(mask: np.ndarray, has_pixels: np.ndarray) -> np.ndarray:
    """Lengths of the runs of 0 and 1 in turn, column by column; only the object is looked at.

    Args:
        mask: (H, W) bool.
        has_pixels: (H,) bool, of its rows.
    """
    height = len(mask)
    rows = np.flatnonzero(has_pixels)
    if len(rows) == 0:
        return np.array([mask.size])
    top, bottom = rows[0], rows[-1] + 1
    columns = np.flatnonzero(mask[top:bottom].any(0))
    left, right = columns[0], columns[-1] + 1
    window = np.zeros((right - left, bottom - top + 2), np.int8)  # a 0 before and after columns
    window[:, 1:-1] = mask[top:bottom, left:right].T
    column, row = np.nonzero(np.diff(window, axis=1))
    changes = (column + left) * height + row + top  # begin, end, begin, end, ...
    if bottom - top == height:  # a run may go on in the next column
        meets = 2 * np.flatnonzero(changes[1:-1:2] == changes[2::2]) + 1
        changes = np.delete(changes, np.concatenate([meets, meets + 1]))
    runs = np.diff(changes, prepend=0, append=mask.size)
    return runs if runs[-1] else runs[:-1]


def count_pixels(strings: Sequence[str]) -> np.ndarray:
    """Count the pixels, set or not, that RLE strings span: H * W where one is sound.

    Source: rleFrString in cocoapi's maskApi.c. `segdet.data.rle.rle_runs` takes one string and
    says what is wrong with it; this takes 100 000 in the time that needs for 5000.

    Args:
        strings: the "counts" of N compressed RLEs.

    Returns:
        (N,) int64; -1 where a string is malformed (foreign character, cut short, negative run).
    """
    parts = [strings[i : i + _AT_ONCE] for i in range(0, len(strings), _AT_ONCE)]
    return np.concatenate([np.zeros(0, np.int64), *map(_count_pixels, parts)])


def _count_pixels(strings: Sequence[str]) -> np.ndarray:
    encoded = [s.encode() for s in strings]
    lengths = np.array([len(s) for s in encoded], dtype=np.int64)
    codes = np.frombuffer(b"".join(encoded), dtype=np.uint8).astype(np.int64) - 48
    malformed = lengths == 0
    if len(codes) == 0:
        return np.where(malformed, -1, 0)
    owner = np.repeat(np.arange(len(strings)), lengths)  # string of each character
    malformed[owner[(codes < 0) | (codes > 63)]] = True

    ends_number = (codes & 0x20) == 0
    ends_string = np.cumsum(lengths)[lengths > 0] - 1
    malformed[owner[ends_string[~ends_number[ends_string]]]] = True
    ends_number[ends_string] = True

    ends = np.flatnonzero(ends_number)
    starts = np.concatenate([[0], ends[:-1] + 1])
    digits = ends - starts + 1
    owner = owner[ends]  # string of each number
    malformed[owner[digits > _LONGEST]] = True
    place = np.minimum(np.arange(len(codes)) - np.repeat(starts, digits), _LONGEST)
    numbers = np.add.reduceat((codes & 0x1F) << (5 * place), starts)
    is_negative = (codes[ends] & 0x10) != 0
    numbers -= np.where(is_negative, 1 << (5 * np.minimum(digits, _LONGEST)), 0)

    runs = _undo_differences(numbers, owner)
    malformed[owner[runs < 0]] = True
    totals = np.bincount(owner, weights=runs, minlength=len(strings)).astype(np.int64)
    return np.where(malformed, -1, totals)


def _undo_differences(numbers: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """From its fourth number on, a string stores each run minus the run two before it."""
    sums = np.zeros(len(numbers) + 2, dtype=np.int64)  # sums[i + 2] = numbers[i] + sums[i]
    sums[2::2] = np.cumsum(numbers[0::2])
    sums[3::2] = np.cumsum(numbers[1::2])
    first = np.searchsorted(owner, np.arange(owner[-1] + 1))[owner]  # of the number's string
    place = np.arange(len(numbers)) - first
    before_chain = first + np.where(place == 0, 0, 2 - place % 2)
    return sums[2:] - sums[before_chain]
