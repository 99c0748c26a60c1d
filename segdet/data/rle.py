"""COCO run-length masks, checked and decoded in numpy: native decoders trust their input."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pycocotools.mask as mask_api

from segdet.data.defects import Defect


def rle_runs(rle: dict) -> np.ndarray:
    """Run lengths of a COCO RLE, background and foreground in turn, column by column.

    Source: the string form is cocoapi's `rleToString`: 5 bits a character, least significant
    first, 0x20 marks "more", 0x10 of the last one is the sign; from the fourth run on each value
    is the difference to the run two before.

    Args:
        rle: `size` is [height, width]; `counts` is a list of run lengths, or the string form
            as str or bytes.

    Returns:
        (n,) int64, all >= 0, their sum is height * width.

    Raises:
        DataError: size or counts are not that.
    """
    size, counts = rle.get("size"), rle.get("counts")
    if not (
        isinstance(size, list | tuple)
        and len(size) == 2
        and all(isinstance(side, int | np.integer) and side > 0 for side in size)
    ):
        raise _damaged(f"RLE size must be [height, width], is {size!r}")
    if isinstance(counts, str | bytes):
        runs = _parse_counts(counts)
    else:
        runs = np.asarray(counts)
        if runs.ndim != 1 or runs.dtype.kind not in "iu":
            raise _damaged("RLE counts must be a string or a list of whole numbers")
        runs = runs.astype(np.int64)
    if runs.min() < 0:
        raise _damaged(f"RLE counts must be >= 0, hold {runs.min()}")
    if runs.sum() != size[0] * size[1]:
        raise _damaged(
            f"RLE counts sum to {runs.sum()}, but a mask of size {list(size)} has "
            f"{size[0] * size[1]} pixels"
        )
    return runs


def _damaged(message: str) -> Defect:
    return Defect("rle-damaged", message, "segmentation")


def _parse_counts(counts: str | bytes) -> np.ndarray:
    """The string form as run lengths, (n,) int64, n >= 1."""
    try:
        data = counts.encode("ascii") if isinstance(counts, str) else counts
    except UnicodeEncodeError:
        raise _damaged("RLE counts hold characters that no RLE string has") from None
    codes = np.frombuffer(data, np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 0x20:
        raise _damaged("RLE counts are not a COCO RLE string (cut or damaged)")
    ends = np.flatnonzero(codes & 0x20 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    group = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    if group.max() > 6:
        raise _damaged("RLE counts are not a COCO RLE string (a run of more than 35 bits)")
    runs = np.add.reduceat((codes & 0x1F) << (5 * group), starts)
    runs -= np.where(codes[ends] & 0x10, 1 << (5 * (group[ends] + 1)), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def decode_rle(rle: dict) -> np.ndarray:
    """The mask of a COCO RLE.

    Args:
        rle: as for `rle_runs`.

    Returns:
        (height, width) uint8 in {0, 1}, of the RLE's own size.

    Raises:
        DataError: the RLE is damaged.
    """
    runs = rle_runs(rle)
    height, width = rle["size"]
    bits = np.repeat(np.arange(len(runs)) & 1, runs).astype(np.uint8)
    return np.ascontiguousarray(bits.reshape(width, height).T)


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """The compressed COCO RLE of a mask, ready for json.

    Args:
        mask: (H, W), nonzero inside.
    """
    rle = cast(Any, mask_api.encode(np.asfortranarray(mask, np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """The box around the pixels of a mask.

    Args:
        mask: (H, W), nonzero inside.

    Returns:
        XYXY in pixels, ends exclusive; None for an empty mask.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
