#!/usr/bin/env python
"""Trains a small Mask R-CNN from scratch in a few CPU minutes, evaluates it and draws its results.

make demo                                        on the data set that the project makes itself
make demo DATA=instances.json IMAGES=photos      on yours: COCO json, every 5th image held out
"""

import argparse
import json
import os
from pathlib import Path

from segdet.cli import run_command
from segdet.config import CfgNode, get_cfg
from segdet.data.demo import make_demo_dataset
from segdet.data.readers.coco_json import parse_json, read_tree, rows_of
from segdet.engine import DefaultTrainer, default_setup
from segdet.errors import DataError

ROOT = Path(__file__).resolve().parents[1]
DEMO_DATA = ROOT / "datasets" / "demo"
COUNTING_CLASSES = ("ROI_HEADS", "POINT_HEAD", "RETINANET", "FCOS", "BASIS_MODULE", "YOLACT")
HOLD_OUT = 5  # every 5th image of a user's data set is for evaluation


def parse_args(argv: list[str]) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default=str(ROOT / "configs" / "demo" / "mask_rcnn.yaml"))
    parser.add_argument("--data", default="", help="COCO json with instance annotations")
    parser.add_argument("--images", default="", help="folder of its images; goes with --data")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs of the config")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Data, training, evaluation, pictures."""
    args = parse_args(argv)
    cfg = get_cfg()
    cfg.merge_from_file(args.config_file)
    if args.data:
        use_own_data(cfg, Path(args.data), args.images)
    else:
        if not (DEMO_DATA / "annotations" / "instances_val.json").exists():
            print(f"making the demo data set in {DEMO_DATA}")
            make_demo_dataset(DEMO_DATA)
        os.environ["SEGDET_DATASETS"] = str(DEMO_DATA.parent)  # where the config's names are
    cfg.merge_from_list(args.opts)
    default_setup(cfg, args)
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    print(f"metrics, weights and pictures are in {cfg.OUTPUT_DIR}")


def use_own_data(cfg: CfgNode, json_file: Path, images: str) -> None:
    """Splits a COCO json into training and held-out images, and points the config at both."""
    if not images or not Path(images).is_dir():  # "" would be the folder that we are in
        raise DataError(
            f"--images {images!r} is not a folder; it must hold the images of {json_file}"
        )
    data = parse_json(json_file)
    rows = {key: rows_of(json_file, data, key) for key in ("images", "annotations", "categories")}
    ids = [record["image_id"] for record in read_tree(json_file, data, images, ()).records]
    held_out = set(ids[HOLD_OUT - 1 :: HOLD_OUT]) or set(ids[-1:])
    folder = Path(cfg.OUTPUT_DIR) / "split"
    folder.mkdir(parents=True, exist_ok=True)
    for key, name, is_ours in (
        ("TRAIN", "train", lambda i: i not in held_out),
        ("TEST", "val", lambda i: i in held_out),
    ):
        part = {
            **data,
            "images": [image for image in rows["images"] if is_ours(image["id"])],
            "annotations": [a for a in rows["annotations"] if is_ours(a.get("image_id"))],
        }
        (folder / f"{name}.json").write_text(json.dumps(part))
        cfg.DATASETS[key] = (f"{folder / f'{name}.json'}:{images}",)
    for part in COUNTING_CLASSES:
        cfg.MODEL[part].NUM_CLASSES = len(rows["categories"])


if __name__ == "__main__":
    run_command(main)
