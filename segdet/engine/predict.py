"""Predict on pictures and videos: drawn copies, and what was found in COCO's formats."""

from __future__ import annotations

import argparse
import glob
import itertools
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from segdet.data.catalog import DatasetCatalog, Metadata, MetadataCatalog
from segdet.data.image_io import read_image
from segdet.data.segment_ids import segments_of_labels, write_segment_ids
from segdet.engine.predictor import DefaultPredictor
from segdet.engine.setup import add_project_argument, load_config
from segdet.engine.video import ahead, open_video
from segdet.errors import ConfigError, DataError
from segdet.evaluation.rle import encode_masks
from segdet.utils.logger import setup_logger
from segdet.utils.visualizer import ColorMode, Visualizer
from segdet.utils.writing import make_output_folder, write_text_atomically

_log = logging.getLogger(__name__)

# (H, W, 3) uint8 BGR -> model's results; where several are predicted at once a list of either
Predictor = Callable[[Any], Any]

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
_DRAWN_SUFFIXES = {".jpeg", ".jpg", ".png"}  # pictures of other formats are drawn as PNG
_MAPS = "panoptic", "sem_seg"  # folders


def main(argv: list[str]) -> None:
    """Predict with a trained model on pictures, a video or a camera."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="the model's config")
    add_project_argument(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input", nargs="+", metavar="PATH", help="images, folders of images or glob patterns"
    )
    source.add_argument("--video", metavar="FILE", help="a video (needs OpenCV)")
    source.add_argument(
        "--webcam",
        nargs="?",
        type=int,
        const=0,
        metavar="NUMBER",
        help="a camera, by default the first (needs OpenCV); Escape or q ends",
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="gets the drawn copies and what was found"
    )
    parser.add_argument(
        "--confidence-threshold", type=float, default=0.5, help="objects below are left out"
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=4,
        metavar="N",
        help="at most so many images that follow each other and have one size are predicted at "
        "once (default: 4)",
    )
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="settings that win over the config file's, such as MODEL.WEIGHTS; they come last",
    )
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        raise ConfigError(f"--batch-size must be >= 1, is {args.batch_size}")
    setup_logger()
    files = find_images([args.video] if args.video else args.input or [])
    cfg = load_config(args)
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError(
            "MODEL.WEIGHTS is empty; name the trained weights: --opts MODEL.WEIGHTS FILE"
        )
    output = Path(args.output)
    make_output_folder(output, "--output")
    predictor = DefaultPredictor(cfg)
    metadata = load_metadata(cfg.DATASETS.TEST)
    if args.input:
        predict_images(
            predictor, files, output, metadata, args.confidence_threshold, args.batch_size
        )
    else:
        source = files[0] if args.video else args.webcam
        predict_video(predictor, source, output, metadata, args.confidence_threshold)


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
    if metadata.get("thing_classes") is None and metadata.get("stuff_classes") is None:
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
    batch_size: int = 1,
) -> None:
    """Draw what is found in each image, and write it in COCO's formats.

    `predictions.json` is a COCO results list of objects; each record also has its image's
    `file_name`. Images are numbered from 1 in the given order (`image_id`), whether something is
    found in them or not. Segments go to `panoptic.json` and PNG files in `panoptic`; label maps of
    a model without segments to PNG files in `sem_seg`, as the model counts classes.

    Args:
        predictor: such as a `DefaultPredictor`.
        files: images. The copies keep their names, and their folders below the common one.
        output_dir: made if it is not there.
        metadata: of the data set, for names, ids and colours of classes.
        min_score: objects below are left out.
        batch_size: at most so many neighbours of one size are predicted at once; more than 1 needs
            a predictor that takes a list.

    Raises:
        DataError: a copy or map would overwrite an input or another one (nothing is done then); or
            images could not be read (each is reported, the others are done).
    """
    copies = _places_for_copies(files, output_dir)
    maps = _names_of_maps([copy.relative_to(output_dir) for copy in copies])
    _check_places(files, copies + [output_dir / kind / name for kind in _MAPS for name in maps])
    rows: list[dict[str, Any]] = []
    segmented: list[dict[str, Any]] = []
    unreadable: list[DataError] = []
    images = _read_images(tqdm(files, disable=None), unreadable)
    for image_id, image, found in _predict_batches(
        predictor, images, batch_size, metadata, min_score
    ):
        file, copy, name = files[image_id - 1], copies[image_id - 1], maps[image_id - 1]
        rows += _to_coco(found, image_id, str(file), metadata)
        if "panoptic_seg" in found:
            segments = _write_segments(output_dir / _MAPS[0] / name, found, metadata)
            row = {"image_id": image_id, "file_name": name.as_posix(), "segments_info": segments}
            segmented.append(row)
        elif "sem_seg" in found:
            _write_labels(output_dir / _MAPS[1] / name, found["sem_seg"])
        copy.parent.mkdir(parents=True, exist_ok=True)
        drawn = Visualizer(image[:, :, ::-1], metadata).draw_predictions(found)
        drawn.save(copy)
    _write_json(output_dir / "predictions.json", rows)
    if segmented:
        _write_json(output_dir / "panoptic.json", {"annotations": segmented})
    read = len(files) - len(unreadable)
    _log.info("%d objects in %d images, see %s", len(rows), read, output_dir)
    if unreadable:
        raise DataError(f"{len(unreadable)} of {len(files)} images could not be read, see above")


def _read_images(
    files: Iterable[Path], unreadable: list[DataError]
) -> Iterator[tuple[int, np.ndarray]]:
    """The images with their numbers, from 1; those that cannot be read are reported."""
    for number, file in enumerate(files, start=1):
        try:
            yield number, read_image(file, "BGR")
        except DataError as error:
            _log.error("%s", error)
            unreadable.append(error)


def _predict_batches(
    predictor: Predictor,
    images: Iterable[tuple[int, np.ndarray]],
    batch_size: int,
    metadata: Metadata | None,
    min_score: float,
) -> Iterator[tuple[int, np.ndarray, dict[str, Any]]]:
    """What is found in numbered images.

    Only neighbours of one size share a batch, so that none is padded for the sake of others.
    """
    for _, alike in itertools.groupby(images, key=lambda one: one[1].shape):
        while batch := list(itertools.islice(alike, batch_size)):
            if len(batch) == 1:
                results = [predictor(batch[0][1])]
            else:
                results = predictor([image for _, image in batch])
            for (number, image), found in zip(batch, results, strict=True):
                yield number, image, _of_dataset(found, metadata, min_score)


def predict_video(
    predictor: Predictor,
    source: Path | int,
    output_dir: Path,
    metadata: Metadata | None = None,
    min_score: float = 0.5,
) -> None:
    """Draw what is found in each frame, as an mp4 of the same name, and write `predictions.json`.

    Frames are decoded, predicted, drawn and written at the same time, each step in a thread.

    Args:
        predictor: such as a `DefaultPredictor`.
        source: anything that OpenCV decodes, or the number of a camera, whose copy is webcam.mp4
            and whose pictures are shown until Escape or q is pressed. In the json `image_id` is the
            frame, from 1.
        output_dir: made if it is not there.
        metadata: as for `predict_images`.
        min_score: likewise.

    Raises:
        DataError: OpenCV is missing or cannot read the source; the copy would overwrite it.
    """
    copy = output_dir / ("webcam.mp4" if isinstance(source, int) else f"{source.stem}.mp4")
    if isinstance(source, Path) and copy.resolve() == source.resolve():
        raise DataError(f"--output {output_dir} would overwrite {source}; choose another folder")
    rows: list[dict[str, Any]] = []
    output_dir.mkdir(parents=True, exist_ok=True)

    def draw(number: int, frame: np.ndarray, found: dict[str, Any]) -> tuple[list[Any], np.ndarray]:
        # Colours by class: those by instance would jump from frame to frame.
        drawn = Visualizer(frame[:, :, ::-1], metadata, 1, ColorMode.SEGMENTATION)
        picture = drawn.draw_predictions(found).get_image()[:, :, ::-1]
        return _to_coco(found, number, str(source), metadata), picture

    with open_video(source, copy) as video, tqdm(total=video.count, unit="frame") as bar:
        frames = enumerate(ahead(video.frames()), start=1)
        found = ahead(
            (i, one, _of_dataset(predictor(one), metadata, min_score)) for i, one in frames
        )
        for more, picture in ahead(draw(*one) for one in found):
            rows += more
            bar.update()
            if not video.write(picture, bar.format_dict["rate"]):
                break
        took = max(bar.format_dict["elapsed"], 1e-9)
    _write_json(output_dir / "predictions.json", rows)
    _log.info("%d objects, %.1f frames/s, see %s", len(rows), bar.n / took, copy)


def _places_for_copies(files: Sequence[Path], output_dir: Path) -> list[Path]:
    common = os.path.commonpath([file.resolve().parent for file in files]) if files else ""
    copies = []
    for file in files:
        place = output_dir / file.resolve().relative_to(common)
        if place.suffix.lower() not in _DRAWN_SUFFIXES:
            place = place.with_name(f"{place.name}.png")
        copies.append(place)
    return copies


def _check_places(files: Sequence[Path], places: Sequence[Path]) -> None:
    """Refuse to write over an original, or to write two pictures to one place."""
    taken = {file.resolve() for file in files}
    for place in places:
        if place.resolve() in taken:
            raise DataError(
                f"--output would overwrite {place}, which is an input or made of one; choose "
                "another folder, or fewer images at once"
            )
        taken.add(place.resolve())


def _of_dataset(
    found: dict[str, Any], metadata: Metadata | None, min_score: float
) -> dict[str, Any]:
    """What is found, segments with contiguous classes; of instances those of a sufficient score."""
    if "panoptic_seg" in found and found["panoptic_seg"][1] is not None:
        ids, segments = found["panoptic_seg"]
        found = {**found, "panoptic_seg": (ids, [_contiguous(s, metadata) for s in segments])}
    if "instances" not in found:
        return found
    instances = found["instances"].to("cpu")
    return {**found, "instances": instances[instances.scores >= min_score]}


def _contiguous(segment: dict[str, Any], metadata: Metadata | None) -> dict[str, Any]:
    """A segment without `isthing` has the data set's id as `category_id`, see the evaluator."""
    if segment.get("isthing") is not None:
        return segment
    category = segment["category_id"]
    for kind in ("thing", "stuff"):
        for label, dataset_id in _dataset_ids(metadata, kind).items():
            if dataset_id == category:
                return {**segment, "isthing": kind == "thing", "category_id": label}
    raise DataError(
        f"segment {segment['id']} has no isthing, and category {category} is none of the data set's"
    )


