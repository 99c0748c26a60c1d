"""The gallery: which pictures it shows, and what is drawn on them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_api
import shapely
from PIL import Image

from segdet.data.image_io import read_image
from segdet.errors import DataError
from segdet.evaluation.analysis import KINDS, Analysis
from segdet.evaluation.matching import run_lengths
from segdet.report.analysis import OUTCOMES
from segdet.report.tested import Tested
from segdet.utils.canvas import frame
from segdet.utils.colormap import distinct_color
from segdet.utils.generic_mask import outlines

SCORE = 0.5  # from which detections decide on best and worst, and are shown at first
_LOWEST_SCORE, _MOST_FOUND = 0.05, 60  # of an image's detections, those that the page holds
_SIDE = 640  # the longer one of a picture, pixels
_ALL_BYTES = 5_000_000  # of the pictures; a third more in the page
_SEED = 0


class Sources:
    """The pictures of a page, each in it once.

    Args:
        most: of them, which together stay below 5 MB.
    """

    def __init__(self, most: int) -> None:
        self.pictures: list[str] = []
        self._share = _ALL_BYTES // max(most, 1)
        self._known: dict[str, tuple[int, tuple[int, int]]] = {}

    def add(self, file_name: str) -> tuple[int, tuple[int, int]]:
        """The place of a file's picture, and its (height, width) there.

        Raises:
            DataError: it cannot be read.
        """
        if file_name not in self._known:
            source, size = picture(file_name, self._share)
            self._known[file_name] = len(self.pictures), size
            self.pictures.append(source)
        return self._known[file_name]


def gallery_of(
    tested: Tested, analyses: Sequence[Analysis | None], pictures: int, sources: Sources
) -> dict[str, Any] | None:
    """The best, the worst and random images of objects; None where no picture can be read.

    Args:
        tested: of the first run that has predictions.
        analyses: of each run, on the images of `tested`; None where a run has none.
        pictures: their number at most.
        sources: gets them.
    """
    first = next(one for one in analyses if one is not None)
    drawn = draw_pictures(
        choose(*outcomes_of(first), pictures),
        tested.files,
        sources,
        lambda image, size: _objects(tested, analyses, image, size),
    )
    if drawn is None:
        return None
    return {
        "title": "Objects",
        "unit": "object",
        "pictures": drawn,
        "images": len(tested.files),
        "score": SCORE,
        "classes": colored(first.class_names),
        "kinds": [{"key": key, "meaning": meaning} for key, meaning in OUTCOMES.items()],
        "about": "The best and the worst are by their F1 score at IoU 0.50"
        f"{' in the first run' if len(analyses) > 1 else ''}, of detections with a score of "
        f"{SCORE:g} or more.",
    }


def draw_pictures(
    picks: Mapping[int, list[str]],
    files: Sequence[str],
    sources: Sources,
    objects: Callable[[int, tuple[int, int]], dict[str, Any]],
) -> list[dict[str, Any]] | None:
    """Those of the chosen images that can be read; None where none can.

    Args:
        picks: image -> why it was chosen.
        files: of all images.
        sources: gets their pictures.
        objects: of an image and the (height, width) of its picture: what is drawn there.
    """
    drawn = []
    for image, words in picks.items():
        try:
            place, size = sources.add(files[image])
        except DataError:
            continue
        part = {"name": Path(files[image]).name, "picks": words, "source": place}
        drawn.append({**part, "height": size[0], "width": size[1], **objects(image, size)})
    return drawn or None


def colored(names: Sequence[str]) -> list[dict[str, str]]:
    """Classes as the page has them."""
    return [{"name": name, "colour": distinct_color(c)} for c, name in enumerate(names)]


def outcomes_of(analysis: Analysis) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(images,) int64 of each image: detections that are right, those that are wrong, objects."""
    matches, errors = analysis.matches, analysis.errors
    confident = matches.found.scores >= SCORE
    correct, ignored = (errors.kind == KINDS.index(name) for name in ("correct", "ignored"))
    images = (
        matches.found.image[confident & correct],
        matches.found.image[confident & ~correct & ~ignored],
        matches.truth.image[~matches.truth.crowd],
    )
    right, wrong, there = (
        np.bincount(one, minlength=len(matches.truth.image_ids)) for one in images
    )
    return right, wrong, there


