"""Contact sheets: what a model found beside the ground truth, image by image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from segdet.data.image_io import read_image
from segdet.utils.visualizer import ColorMode, Visualizer

_GAP = 8  # pixels around tiles
_CAPTION = 22  # pixels above each tile
_PAPER = "#1c1c1e"
_INK = "#e5e5ea"


def save_prediction_sheet(
    path: str | Path,
    pairs: Iterable[tuple[dict[str, Any], Mapping[str, Any]]],
    metadata: Any = None,
    *,
    min_score: float = 0.5,
    tile_side: int = 420,
    pairs_per_row: int = 2,
) -> None:
    """Draw ground truth (left) and predictions (right) of some images into one picture.

    Args:
        path: of the picture; its ending says the format. Missing folders are made.
        pairs: records of a data set, with `file_name` and annotation, each with what a model
            returned for it: `panoptic_seg`, `instances` or `sem_seg`, in the frame of its image.
        metadata: of the data set, for names and colours of classes.
        min_score: instances below are left out.
        tile_side: the longer side of each drawn image in pixels.
        pairs_per_row: images in one row of the sheet.

    Raises:
        DataError: an image cannot be read.
    """
    tiles = []
    for record, output in pairs:
        tiles += _draw_pair(record, output, metadata, tile_side, min_score)
    sheet = _arrange(tiles, columns=2 * pairs_per_row)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _draw_pair(
    record: dict[str, Any],
    output: Mapping[str, Any],
    metadata: Any,
    tile_side: int,
    min_score: float,
) -> list[tuple[str, Image.Image]]:
    image = read_image(record["file_name"], "RGB")
    scale = tile_side / max(image.shape[:2])
    mode = ColorMode.SEGMENTATION
    if len(getattr(metadata, "thing_classes", None) or []) == 1:  # tell objects apart instead
        unnamed = {**vars(metadata), "thing_classes": [""]}
        mode, metadata = ColorMode.IMAGE, SimpleNamespace(**unnamed)
    truth = Visualizer(image, metadata, scale, mode).draw_dataset_dict(record)
    guess = Visualizer(image, metadata, scale, mode).draw_predictions(output, min_score)
    name = Path(record["file_name"]).name
    annotated = record.get("segments_info", record.get("annotations"))
    return [
        (f"{name}   ground truth{_number(annotated)}", truth.canvas),
        (f"prediction{_number(_shown(output, min_score))}", guess.canvas),
    ]


def _number(objects: Sized | None) -> str:
    return "" if objects is None else f": {len(objects)}"


def _shown(output: Mapping[str, Any], min_score: float) -> Sized | None:
    """The segments or objects that are drawn; None of a map of classes."""
    if "panoptic_seg" in output:
        return output["panoptic_seg"][1]
    if "instances" in output:
        return [score for score in output["instances"].scores.tolist() if score >= min_score]
    return None


def _arrange(tiles: list[tuple[str, Image.Image]], columns: int) -> Image.Image:
    """Captioned tiles in rows, each row as high as its highest tile."""
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    heights = [max(tile.height for _, tile in row) + _CAPTION + _GAP for row in rows]
    columns = min(columns, len(tiles))
    widths = [max(tile.width for _, tile in tiles[i::columns]) + _GAP for i in range(columns)]
    sheet = Image.new("RGB", (sum(widths) + _GAP, sum(heights) + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    y = _GAP
    for row, height in zip(rows, heights, strict=True):
        x = _GAP
        for (caption, tile), width in zip(row, widths, strict=False):
            while font.getlength(caption) > tile.width and len(caption) > 1:
                caption = caption[1:]  # the end of a long file name tells more than its start
            draw.text((x, y + 2), caption, fill=_INK, font=font)
            sheet.paste(tile, (x, y + _CAPTION))
            x += width
        y += height
    return sheet
