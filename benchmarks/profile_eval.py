"""Where a prediction spends its time: operators, and the share of convolutions and products.

    python -m benchmarks.profile_eval --system "Mask R-CNN R50-FPN" --size 480 640 --threads 2

The model, its weights and the work are those of `benchmarks.models`.
"""

from __future__ import annotations

import argparse

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.models.systems import SYSTEMS, our_model, random_batch

PRODUCTS = ("conv", "linear", "mm")  # in the names of operators
STEPS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description="Where a prediction spends its time.")
    parser.add_argument("--system", choices=SYSTEMS, default="Mask R-CNN R50-FPN")
    parser.add_argument("--size", nargs=2, type=int, default=(480, 640), metavar=("H", "W"))
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--rows", type=int, default=20, help="operators shown (default: 20)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = our_model(args.system, "cpu").eval()
    images = random_batch(tuple(args.size), 1, 7, "cpu").ours
    with torch.inference_mode():
        for _ in range(2):  # weights are prepared, memory is there
            model(images)
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            for _ in range(STEPS):
                model(images)
    events = profiled.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    products = sum(
        event.self_cpu_time_total for event in events if any(word in event.key for word in PRODUCTS)
    )
    height, width = args.size
    print(
        f"{args.system} {width}x{height}, {args.threads} threads: {total / STEPS / 1e3:.0f} ms, "
        f"{1 - products / total:.1%} outside of convolutions and products"
    )
    for event in sorted(events, key=lambda e: -e.self_cpu_time_total)[: args.rows]:
        each = event.self_cpu_time_total / STEPS
        print(f"{event.key:40} {each / 1e3:9.2f} ms {each * STEPS / total:7.1%}")


if __name__ == "__main__":
    main()
