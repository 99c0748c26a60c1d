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
    encoded = [s.encode("utf-8", "surrogatepass") for s in strings]
    lengths = np.array([len(s) for s in encoded], dtype=np.int64)
    codes = np.frombuffer(b"".join(encoded), dtype=np.uint8) - np.uint8(48)  # below 48 wraps
    malformed = lengths == 0
    if len(codes) == 0:
        return np.where(malformed, -1, 0)
    stops = np.cumsum(lengths)  # of each string
    foreign = np.flatnonzero(codes > 63)
    malformed[np.searchsorted(stops, foreign, side="right")] = True

    ends_number = (codes & 0x20) == 0
    last = stops[lengths > 0] - 1
    cut_short = last[~ends_number[last]]
    malformed[np.searchsorted(stops, cut_short, side="right")] = True
    ends_number[last] = True

    ends = np.flatnonzero(ends_number)
    starts = np.concatenate([[0], ends[:-1] + 1])
    digits = ends - starts + 1
    counts = np.diff(np.searchsorted(ends, stops), prepend=0)  # numbers of each string
    owner = np.repeat(np.arange(len(strings)), counts)
    malformed[owner[digits > _LONGEST]] = True
    numbers = (codes[starts] & 0x1F).astype(np.int64)
    for place in range(1, min(digits.max(), _LONGEST)):
        longer = np.flatnonzero(digits > place)
        numbers[longer] |= (codes[starts[longer] + place] & 0x1F).astype(np.int64) << (5 * place)
    negative = np.flatnonzero(codes[ends] & 0x10)
    numbers[negative] -= 1 << (5 * np.minimum(digits[negative], _LONGEST))

    runs = _undo_differences(numbers, owner, counts)
    malformed[owner[runs < 0]] = True
    totals = np.bincount(owner, weights=runs, minlength=len(strings)).astype(np.int64)
    return np.where(malformed, -1, totals)


def _undo_differences(numbers: np.ndarray, owner: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """From its fourth number on, a string stores each run minus the run two before it.

    Args:
        numbers: of all strings.
        owner: of each number, its string.
        counts: of each string, its numbers.
    """
    first = np.cumsum(counts) - counts
    runs = np.empty_like(numbers)
    for parity in (0, 1):  # of the place among all numbers
        sums = np.concatenate([[0], np.cumsum(numbers[parity::2])])
        begin = first + 1 + (first + 1 - parity) % 2  # of each string's chain: its number 1 or 2
        before = sums[np.minimum((begin - parity) // 2, len(sums) - 1)]
        runs[parity::2] = sums[1:] - before[owner[parity::2]]
    runs[first[counts > 0]] = numbers[first[counts > 0]]
    return runs
