"""Pictures, opened: whether training can read them, and which show the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from segdet.data.check.findings import Checked, Findings, Picture
from segdet.data.check.work import spread
from segdet.data.defects import Defect
from segdet.data.image_io import Glance, compare_size, glance_at
from segdet.data.tar_shards import read_bytes

SIDE = 32  # pixels of the small pictures that are compared
# Two pictures are almost the same if so many of the 64 bits of their hashes differ at most, and
# their small forms, of equal mean, differ by so many of 255 levels in the mean.
BITS, LEVELS = 10, 4.0
FLAT = 3.0  # standard deviation of a small picture that shows nothing
_BATCH = 16  # pictures sent to a process at once
_ROWS = 2048  # hashes that are compared at once with all others


class Look(NamedTuple):
    """What opening a picture gave."""

    picture: Picture
    digest: bytes  # of the file's content
    grey: np.ndarray  # (SIDE, SIDE) uint8


def check_pictures(checks: Sequence[Checked], workers: int) -> None:
    """Open the pictures of data sets, and add what is found to their findings.

    Args:
        checks: of all data sets; pictures in two of them are found too.
        workers: processes.
    """
    looks: list[list[Look]] = []
    for checked in checks:
        batches = [
            checked.pictures[i : i + _BATCH] for i in range(0, len(checked.pictures), _BATCH)
        ]
        what = f"{checked.name}: pictures of {len(checked.pictures)}, by {_BATCH}"
        seen: list[Look] = []
        for found, some in spread(_look_at, checked.name, batches, workers=workers, what=what):
            checked.findings += found
            seen += some
        looks.append(seen)
    _compare(checks, looks)


def _look_at(name: str, pictures: Sequence[Picture]) -> tuple[Findings, list[Look]]:
    findings, looks = Findings(name), []
    for picture in pictures:
        try:
            glance = glance_at(picture.path, SIDE)
            digest = hashlib.sha256(read_bytes(picture.path)).digest()
            looks.append(Look(picture, digest, glance.grey))
            _check_glance(picture, glance, findings)
        except Defect as error:
            findings.take(error, picture.record)
    return findings, looks


def _check_glance(picture: Picture, glance: Glance, findings: Findings) -> None:
    if glance.turned:
        message = f"{picture.path}: is turned by its EXIF orientation"
        findings.add("image-rotated", picture.record, message)
    if picture.size is not None:
        compare_size(picture.path, glance.size, picture.size)


def _compare(checks: Sequence[Checked], looks: Sequence[Sequence[Look]]) -> None:
    """Find pictures that are the same, or almost; each is named with the first like it."""
    flat = [(checked, look) for checked, some in zip(checks, looks, strict=True) for look in some]
    findings = {id(checked): Findings(checked.name) for checked in checks}
    first_of: dict[bytes, int] = {}
    unique: list[int] = []
    for i, (checked, look) in enumerate(flat):
        other = first_of.setdefault(look.digest, i)
        if other == i:
            unique.append(i)
            continue
        _name_pair(findings[id(checked)], flat[other], flat[i], same=True)
    pairs = _alike(np.stack([flat[i][1].grey for i in unique])) if unique else ()
    named: set[tuple[int, int]] = set()
    for one, other in pairs:
        i, (checked, _) = unique[other], flat[unique[other]]
        key = i, id(flat[unique[one]][0])
        if key not in named:  # with one of each set
            named.add(key)
            _name_pair(findings[id(checked)], flat[unique[one]], flat[i], same=False)
    for checked in checks:
        checked.findings += findings[id(checked)]


def _name_pair(
    findings: Findings, one: tuple[Checked, Look], other: tuple[Checked, Look], *, same: bool
) -> None:
    (first, look), (second, repeated) = one, other
    where = look.picture.record if first is second else f"{look.picture.record} of {first.name}"
    shows = "holds the same bytes as" if same else "shows almost the same as"
    message = f"{repeated.picture.path} {shows} {where} ({look.picture.path})"
    record = repeated.picture.record
    if first is not second:
        findings.add("image-in-two-sets", record, message)
    elif same:
        findings.add("image-twice", record, message)
    else:
        findings.add("image-nearly-twice", record, message)


def _alike(greys: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs (i, j), i < j, of small pictures (N, SIDE, SIDE) that are almost the same.

    The hash is the sign of the differences between neighbours in a row of the picture at 8 x 9
    ("dHash"), as plus or minus one: a product counts equal bits.
    """
    values = greys.astype(np.float32)
    spread_out = values.std(axis=(1, 2)) > FLAT
    rows = values.reshape(len(values), 8, SIDE // 8, SIDE).mean(2)
    edges = np.linspace(0, SIDE, 10).round().astype(int)
    cells = np.stack([rows[..., a:b].mean(2) for a, b in pairwise(edges)], 2)
    bits = np.where(np.diff(cells, axis=2) > 0, np.float32(1), np.float32(-1)).reshape(-1, 64)
    centred = values - values.mean(axis=(1, 2), keepdims=True)
    for start in range(0, len(bits), _ROWS):
        equal = bits @ bits[start : start + _ROWS].T  # (N, rows), 64 - 2 * differing bits
        for i, row in np.argwhere(equal >= 64 - 2 * BITS).tolist():
            j = start + row
            if i < j and spread_out[i] and spread_out[j]:
                apart = np.abs(centred[i] - centred[j]).mean()
                if apart <= LEVELS:
                    yield i, j
