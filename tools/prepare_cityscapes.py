#!/usr/bin/env python
"""Writes Cityscapes' labelTrainIds.png and panoptic annotation, as cityscapesscripts does.

tools/prepare_cityscapes.py cityscapes/leftImg8bit/val cityscapes/gtFine/val
"""

import argparse

from segdet.cli import run_command
from segdet.data.prepare import write_cityscapes


def main(argv: list[str]) -> None:
    """Parse the arguments and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image_dir", help="photos of a split, by city")
    parser.add_argument("gt_dir", help="their annotation, by city")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one for each core")
    args = parser.parse_args(argv)
    count = write_cityscapes(args.image_dir, args.gt_dir, workers=args.workers)
    print(f"files of {count} photos in and beside {args.gt_dir}")


if __name__ == "__main__":
    run_command(main)
