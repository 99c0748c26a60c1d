"""Draws the demo data set's scenes: beach things, lit and casting shadows, before a landscape.

Everything comes from one random generator, so a scene is a function of its seed.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import shapely
from PIL import Image, ImageDraw, ImageFilter
from shapely import affinity
from shapely.geometry.base import BaseGeometry

THINGS = ("ball", "star", "ring", "bottle", "mug")
STUFF = ("sky", "water", "grass", "sand")

_SUPERSAMPLE = 4  # masks are drawn that much larger, then averaged
_ROUND = 24  # segments of a quarter circle


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One thing, or a heap of things that is annotated as a crowd."""

    category: int  # index in THINGS
    shape: BaseGeometry  # what is visible of it, in pixels
    mask: np.ndarray  # (H, W) bool, likewise
    is_crowd: bool = False


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A picture and what it shows."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    stuff: np.ndarray  # (H, W) uint8, index in STUFF of what is behind the things
    objects: list[SceneObject]  # far to near


def draw_scene(rng: np.random.Generator, *, num_objects: int, with_crowd: bool = False) -> Scene:
    """Draw one scene.

    Args:
        rng: decides everything else, the size (about 320 x 240) too.
        num_objects: things to place; those that others hide are not in the result.
        with_crowd: add a heap of small balls.
    """
    size = (int(rng.integers(208, 257)), int(rng.integers(288, 353)))
    height, width = size if rng.random() < 0.85 else size[::-1]
    canvas, stuff = _draw_landscape(rng, height, width)
    light = rng.uniform(-0.9, 0.9)  # from the left or the right, always from above
    heap = _heap(rng, height, width) if with_crowd else []
    for ball in heap:
        _draw_thing(rng, canvas, 0, ball, 0.0, light)
    whole = [(0, shapely.union_all(heap), True)] if heap else []
    for category, shape, angle in _place(rng, num_objects, height, width):
        _draw_thing(rng, canvas, category, shape, angle, light)
        whole.append((category, shape, False))
    canvas += 0.02 * rng.standard_normal(canvas.shape, np.float32)
    image = (np.clip(canvas, 0, 1) * 255).round().astype(np.uint8)
    return Scene(image=image, stuff=stuff, objects=_visible(whole, height, width))


def _visible(
    whole: list[tuple[int, BaseGeometry, bool]], height: int, width: int
) -> list[SceneObject]:
    """What the nearer things and the frame leave of each; scraps are left out."""
    frame = shapely.box(0, 0, width, height)
    nearer, covered = shapely.Polygon(), np.zeros((height, width), bool)
    objects = []
    for category, shape, is_crowd in reversed(whole):
        rest = shape.intersection(frame).difference(nearer)
        pixels = _coverage(shape, height, width) >= 0.5
        if rest.area >= max(0.25 * shape.area, 120):
            mask = pixels & ~covered
            objects.append(SceneObject(category=category, shape=rest, mask=mask, is_crowd=is_crowd))
        nearer, covered = nearer.union(shape), covered | pixels
    return objects[::-1]


def _place(
    rng: np.random.Generator, number: int, height: int, width: int
) -> list[tuple[int, BaseGeometry, float]]:
    """(category, shape in pixels, angle), far to near; about half of them overlap another."""
    feet = np.sort(rng.uniform(0.35, 0.97, number)) * height
    placed = []
    x = rng.uniform(0.15, 0.85) * width
    for y in feet:
        category = int(rng.integers(len(THINGS)))
        radius = (12 + 46 * (y / height) ** 1.5) * rng.uniform(0.75, 1.25)
        near = rng.random() < 0.5 and bool(placed)
        x = x + rng.choice([-1, 1]) * radius * 1.3 if near else rng.uniform(0.1, 0.9) * width
        x = float(np.clip(x, 0.05 * width, 0.95 * width))
        tilt = 180 if THINGS[category] in ("ball", "star", "ring") else 25
        angle = float(rng.uniform(-tilt, tilt))
        shape = _SHAPES[THINGS[category]]()
        shape = affinity.scale(shape, radius, radius * rng.uniform(0.9, 1.1), origin=(0, 0))
        shape = affinity.rotate(shape, angle, origin=(0, 0))
        placed.append((category, affinity.translate(shape, x, y - 0.6 * radius), angle))
    return placed


