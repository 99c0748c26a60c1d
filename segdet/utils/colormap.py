"""Colours: one per class or instance, told apart on photos and the same on every run."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import ImageColor

RGB = tuple[int, int, int]

# Strong and far apart, for the first classes; after them the hue walks the golden ratio.
_FIRST = [
    *("#ff3b30", "#0a84ff", "#ffd60a", "#30d158", "#bf5af2", "#ff9f0a"),
    *("#40e0d0", "#ff2d92", "#a4de02", "#8e6cff", "#ffb199", "#00b894"),
]
_GOLDEN_RATIO = 0.618034
_SHADES = ((0.75, 1.0), (0.95, 0.85), (0.5, 1.0))  # saturation, value

# matplotlib's one-letter names, which detectron2's calls take
_LETTERS = {
    "b": (0, 0, 255),
    "g": (0, 128, 0),
    "r": (255, 0, 0),
    "c": (0, 191, 191),
    "m": (191, 0, 191),
    "y": (191, 191, 0),
    "k": (0, 0, 0),
    "w": (255, 255, 255),
}


def distinct_color(index: int) -> str:
    """The colour "#rrggbb" of the class or instance `index`, any integer."""
    if 0 <= index < len(_FIRST):
        return _FIRST[index]
    saturation, value = _SHADES[index % len(_SHADES)]
    rgb = colorsys.hsv_to_rgb(index * _GOLDEN_RATIO % 1, saturation, value)
    return "#{:02x}{:02x}{:02x}".format(*(round(255 * part) for part in rgb))


def colormap(rgb: bool = False, maximum: float = 255) -> np.ndarray:
    """The first 80 of `distinct_color`, as many as COCO has classes.

    Args:
        rgb: in RGB order; BGR otherwise, as detectron2's default is.
        maximum: what full brightness is, 255 or 1.

    Returns:
        (80, 3) float32.
    """
    colors = np.array([as_rgb(distinct_color(k)) for k in range(80)], np.float32)
    return (colors if rgb else colors[:, ::-1]) * np.float32(maximum / 255)


def random_color(rgb: bool = False, maximum: float = 255) -> np.ndarray:
    """(3,) float32: one of `colormap`, drawn from numpy's global generator."""
    colors = colormap(rgb, maximum)
    return colors[np.random.randint(len(colors))]


def as_rgb(color: str | Sequence[float]) -> RGB:
    """Read a colour: a name ("g", "orange", "#ff8800") or three numbers in [0, 1].

    Raises:
        ValueError: the colour is neither.
    """
    if isinstance(color, str):
        return _LETTERS.get(color) or ImageColor.getrgb(color)[:3]
    values = np.asarray(color, dtype=np.float64)[:3]
    if len(values) != 3 or not (np.isfinite(values).all() and (values >= 0).all()):
        raise ValueError(f"a colour is a name or three numbers in [0, 1], not {color!r}")
    red, green, blue = (np.minimum(values, 1) * 255).round().astype(int).tolist()
    return red, green, blue


def text_color_on(background: RGB) -> RGB:
    """Black or white, whichever reads better on `background`."""
    red, green, blue = background
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R BT.601
    return (0, 0, 0) if luminance > 140 else (255, 255, 255)
