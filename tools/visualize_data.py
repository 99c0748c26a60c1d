#!/usr/bin/env python
"""Draws training data as annotated, or as the model gets it after augmentation."""

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from segdet.cli import run_command
from segdet.config import CfgNode
from segdet.data import MetadataCatalog, build_detection_train_loader, get_detection_dataset_dicts
from segdet.data.detection_utils import convert_image_to_rgb, read_image
from segdet.engine.setup import add_project_argument, load_config
from segdet.utils.visualizer import VisImage, Visualizer


def draw_annotations(cfg: CfgNode) -> Iterator[VisImage]:
    """Each image of DATASETS.TRAIN with its annotations."""
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    for record in get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False):
        image = read_image(record["file_name"], "RGB")
        yield Visualizer(image, metadata).draw_dataset_dict(record)


def draw_samples(cfg: CfgNode) -> Iterator[VisImage]:
    """The stream of training samples, without end."""
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    for batch in build_detection_train_loader(cfg):
        for sample in batch:
            image = convert_image_to_rgb(sample["image"].permute(1, 2, 0).numpy(), cfg.INPUT.FORMAT)
            drawing = Visualizer(image, metadata)
            if "sem_seg" in sample:
                drawing.draw_sem_seg(sample["sem_seg"])
            if "instances" in sample:
                targets = sample["instances"]
                drawing.overlay_instances(
                    boxes=targets.gt_boxes,
                    labels=[
                        metadata.thing_classes[k] if k >= 0 else "crowd" for k in targets.gt_classes
                    ],
                    masks=targets.gt_masks if targets.has("gt_masks") else None,
                )
            yield drawing.output


SOURCES = {"annotation": draw_annotations, "dataloader": draw_samples}


def main(argv: list[str]) -> None:
    """Parse the arguments and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", choices=SOURCES, required=True)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    add_project_argument(parser)
    parser.add_argument("--output-dir", default="output/data", metavar="DIR")
    parser.add_argument("--count", type=int, default=50, help="pictures at most")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    args = parser.parse_args(argv)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(islice(SOURCES[args.source](load_config(args)), args.count)):
        picture.save(str(folder / f"{i:04d}.jpg"))
    print(f"pictures in {folder}")


if __name__ == "__main__":
    run_command(main)