def choose(
    right: np.ndarray, wrong: np.ndarray, there: np.ndarray, number: int
) -> dict[int, list[str]]:
    """Image -> why it is shown: a third each "worst" and "best", the rest "random" ones.

    Random ones are drawn from all images, so that they may be among the others, too.

    Args:
        right: (images,) how many of what was found are right.
        wrong: (images,) how many are wrong.
        there: (images,) how many objects there are.
        number: of images, at most.
    """
    images = len(right)
    total = right + wrong + there
    f1 = np.where(total, 2 * right / total.clip(1), 1)
    worst = np.lexsort((-(wrong + there - right), f1))
    best = np.lexsort((-right, -f1))
    picks: dict[int, list[str]] = {}
    for name, order in (("worst", worst[: images // 2]), ("best", best[: images // 2])):
        for image in order[: number // 3].tolist():
            picks.setdefault(image, []).append(name)
    for image in np.random.default_rng(_SEED).permutation(images).tolist():
        if len(picks) >= min(number, images):
            break
        picks.setdefault(image, []).append("random")
    return picks


def picture(file_name: str, most_bytes: int) -> tuple[str, tuple[int, int]]:
    """A picture as the address of a JPEG in itself, and its (height, width) there.

    Args:
        file_name: of the image.
        most_bytes: of the JPEG; its quality, then its size, go down until it fits.

    Raises:
        DataError: it cannot be read.
    """
    image = Image.fromarray(read_image(file_name, "RGB"))
    image.thumbnail((_SIDE, _SIDE))
    while True:
        for quality in (82, 65, 45):
            file = io.BytesIO()
            image.save(file, "JPEG", quality=quality, optimize=True)
            if file.tell() <= most_bytes or max(image.size) < 64:
                text = base64.b64encode(file.getvalue()).decode("ascii")
                return f"data:image/jpeg;base64,{text}", (image.height, image.width)
        image = image.reduce(2)


def _objects(
    tested: Tested, analyses: Sequence[Analysis | None], image: int, size: tuple[int, int]
) -> dict[str, Any]:
    """What is drawn on an image: all objects that are there, and the best that each run found.

    Classes and objects are numbers; boxes are XYWH in pixels of the picture, `size`.
    """
    truth = tested.truth
    height, width = truth.image_sizes[image].tolist()
    rows = np.flatnonzero(truth.image == image).tolist()
    objects = [
        {
            "c": int(truth.category[row]),
            "crowd": bool(truth.crowd[row]),
            **_shape(
                truth.boxes[row],
                None if truth.masks[row] is None else run_lengths(truth.masks[row], height, width),
                (height, width),
                size,
            ),
        }
        for row in rows
    ]
    runs = [
        [] if one is None else _found(one, image, rows, (height, width), size) for one in analyses
    ]
    return {"truth": objects, "runs": runs}


def _found(
    analysis: Analysis, image: int, rows: list[int], whole: tuple[int, int], size: tuple[int, int]
) -> list[dict[str, Any]]:
    """The best detections of a run in an image, whose objects are `rows` of the ground truth."""
    found, errors = analysis.matches.found, analysis.errors
    seen = np.flatnonzero((found.image == image) & (found.scores >= _LOWEST_SCORE))
    best = seen[np.argsort(-found.scores[seen], kind="stable")][:_MOST_FOUND].tolist()
    place = {row: n for n, row in enumerate(rows)}
    masks: Any = [None] * len(found) if found.masks is None else found.masks
    return [
        {
            "n": n,
            "c": int(found.category[d]),
            "s": round(float(found.scores[d]), 3),
            "k": KINDS[errors.kind[d]],
            "g": place.get(int(errors.object[d]), -1),
            "i": round(float(errors.overlap[d]), 3),
            **_shape(
                mask_api.toBbox(masks[d]) if found.boxes is None else found.boxes[d],
                masks[d],
                whole,
                size,
            ),
        }
        for n, d in enumerate(best)
    ]


def _shape(
    box: np.ndarray, rle: Any, whole: tuple[int, int], size: tuple[int, int]
) -> dict[str, Any]:
    """A box and a mask, of an image of one (height, width), drawn in another."""
    scale = np.array(size) / np.array(whole)
    sides = (box * scale[[1, 0, 1, 0]]).round(1).tolist()
    return {"b": sides, "p": None if rle is None else outline(mask_api.decode(rle), size)}


def outline(mask: np.ndarray, size: tuple[int, int]) -> str:
    """The outline of a mask as a path of SVG, holes included (fill-rule evenodd).

    Args:
        mask: (H, W) bool or 0 and 1.
        size: (height, width) of the picture that it is drawn on.
    """
    rows, columns = (
        ((np.arange(drawn) + 0.5) * whole / drawn).astype(int)
        for drawn, whole in zip(size, mask.shape, strict=True)
    )
    small = mask[np.ix_(rows, columns)] != 0
    left, top, right, bottom = frame(small)
    paths = []
    for loop in outlines(small[top:bottom, left:right]):
        points = shapely.get_coordinates(shapely.LinearRing(loop).simplify(0.75))[:-1]
        places = (points + np.array([left, top])).astype(int).tolist()
        paths.append(f"M{' '.join(f'{x} {y}' for x, y in places)}z")
    return "".join(paths)