def _heap(rng: np.random.Generator, height: int, width: int) -> list[BaseGeometry]:
    x, y = rng.uniform(0.2, 0.8) * width, rng.uniform(0.45, 0.6) * height
    return [
        shapely.Point(x + rng.normal(0, 16), y + rng.normal(0, 6)).buffer(
            rng.uniform(5, 8), quad_segs=_ROUND
        )
        for _ in range(int(rng.integers(9, 15)))
    ]


# Shapes: about 2 units high, around (0, 0), y downwards.


def _ball() -> BaseGeometry:
    return shapely.Point(0, 0).buffer(1, quad_segs=_ROUND)


def _star() -> BaseGeometry:
    turns = np.arange(10) * np.pi / 5 - np.pi / 2
    radii = np.where(np.arange(10) % 2, 0.45, 1.0)
    points = np.stack([np.cos(turns) * radii, np.sin(turns) * radii], axis=1)
    return shapely.Polygon(points).buffer(0.1, quad_segs=4)


def _ring() -> BaseGeometry:
    return _ball().difference(shapely.Point(0, 0).buffer(0.5, quad_segs=_ROUND))


def _bottle() -> BaseGeometry:
    body = shapely.box(-0.33, -0.15, 0.33, 0.95).buffer(0.08)
    neck = shapely.box(-0.13, -1.05, 0.13, 0.0)
    shoulder = shapely.Polygon([(-0.13, -0.5), (0.13, -0.5), (0.4, -0.1), (-0.4, -0.1)])
    cap = shapely.box(-0.18, -1.15, 0.18, -0.95)
    return shapely.union_all([body, neck, shoulder, cap])


def _mug() -> BaseGeometry:
    body = shapely.box(-0.75, -0.75, 0.4, 0.75).buffer(0.06)
    handle = shapely.Point(0.5, 0).buffer(0.5, quad_segs=_ROUND)
    return body.union(handle.difference(shapely.Point(0.5, 0).buffer(0.27, quad_segs=_ROUND)))


_SHAPES: dict[str, Callable[[], BaseGeometry]] = {
    "ball": _ball,
    "star": _star,
    "ring": _ring,
    "bottle": _bottle,
    "mug": _mug,
}


def _coverage(shape: BaseGeometry, height: int, width: int) -> np.ndarray:
    """(height, width) in [0, 1]: how much of each pixel the shape covers."""
    n = _SUPERSAMPLE
    x0, y0, x1, y1 = shape.bounds
    left, top = max(int(x0) - 1, 0), max(int(y0) - 1, 0)
    right, bottom = min(int(x1) + 2, width), min(int(y1) + 2, height)
    coverage = np.zeros((height, width), np.float32)
    if left >= right or top >= bottom:
        return coverage
    window = Image.new("L", ((right - left) * n, (bottom - top) * n))
    draw = ImageDraw.Draw(window)
    for part in shapely.get_parts(shape):
        for ring, value in [(part.exterior, 255), *((hole, 0) for hole in part.interiors)]:
            # Pillow takes (0, 0) for the centre of the first pixel.
            points = (np.asarray(ring.coords) - [left, top]) * n - 0.5
            draw.polygon(points.ravel().tolist(), fill=value)
    coverage[top:bottom, left:right] = np.asarray(window.reduce(n), np.float32) / 255
    return coverage


# Looks: colour (h, w, 3) and height (h, w), in the unit of a shape, at its own u, v.


def _color(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), np.float32)


def _bulge(square: np.ndarray) -> np.ndarray:
    """Height of a circle's arc, where `square` is the squared distance to its middle."""
    return np.sqrt(np.clip(1 - square, 0.02, 1))