def _dataset_ids(metadata: Metadata | None, kind: str) -> dict[int, int]:
    """The model's class -> id in the data set, as far as they are known; `kind` thing or stuff."""
    facts = metadata.as_dict() if metadata is not None else {}
    return {k: one for one, k in facts.get(f"{kind}_dataset_id_to_contiguous_id", {}).items()}


def _to_coco(
    output: dict[str, Any], image_id: int, file_name: str, metadata: Metadata | None
) -> list[dict[str, Any]]:
    if "instances" not in output:
        return []
    found = output["instances"]
    names = metadata.get("thing_classes", []) if metadata is not None else []
    dataset_ids = _dataset_ids(metadata, "thing")
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
        if found.has("mask_scores"):
            row["mask_score"] = found.mask_scores[i].item()
        rows.append(row)
    return rows


def _names_of_maps(copies: Sequence[Path]) -> list[Path]:
    """Of each picture a PNG of its name; with its suffix where two differ in that alone."""
    names = [copy.with_suffix(".png") for copy in copies]
    count = Counter(names)
    return [
        name if count[name] == 1 else copy.with_name(f"{copy.name}.png")
        for name, copy in zip(names, copies, strict=True)
    ]


def _write_segments(
    file: Path, output: dict[str, Any], metadata: Metadata | None
) -> list[dict[str, Any]]:
    """Write the picture of ids, and give the `segments_info` of COCO's panoptic format."""
    ids, segments = output["panoptic_seg"]
    ids = torch.as_tensor(ids).cpu().numpy()
    if segments is None:
        if metadata is None:
            raise DataError("DATASETS.TEST must name a data set: its label_divisor tells segments")
        things = metadata.thing_dataset_id_to_contiguous_id.values()
        ids, segments = segments_of_labels(ids, metadata.label_divisor, things)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_segment_ids(file, ids)
    known = {kind: _dataset_ids(metadata, kind) for kind in ("thing", "stuff")}
    rows = []
    for segment in segments:
        label = segment["category_id"]
        category = known["thing" if segment["isthing"] else "stuff"].get(label, label)
        rows.append({"id": int(segment["id"]), "category_id": category})
    return rows


def _write_labels(file: Path, scores: torch.Tensor) -> None:
    """Write the map of the best classes, (H, W) of as few bytes as hold all classes."""
    labels = scores.argmax(0).cpu().numpy().astype(np.min_scalar_type(len(scores) - 1))
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels).save(file)


def _write_json(file: Path, tree: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(file, json.dumps(tree, ensure_ascii=False))
