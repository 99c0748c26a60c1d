"""Draw the demo data set: tools/make_demo_data.py [--output datasets/demo] [--num-train 200] ..."""

import argparse

from segdet.data.builtin import datasets_root
from segdet.data.demo import make_demo_dataset


def main() -> None:
    """Parse the arguments and draw."""
    parser = argparse.ArgumentParser(description="Draw the demo data set.")
    parser.add_argument("--output", default=str(datasets_root() / "demo"), help="folder to fill")
    parser.add_argument("--num-train", type=int, default=200, help="pictures to train on")
    parser.add_argument("--num-val", type=int, default=50, help="held-out pictures")
    parser.add_argument("--seed", type=int, default=0, help="another one gives other pictures")
    args = parser.parse_args()
    folder = make_demo_dataset(
        args.output, num_train=args.num_train, num_val=args.num_val, seed=args.seed
    )
    print(f"{args.num_train} + {args.num_val} pictures in {folder}")


if __name__ == "__main__":
    main()