def _paint_ball(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> tuple:
    sector = np.floor((np.arctan2(v, u) / (2 * np.pi) + rng.random()) * 6).astype(int)
    hue = rng.random()
    stripes = [_color(hue, 0.8, 0.9), _color(0, 0, 0.97), _color(hue + 0.33, 0.75, 0.9)]
    color = np.array(stripes)[sector % 3]
    color[np.hypot(u, v) < 0.18] = stripes[0]
    return color, _bulge(u**2 + v**2)


def _paint_star(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> tuple:
    radius = np.hypot(u, v)[..., None]
    inner, outer = _color(rng.uniform(0.02, 0.1), 0.75, 0.98), _color(0.98, 0.7, 0.75)
    color = inner * (1 - radius) + outer * radius
    dots = (np.sin(u * 16) * np.sin(v * 16) > 0.75)[..., None]
    return np.where(dots, 0.55 + 0.45 * color, color), 0.7 * (1 - radius[..., 0])


def _paint_ring(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> tuple:
    quarter = np.floor(np.arctan2(v, u) / (np.pi / 4) + 0.5).astype(int) % 2
    color = np.array([_color(rng.choice([0.0, 0.58, 0.08]), 0.85, 0.9), _color(0, 0, 0.95)])
    return color[quarter], 0.3 * _bulge(((np.hypot(u, v) - 0.75) / 0.25) ** 2)


def _paint_bottle(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> tuple:
    color = np.broadcast_to(_color(rng.choice([0.07, 0.33, 0.55]), 0.75, 0.6), (*u.shape, 3)).copy()
    color[(v > 0.1) & (v < 0.65)] = _color(rng.random(), 0.25, 0.97)
    color[(v > 0.3) & (v < 0.4)] = _color(rng.random(), 0.8, 0.6)
    color[v < -0.93] = _color(0, 0, 0.25)
    return color, 0.45 * _bulge((u / np.where(v < -0.45, 0.2, 0.45)) ** 2)


def _paint_mug(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> tuple:
    hue = rng.uniform(0.5, 0.9)
    color = np.broadcast_to(_color(hue, 0.6, 0.85), (*u.shape, 3)).copy()
    color[np.abs(v - 0.1) < 0.16] = _color(hue, 0.15, 0.98)
    color[v < -0.66] = _color(hue, 0.5, 0.35)
    body = _bulge(((u + 0.17) / 0.66) ** 2) * 0.6
    handle = _bulge(((np.hypot(u - 0.5, v) - 0.385) / 0.14) ** 2) * 0.14
    return color, np.where(u < 0.44, body, handle)


_PAINT: dict[str, Callable[[np.random.Generator, np.ndarray, np.ndarray], tuple]] = {
    "ball": _paint_ball,
    "star": _paint_star,
    "ring": _paint_ring,
    "bottle": _paint_bottle,
    "mug": _paint_mug,
}


def _draw_thing(
    rng: np.random.Generator,
    canvas: np.ndarray,
    category: int,
    shape: BaseGeometry,
    angle: float,
    light: float,
) -> None:
    """Paint one thing and its shadow onto the canvas (H, W, 3), in place."""
    height, width = canvas.shape[:2]
    alpha = _coverage(shape, height, width)
    x0, y0, x1, y1 = shape.bounds
    radius = max(x1 - x0, y1 - y0) / 2
    _draw_shadow(canvas, alpha, radius, light)
    left, top = max(int(x0), 0), max(int(y0), 0)
    window = (slice(top, max(int(y1) + 2, top)), slice(left, max(int(x1) + 2, left)))
    rows, columns = np.mgrid[window[0], window[1]]
    rows, columns = rows[: height - top, : width - left], columns[: height - top, : width - left]
    if rows.size == 0:
        return
    x, y = columns + 0.5 - (x0 + x1) / 2, rows + 0.5 - (y0 + y1) / 2
    turn = np.deg2rad(-angle)
    u, v = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
    color, bump = _PAINT[THINGS[category]](rng, u / radius, v / radius)
    grain = 1 + 0.1 * _noise(rng, *u.shape, cell=max(radius / 6, 2))
    lit = (color * (_shade(bump * radius, light) * grain)[..., None]).astype(np.float32)
    a = alpha[window][..., None]
    canvas[window] = canvas[window] * (1 - a) + lit * a


def _shade(bump: np.ndarray, light: float) -> np.ndarray:
    """Brightness of a surface of that height (pixels) in the scene's light, with a highlight."""
    if min(bump.shape) < 2:
        return np.ones_like(bump)
    dy, dx = np.gradient(bump)
    direction = np.array([light, -0.8, 0.9])
    direction /= np.linalg.norm(direction)
    facing = (-dx * direction[0] - dy * direction[1] + direction[2]) / np.sqrt(1 + dx**2 + dy**2)
    facing = np.clip(facing, 0, 1)
    return 0.45 + 0.62 * facing + 0.35 * facing**24


def _draw_shadow(canvas: np.ndarray, alpha: np.ndarray, radius: float, light: float) -> None:
    shift = (round(-light * radius * 0.45), round(radius * 0.2))
    moved = Image.fromarray((alpha * 255).astype(np.uint8)).transform(
        alpha.shape[::-1], Image.Transform.AFFINE, (1, 0, -shift[0], 0, 1, -shift[1])
    )
    soft = moved.filter(ImageFilter.GaussianBlur(max(radius * 0.12, 1)))
    canvas *= 1 - 0.45 * (np.asarray(soft, np.float32) / 255)[..., None]


def _noise(
    rng: np.random.Generator, height: int, width: int, *, cell: float, stretch: float = 1.0
) -> np.ndarray:
    """(height, width) smooth noise in about [-1, 1], four octaves.

    Args:
        rng: source.
        height: rows.
        width: columns.
        cell: size of the largest spots in pixels.
        stretch: how much longer they are sideways than upright.
    """
    total = np.zeros((height, width), np.float32)
    for octave in range(4):
        step = max(cell / 2**octave, 1.0)
        rows, columns = int(height / step) + 2, int(width / (step * stretch)) + 2
        grid = rng.random((rows, columns), np.float32) * 2 - 1
        layer = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(layer) * 0.5**octave
    return total / 1.5


def _draw_landscape(
    rng: np.random.Generator, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sky above one or two kinds of ground.

    Returns:
        (H, W, 3) float32 in about [0, 1], and (H, W) uint8 index in STUFF.
    """
    rows = np.arange(height)[:, None]
    horizon = height * rng.uniform(0.12, 0.42)
    far, near = rng.permutation([1, 2, 3])[:2]
    order = [0, far] if rng.random() < 0.3 else [0, far, near]
    borders = [horizon, horizon + (height - horizon) * rng.uniform(0.25, 0.6)]
    tint = rng.uniform(0.92, 1.08, 3)
    canvas, stuff = _PAINT_STUFF[0](rng, height, width), np.zeros((height, width), np.uint8)
    for label, border in zip(order[1:], borders, strict=False):
        slope = rng.uniform(-0.12, 0.12) * (np.arange(width) - width / 2)
        wave = _noise(rng, 1, width, cell=width / 3)[0] * height * 0.05
        depth = rows - (border + slope * (border != horizon) + wave)  # pixels below the border
        cover = np.clip(depth + 0.5, 0, 1)[..., None]
        edge = np.exp(-np.abs(depth) / 2)[..., None]  # a thin brighter rim: foam, haze
        canvas = canvas * (1 - cover) + _PAINT_STUFF[label](rng, height, width) * cover
        canvas = canvas + 0.08 * edge
        stuff[depth >= 0] = label
    return (canvas * tint).astype(np.float32), stuff


def _sky(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None, None] ** 0.6
    high = _color(rng.uniform(0.55, 0.62), rng.uniform(0.4, 0.7), rng.uniform(0.7, 0.95))
    low = _color(rng.uniform(0.05, 0.6), 0.15, 0.98)
    clouds = np.clip(_noise(rng, height, width, cell=60, stretch=2) * 1.6, 0, 1)[..., None]
    return (high * (1 - down) + low * down) * (1 - 0.7 * clouds) + 0.97 * 0.7 * clouds


def _water(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    color = _color(rng.uniform(0.5, 0.6), rng.uniform(0.5, 0.75), rng.uniform(0.4, 0.65))
    waves = _noise(rng, height, width, cell=9, stretch=5)[..., None]
    sparkle = np.clip(_noise(rng, height, width, cell=4, stretch=4) - 0.75, 0, 1)[..., None]
    return color * (1 + 0.3 * waves) + 1.2 * sparkle


def _grass(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    color = _color(rng.uniform(0.22, 0.34), rng.uniform(0.5, 0.75), rng.uniform(0.4, 0.65))
    patches = _noise(rng, height, width, cell=50)[..., None]
    blades = _noise(rng, height, width, cell=7, stretch=0.35)[..., None]
    return color * (1 + 0.2 * patches + 0.38 * blades)


def _sand(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    color = _color(rng.uniform(0.08, 0.13), rng.uniform(0.3, 0.45), rng.uniform(0.7, 0.88))
    dunes = _noise(rng, height, width, cell=40, stretch=3)[..., None]
    grains = rng.standard_normal((height, width, 1), np.float32)
    return color * (1 + 0.12 * dunes + 0.05 * grains)


_PAINT_STUFF = (_sky, _water, _grass, _sand)  # in the order of STUFF
