"""The eight systems against torchvision's Mask R-CNN and, where it is installed, detectron2's.

    python -m benchmarks.models --json output/models.json --threads 2 --filter "training step"

Every row is of one process, models in turn on the same images and objects; see
`benchmarks.models.systems` for what they are. There are rows of

- speed: a prediction of 1 and of 4 images, a training step of 1 and of 2: forward, backward and
  SGD with momentum. All have torchvision's Mask R-CNN as the peer, which the papers of the other
  systems compare them with. "to RLE" goes on until masks are encoded at the size of the image;
- "stages of": the time inside of each part of a model;
- "memory of": the most memory of a process that does nothing else, with what its imports take;
- "scaling with": image size, objects, batch or threads.

`--filter` chooses rows, so that a part can be run while the machine is quiet, and `--update` keeps
the others of the file. `limit_s` counts the convolutions and matrix products of our model alone, at
the measured rate. `python -m benchmarks.models.page` draws and writes docs/benchmarks.md of a file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import yolact
from benchmarks.models import memory, rows, stages
from benchmarks.ops.duel import show, write


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--update", action="store_true", help="and keep its rows of other names")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--runs", type=int, default=5, help="timed calls of each (default: 5)")
    parser.add_argument(
        "--filter", action="append", default=[], metavar="WORD", help="only rows that contain it"
    )
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = True  # as PyTorch's convolutions do by themselves
    kept = json.loads(args.json.read_text()) if args.update and args.json.exists() else []
    found: list[dict[str, Any]] = []
    for row in measure(args):
        found.append(row)
        names = {one["name"] for one in found}
        write([one for one in kept if one["name"] not in names] + found, args.json)
    show([row for row in found if row["ours_s"] is not None])
    yolact.show_shares(found)
    for row in found:
        if row["ours_s"] is None:
            print(f"{row['name']}: {row['ours_mib']:.0f} MiB, peer {row['peer_mib']:.0f} MiB")


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows that the command line asks for."""

    def wanted(name: str) -> bool:
        return all(word in name for word in args.filter)

    clock = rows.Clock(args.device, args.threads, args.runs)
    for case in (*rows.speed_cases(), *rows.scaling_cases(args.threads)):
        if wanted(case.name):
            yield from clock.measure(case)
    yield from stages.rows(args.device, args.threads, args.runs, wanted)
    if args.device == "cpu":
        yield from memory.rows(args.threads, wanted)
    for word in args.filter[:1] or [""]:
        torch.set_num_threads(args.threads)
        yield from (row for row in yolact.rows(args.device, word) if wanted(row["name"]))


if __name__ == "__main__":
    main()
