"""Predict on pictures and videos: drawn copies, and what was found as COCO results json."""

from __future__ import annotations

import argparse
import glob
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from segdet.data.catalog import DatasetCatalog, Metadata, MetadataCatalog
from segdet.data.image_io import read_image
from segdet.engine.defaults import DefaultPredictor
from segdet.engine.setup import add_project_argument, load_config, make_output_folder
from segdet.errors import ConfigError, DataError
from segdet.evaluation.rle import encode_masks
from segdet.structures import Instances
from segdet.utils.logger import setup_logger
from segdet.utils.visualizer import ColorMode, Visualizer

_log = logging.getLogger(__name__)

Predictor = Callable[[np.ndarray], dict[str, Any]]  # (H, W, 3) uint8 BGR -> {"instances"}

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
_DRAWN_SUFFIXES = {".jpeg", ".jpg", ".png"}  # pictures of other formats are drawn as PNG


def main(argv: list[str]) -> None:
    """Predict with a trained model on pictures or a video."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="the model's config")
    add_project_argument(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input", nargs="+", metavar="PATH", help="images, folders of images or glob patterns"
    )
    source.add_argument("--video", metavar="FILE", help="a video (needs OpenCV)")
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="gets the drawn copies and predictions.json"
    )
    parser.add_argument(
        "--confidence-threshold", type=float, default=0.5, help="objects below are left out"
    )
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="settings that win over the config file's, such as MODEL.WEIGHTS; they come last",
    )
    args = parser.parse_args(argv)
    setup_logger()
    files = find_images([args.video] if args.video else args.input)
    cfg = load_config(args)
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError(
            "MODEL.WEIGHTS is empty; name the trained weights: --opts MODEL.WEIGHTS FILE"
        )
    output = Path(args.output)
    make_output_folder(output, "--output")
    predictor = DefaultPredictor(cfg)
    metadata = load_metadata(cfg.DATASETS.TEST)
    if args.video:
        predict_video(predictor, files[0], output, metadata, args.confidence_threshold)
    else:
        predict_images(predictor, files, output, metadata, args.confidence_threshold)


def find_images(inputs: Sequence[str]) -> list[Path]:
    """The files that images, folders and glob patterns name, each once, in their order.

    Raises:
        DataError: one of them names nothing, or a folder without images.
    """
    files: dict[Path, None] = {}
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            found = [one for one in sorted(path.iterdir()) if one.suffix.lower() in IMAGE_SUFFIXES]
            if not found:
                kinds = ", ".join(sorted(IMAGE_SUFFIXES))
                raise DataError(f"folder {given} has no images (looked for {kinds})")
        elif path.is_file():
            found = [path]
        else:
            found = [Path(one) for one in sorted(glob.glob(given, recursive=True))]
            found = [one for one in found if one.is_file()]
            if not found:
                raise DataError(f"{given}: there is no such file, folder or match")
        files.update(dict.fromkeys(found))
    return list(files)


def load_metadata(names: Sequence[str]) -> Metadata | None:
    """What is known of the first data set's classes; its file is read if it has to be.

    Classes stay numbers, with a warning, where no data set is named or its file is absent.
    """
    if not names:
        _log.warning("DATASETS.TEST names no data set: classes are shown as numbers")
        return None
    metadata = MetadataCatalog.get(names[0])
    if metadata.get("thing_classes") is None:
        try:
            DatasetCatalog.get(names[0])
        except DataError as error:
            _log.warning("Classes are shown as numbers: %s", error)
    return metadata


def predict_images(
    predictor: Predictor,
    files: Sequence[Path],
    output_dir: Path,
    metadata: Metadata | None = None,
    min_score: float = 0.5,
) -> None:
    """Draw what is found in each image, and write `predictions.json`.

    The json is a COCO results list; each record also has its image's `file_name`. Images are
    numbered from 1 in the given order (`image_id`), whether something is found in them or not.

    Args:
        predictor: such as a `DefaultPredictor`.
        files: images. The copies keep their names, and their folders below the common one.
        output_dir: made if it is not there.
        metadata: of the data set, for names, ids and colours of classes.
        min_score: objects below are left out.

    Raises:
        DataError: a copy would overwrite an input (nothing is done then); or images could not
            be read (each is reported, the others are done).
    """
    copies = _places_for_copies(files, output_dir)
    rows: list[dict[str, Any]] = []
    unreadable = 0
    for image_id, (file, copy) in enumerate(
        zip(tqdm(files, disable=None), copies, strict=True), start=1
    ):
        try:
            image = read_image(file, "BGR")
        except DataError as error:
            _log.error("%s", error)
            unreadable += 1
            continue
        found = _predict(predictor, image, min_score)
        rows += _to_coco(found, image_id, str(file), metadata)
        copy.parent.mkdir(parents=True, exist_ok=True)
        drawn = Visualizer(image[:, :, ::-1], metadata).draw_instance_predictions(found)
        drawn.save(copy)
    _write_json(output_dir, rows)
    _log.info("%d objects in %d images, see %s", len(rows), len(files) - unreadable, output_dir)
    if unreadable:
        raise DataError(f"{unreadable} of {len(files)} images could not be read, see above")


def predict_video(
    predictor: Predictor,
    file: Path,
    output_dir: Path,
    metadata: Metadata | None = None,
    min_score: float = 0.5,
) -> None:
    """Draw what is found in each frame, as an mp4 of the same name, and write the json.

    Args:
        predictor: such as a `DefaultPredictor`.
        file: anything that OpenCV decodes. In the json `image_id` is the frame, from 1.
        output_dir: made if it is not there.
        metadata: as for `predict_images`.
        min_score: likewise.

    Raises:
        DataError: OpenCV is missing or cannot read the file; the copy would overwrite it.
    """
    copy = output_dir / f"{file.stem}.mp4"
    if copy.resolve() == file.resolve():
        raise DataError(f"--output {output_dir} would overwrite {file}; choose another folder")
    rows: list[dict[str, Any]] = []
    output_dir.mkdir(parents=True, exist_ok=True)
    with _video(file, copy) as (frames, write):
        for number, frame in enumerate(frames, start=1):
            found = _predict(predictor, frame, min_score)
            rows += _to_coco(found, number, str(file), metadata)
            # Colours by class: those by instance would jump from frame to frame.
            drawn = Visualizer(frame[:, :, ::-1], metadata, 1, ColorMode.SEGMENTATION)
            write(drawn.draw_instance_predictions(found).get_image()[:, :, ::-1])
    _write_json(output_dir, rows)
    _log.info("%d objects, see %s", len(rows), copy)


def _places_for_copies(files: Sequence[Path], output_dir: Path) -> list[Path]:
    common = os.path.commonpath([file.resolve().parent for file in files]) if files else ""
    copies = []
    for file in files:
        place = output_dir / file.resolve().relative_to(common)
        if place.suffix.lower() not in _DRAWN_SUFFIXES:
            place = place.with_name(f"{place.name}.png")
        copies.append(place)
    originals = {file.resolve() for file in files}
    for copy in copies:
        if copy.resolve() in originals:
            raise DataError(f"--output {output_dir} would overwrite {copy}; choose another folder")
    return copies


def _predict(predictor: Predictor, image: np.ndarray, min_score: float) -> Instances:
    found = predictor(image)["instances"].to("cpu")
    return found[found.scores >= min_score]


def _to_coco(
    found: Instances, image_id: int, file_name: str, metadata: Metadata | None
) -> list[dict[str, Any]]:
    names = metadata.get("thing_classes", []) if metadata is not None else []
    id_map = metadata.get("thing_dataset_id_to_contiguous_id", {}) if metadata is not None else {}
    dataset_ids = {contiguous: dataset for dataset, contiguous in id_map.items()}
    masks = encode_masks(found.pred_masks) if found.has("pred_masks") else None
    rows = []
    objects = zip(
        found.pred_boxes.tensor.tolist(),
        found.scores.tolist(),
        found.pred_classes.tolist(),
        strict=True,
    )
    for i, ((x1, y1, x2, y2), score, label) in enumerate(objects):
        row = {
            "image_id": image_id,
            "file_name": file_name,
            "category_id": dataset_ids.get(label, label),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        if label < len(names):
            row["category_name"] = names[label]
        if masks is not None:
            row["segmentation"] = masks[i]
        rows.append(row)
    return rows


def _write_json(output_dir: Path, rows: list[dict[str, Any]]) -> None:
    output_dir.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rows, ensure_ascii=False)
    (output_dir / "predictions.json").write_text(text, encoding="utf-8")


@contextmanager
def _video(
    file: Path, copy: Path
) -> Iterator[tuple[Iterator[np.ndarray], Callable[[np.ndarray], object]]]:
    """The frames of a video (H, W, 3) BGR, and a function that adds one to its copy."""
    try:
        import cv2  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise DataError("--video needs OpenCV: pip install opencv-python-headless") from None
    reader = cv2.VideoCapture(str(file))
    size = int(reader.get(cv2.CAP_PROP_FRAME_WIDTH)), int(reader.get(cv2.CAP_PROP_FRAME_HEIGHT))
    if not reader.isOpened() or min(size) < 1:
        raise DataError(f"video {file} cannot be decoded")
    count = max(int(reader.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
    rate = reader.get(cv2.CAP_PROP_FPS) or 25.0
    writer = cv2.VideoWriter(str(copy), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)

    def frames() -> Iterator[np.ndarray]:
        with tqdm(total=count or None, unit="frame", disable=None) as bar:
            while True:
                is_frame, frame = reader.read()
                if not is_frame:
                    return
                yield frame
                bar.update()

    try:
        if not writer.isOpened():
            raise DataError(f"OpenCV cannot write {copy}")
        yield frames(), writer.write
    finally:
        reader.release()
        writer.release()
