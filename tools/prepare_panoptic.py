#!/usr/bin/env python
r"""Writes the label maps of Panoptic FPN in advance, from COCO panoptic annotation.

tools/prepare_panoptic.py coco/annotations/panoptic_val2017.json \
    coco/panoptic_val2017 coco/panoptic_stuff_val2017

Where they are absent, training makes them as it needs them.
"""

import argparse

from segdet.cli import run_command
from segdet.data.prepare import write_label_maps


def main(argv: list[str]) -> None:
    """Parse the arguments and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("panoptic_json", help="COCO panoptic json")
    parser.add_argument("panoptic_root", help="folder of its pictures of segments")
    parser.add_argument("output", help="folder to fill")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one for each core")
    args = parser.parse_args(argv)
    count = write_label_maps(
        args.panoptic_json, args.panoptic_root, args.output, workers=args.workers
    )
    print(f"{count} label maps in {args.output}")


if __name__ == "__main__":
    run_command(main)
