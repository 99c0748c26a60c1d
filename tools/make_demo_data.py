#!/usr/bin/env python
"""Draws the demo data set: photo-like scenes with instance, panoptic and semantic annotation."""

import argparse

from segdet.cli import run_command
from segdet.data.builtin import datasets_root
from segdet.data.demo import make_demo_dataset


def main(argv: list[str]) -> None:
    """Parse the arguments and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default=str(datasets_root() / "demo"), help="folder to fill")
    parser.add_argument("--num-train", type=int, default=200, help="pictures to train on")
    parser.add_argument("--num-val", type=int, default=50, help="held-out pictures")
    parser.add_argument("--seed", type=int, default=0, help="another one gives other pictures")
    args = parser.parse_args(argv)
    folder = make_demo_dataset(
        args.output, num_train=args.num_train, num_val=args.num_val, seed=args.seed
    )
    print(f"{args.num_train} + {args.num_val} pictures in {folder}")


if __name__ == "__main__":
    run_command(main)
