"""What every fault of the newest checkpoint, or of the disk that it goes to, ends in.

python -m benchmarks.trust.checkpoint_faults [--json FILE]

Each case damages a folder with two checkpoints, or lets a process save a third one where it cannot,
and resumes. Well ended means: resumed from a whole checkpoint, or an error of one line that names
the file; and that no other file has changed.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from segdet.checkpoint import DetectionCheckpointer
from segdet.checkpoint.manifest import MANIFEST
from segdet.errors import CheckpointError

OLD, NEWEST, NEXT = "model_0000001.pth", "model_0000003.pth", "model_0000005.pth"
STEP = 1 << 16
_FORK = multiprocessing.get_context("fork")
_NOBODY = 65534


def checkpointer_of(folder: Path, value: int = 0) -> DetectionCheckpointer:
    """Of a model of 1 MB, all of whose weights are `value`."""
    model = nn.Linear(512, 512)
    nn.init.constant_(model.weight, value)
    return DetectionCheckpointer(model, folder)


def save(folder: Path, value: int) -> None:
    checkpointer_of(folder, value).save(f"model_{value:07d}", iteration=value)


def resume(folder: Path) -> str:
    """What resuming ends in."""
    checkpointer = checkpointer_of(folder)
    try:
        iteration = checkpointer.resume_or_load("")["iteration"]
    except CheckpointError as error:
        return "an error of one line" if "\n" not in str(error) else "BAD: an error of many lines"
    whole = bool(checkpointer.model.state_dict()["weight"].eq(iteration).all())
    return f"resumed from iteration {iteration}" if whole else "BAD: resumed from damaged weights"


def refused(folder: Path, prepare: Callable[[], object]) -> str:
    """What a save ends in, in a process that is kept from writing by `prepare`."""
    results = _FORK.SimpleQueue()

    def attempt() -> None:
        prepare()
        try:
            save(folder, 5)
            results.put("saved")
        except CheckpointError as error:
            results.put("" if "\n" not in str(error) else "BAD: an error of many lines")
        except BaseException as error:
            results.put(f"BAD: {type(error).__name__}")

    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    process = _FORK.Process(target=attempt)
    process.start()
    process.join()
    said = results.get() if process.exitcode == 0 else f"BAD: ended with {process.exitcode}"
    if said == "" and before != {path.name: path.read_bytes() for path in folder.iterdir()}:
        return "BAD: other files have changed"
    return said or f"an error of one line, then {resume(folder)}"


def cases(newest: bytes) -> Iterator[tuple[str, Callable[[Path], str]]]:
    """Kind of fault, and a function that brings it about in a folder and says what came of it."""

    def damaged(content: bytes, manifest: bool = True) -> Callable[[Path], str]:
        def run(folder: Path) -> str:
            (folder / NEWEST).write_bytes(content)
            if not manifest:
                (folder / MANIFEST).unlink()
            return resume(folder)

        return run

    for size in range(0, len(newest), STEP):
        yield "cut short at every 64 KB", damaged(newest[:size])
        yield "the same, without the manifest", damaged(newest[:size], manifest=False)
    draw = random.Random(0)
    for _ in range(100):
        place, bit = draw.randrange(len(newest)), 1 << draw.randrange(8)
        flipped = newest[:place] + bytes([newest[place] ^ bit]) + newest[place + 1 :]
        yield "one bit of 100 random ones flipped", damaged(flipped)
    yield "empty", damaged(b"")
    for alien in (b"GIF89a", b"\0" * 5000, b"PK\x03\x04" + b"\xff" * 99, b"\x80\x02cos\nsystem\n."):
        yield "another kind of file", damaged(alien)
    for name, text in (("last_checkpoint", ""), ("last_checkpoint", "x\0"), (MANIFEST, "{")):

        def bad_text(folder: Path, name: str = name, text: str = text) -> str:
            (folder / name).write_text(text)
            return resume(folder)

        yield f"{name} damaged", bad_text
    for limit in range(0, len(newest), STEP):

        def full(folder: Path, limit: int = limit) -> str:
            limits = (limit, limit)
            return refused(folder, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits))

        yield "disk full at every 64 KB", full

    def read_only(folder: Path) -> str:
        folder.chmod(0o555)
        return refused(folder, lambda: os.geteuid() or os.setuid(_NOBODY))

    yield "folder read-only", read_only


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the rows there, too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    counts: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        good, folder = Path(name, "good"), Path(name, "run")
        for value in (1, 3):
            save(good, value)
        for kind, run in cases((good / NEWEST).read_bytes()):
            shutil.copytree(good, folder)
            counts[kind, run(folder)] += 1
            folder.chmod(0o755)
            shutil.rmtree(folder)
    rows = [{"fault": kind, "ended": end, "cases": n} for (kind, end), n in counts.items()]
    for row in rows:
        print(f"{row['fault']:38} {row['cases']:4}  {row['ended']}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    raise SystemExit(any("BAD" in end for _, end in counts))


if __name__ == "__main__":
    main()
