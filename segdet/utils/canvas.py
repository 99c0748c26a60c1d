"""The picture under the pencil: translucent masks, boxes and labels, drawn with Pillow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segdet.utils.colormap import RGB, text_color_on

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
Box = Sequence[float] | np.ndarray  # x1, y1, x2, y2


class VisImage:
    """A picture being drawn; all coordinates are pixels of the picture, after scaling."""

    def __init__(self, img: np.ndarray, scale: float = 1.0) -> None:
        """Start from a copy.

        Args:
            img: (H, W, 3) RGB or (H, W) grey, in [0, 255].
            scale: factor on the size of the picture; text and lines are drawn after it.
        """
        picture = Image.fromarray(np.ascontiguousarray(np.clip(img, 0, 255).astype(np.uint8)))
        width, height = (max(1, round(side * scale)) for side in picture.size)
        self.size = (width, height)
        self.canvas = picture.convert("RGB").resize(self.size, Image.Resampling.BICUBIC)
        self.scale = scale
        side = math.sqrt(width * height)
        self.line_width = max(1, round(side / 350))
        self.font_size = max(11, round(side / 42))
        self._margin = max(1, self.font_size // 6)  # of letters on their plate
        self._taken: list[tuple[int, int, int, int]] = []  # x1, y1, x2, y2 where labels stand

    def get_image(self) -> np.ndarray:
        """The picture, (H * scale, W * scale, 3) uint8 RGB."""
        return np.array(self.canvas)

    def save(self, filepath: str | Path) -> None:
        """Write the picture; the name's ending says the format."""
        self.canvas.save(filepath, quality=95)  # of a JPEG; other formats have no such number

    def blend(self, mask: np.ndarray, color: RGB, alpha: float, edge_color: RGB) -> None:
        """Tint the picture inside a mask (H, W) bool and draw the mask's contour."""
        x1, y1, x2, y2 = frame(mask)
        if x1 == x2:
            return
        window = mask[y1:y2, x1:x2]
        inside = np.pad(window, 1)
        for _ in range(self.line_width):  # erode by a cross
            inside[1:-1, 1:-1] &= (
                inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
            )
        contour = window & ~inside[1:-1, 1:-1]
        place = (x1, y1, x2, y2)
        self.canvas.paste(color, place, Image.fromarray(_opacity(window, alpha)))
        self.canvas.paste(edge_color, place, Image.fromarray(_opacity(contour, 1)))

    def tint(self, opacity: np.ndarray, color: RGB) -> None:
        """Lay a colour over the picture, by (H, W) opacities in [0, 1], scaled to its size."""
        grey = Image.fromarray((np.clip(opacity, 0, 1) * 255).round().astype(np.uint8))
        self.canvas.paste(color, mask=grey.resize(self.size, Image.Resampling.BILINEAR))

    def fade_outside(self, mask: np.ndarray) -> None:
        """Make the picture grey where a mask (H, W) bool is not."""
        grey = self.canvas.convert("L").convert("RGB")
        self.canvas.paste(grey, mask=Image.fromarray(_opacity(~mask, 1)))

    def line(
        self, points: Sequence[Sequence[float]], color: RGB, width: float | None = None
    ) -> None:
        """Draw lines from point to point."""
        corners = [(float(x), float(y)) for x, y in points]
        width = max(1, round(self.line_width if width is None else width))
        ImageDraw.Draw(self.canvas).line(corners, fill=color, width=width, joint="curve")

    def disc(self, centre: Sequence[float], radius: float, color: RGB) -> None:
        """Fill a circle."""
        x, y = centre
        frame = (x - radius, y - radius, x + radius, y + radius)
        ImageDraw.Draw(self.canvas).ellipse(frame, fill=color)

    def rectangle(self, box: Box, color: RGB, alpha: float = 1) -> None:
        """Outline a box x1, y1, x2, y2."""
        x1, y1, x2, y2 = (round(float(v)) for v in box)
        corners = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
        if alpha == 1:
            ImageDraw.Draw(self.canvas).rectangle(corners, outline=color, width=self.line_width)
            return
        line = Image.new("L", self.size)
        ImageDraw.Draw(line).rectangle(corners, outline=round(alpha * 255), width=self.line_width)
        self.canvas.paste(color, mask=line)

    def text(
        self, text: str, position: tuple[float, float], color: RGB, *, size: float, anchor: str
    ) -> None:
        """Write outlined letters; `anchor` as in Pillow, "la" is the left end of the top."""
        ImageDraw.Draw(self.canvas).text(
            position,
            text,
            fill=color,
            font=ImageFont.load_default(size),
            anchor=anchor,
            stroke_width=max(1, round(size / 12)),
            stroke_fill=text_color_on(color),
        )

    def label(self, text: str, box: Box, color: RGB) -> None:
        """Write on a plate of the given colour at a box's top, smaller for a small box.

        Where other labels leave no place around the box, nothing is written.
        """
        x1, y1, x2, y2 = (round(float(v)) for v in box)
        font, width, height = self._plate(text, max(x2 - x1, y2 - y1))
        is_large = y2 - y1 > 2 * height
        for y in (y1 - height, y1, y2) if is_large else (y1 - height, y2, y1):
            for x in (x1, x2 - width):
                x = max(0, min(x, self.size[0] - width))
                if self._is_free(x, y, x + width, y + height):
                    self._write_plate(text, (x, y, x + width, y + height), font, color)
                    return

    def label_inside(self, text: str, mask: np.ndarray, color: RGB) -> None:
        """Write on a plate that covers as much as it can of a mask (H, W) bool, near its middle.

        Where other labels leave no place on the mask, nothing is written.
        """
        x1, y1, x2, y2 = frame(mask)
        font, width, height = self._plate(text, max(x2 - x1, y2 - y1))
        if mask.shape[0] < height or mask.shape[1] < width:
            return
        sums = np.pad(mask, ((1, 0), (1, 0))).cumsum(0, np.int32).cumsum(1)
        upper, lower = sums[:-height], sums[height:]
        inside = lower[:, width:] - lower[:, :-width] - upper[:, width:] + upper[:, :-width]
        for left, top, right, bottom in self._taken:
            inside[max(0, top - height + 1) : bottom, max(0, left - width + 1) : right] = 0
        if not inside.any():
            return
        places = np.argwhere(inside == inside.max())  # (P, 2) y, x
        middle = np.argwhere(mask).mean(0) - (height / 2, width / 2)
        y, x = places[np.abs(places - middle).sum(1).argmin()].tolist()
        self._write_plate(text, (x, y, x + width, y + height), font, color)

    def _plate(self, text: str, side: float) -> tuple[Font, int, int]:
        """Letters for an object whose longer side is given; width and height with a margin."""
        share = side / max(self.size)
        font = ImageFont.load_default(max(9, self.font_size * min(1, 0.6 + 4 * share)))
        height = (
            round(font.getbbox("Åg")[3]) + self._margin
        )  # from the highest to the lowest letter
        return font, round(font.getlength(text)) + 2 * self._margin, height

    def _write_plate(
        self, text: str, place: tuple[int, int, int, int], font: Font, color: RGB
    ) -> None:
        self._taken.append(place)
        x1, y1, x2, y2 = place
        draw = ImageDraw.Draw(self.canvas)
        draw.rounded_rectangle((x1, y1, x2 - 1, y2 - 1), radius=self._margin, fill=color)
        draw.text((x1 + self._margin, y1), text, fill=text_color_on(color), font=font)

    def _is_free(self, x1: int, y1: int, x2: int, y2: int) -> bool:
        return (
            y1 >= 0
            and y2 <= self.size[1]
            and not any(
                x1 < right and left < x2 and y1 < bottom and top < y2
                for left, top, right, bottom in self._taken
            )
        )


def frame(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The tight box x1, y1, x2, y2 of an (H, W) mask; zeros if it is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _opacity(mask: np.ndarray, alpha: float) -> np.ndarray:
    return np.where(mask, round(alpha * 255), 0).astype(np.uint8)
