"""Writers that are killed, short of space or forbidden to write: the last good checkpoint stays."""

import os
import random
import resource
import time
from pathlib import Path

import pytest
from torch import nn

from segdet.checkpoint import DetectionCheckpointer, PeriodicCheckpointer
from segdet.errors import CheckpointError
from segdet.utils.writing import remove_leftovers
from tests.faults.processes import NOBODY, exit_code_of, folder_for_all, start


def checkpointer_of(folder: Path, value: float = 0.0) -> DetectionCheckpointer:
    model = nn.Linear(256, 256)
    nn.init.constant_(model.weight, value)
    return DetectionCheckpointer(model, folder)


def resumed(folder: Path) -> tuple[int, float]:
    """Iteration and weight that a new run goes on from."""
    checkpointer = checkpointer_of(folder)
    rest = checkpointer.resume_or_load("")
    weight = checkpointer.model.weight
    assert weight.eq(weight[0, 0]).all()
    return rest.get("iteration", -1), weight[0, 0].item()


def save_and_say_why(folder: Path, limit: int | None = None) -> None:
    """Exit code 0 if it ends with one message."""
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with pytest.raises(CheckpointError, match=r"model_0000003.pth cannot be saved: .* --resume"):
        checkpointer_of(folder, 3.0).save("model_0000003", iteration=3)


@pytest.mark.parametrize("limit", [0, 1, 65536, 200_000])
def test_a_full_disk(tmp_path, limit):
    checkpointer_of(tmp_path, 1.0).save("model_0000001", iteration=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert exit_code_of(save_and_say_why, tmp_path, limit) == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert resumed(tmp_path) == (1, 1.0)


def test_a_folder_that_may_only_be_read():
    with folder_for_all() as folder:
        checkpointer_of(folder, 1.0).save("model_0000001", iteration=1)
        os.chmod(folder, 0o555)

        def as_nobody() -> None:
            if os.geteuid() == 0:
                os.setuid(NOBODY)
            save_and_say_why(folder)

        assert exit_code_of(as_nobody) == 0
        assert resumed(folder) == (1, 1.0)
        os.chmod(folder, 0o755)


def save_without_end(folder: Path, kept: int | None) -> None:
    checkpointer = checkpointer_of(folder)
    periodic = PeriodicCheckpointer(checkpointer, 1, max_to_keep=kept)
    for iteration in range(10**7):
        nn.init.constant_(checkpointer.model.weight, float(iteration))
        periodic.step(iteration)
        checkpointer.save("model_best", tag=False, iteration=iteration)


@pytest.mark.parametrize("kept", [None, 1])
def test_writers_killed_at_any_moment(tmp_path, kept):
    draw = random.Random(0)
    for _ in range(6):
        before = resumed(tmp_path)[0]
        process = start(save_without_end, tmp_path, kept)
        while not (tmp_path / "last_checkpoint").exists():
            time.sleep(0.001)
        time.sleep(draw.uniform(0.0, 0.1))
        process.kill()
        process.join()
        assert process.exitcode == -9
        iteration, weight = resumed(tmp_path)
        assert iteration == weight >= min(before, 0)
        best = checkpointer_of(tmp_path)
        if (tmp_path / "model_best.pth").exists():
            assert best.load(tmp_path / "model_best.pth")["iteration"] == best.model.weight[0, 0]
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.glob(".*")] == []


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "alien", "gone", "folder"])
def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, damage, caplog):
    for iteration in (1, 3):
        checkpointer_of(tmp_path, iteration).save(f"model_{iteration:07d}", iteration=iteration)
    newest = tmp_path / "model_0000003.pth"
    whole = newest.read_bytes()
    newest.unlink()
    if damage == "folder":
        newest.mkdir()
    elif damage != "gone":
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :]
        content = {"cut": whole[:-65536], "flip": flipped, "empty": b"", "alien": b"GIF89a"}
        newest.write_bytes(content[damage])
    assert resumed(tmp_path) == (1, 1.0)
    assert "going on from model_0000001.pth, the last that is whole" in caplog.text
    (tmp_path / "model_0000001.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match="model_0000003"):
        resumed(tmp_path)


def test_training_on_replaces_the_damaged_one(tmp_path):
    for iteration in (1, 3):
        checkpointer_of(tmp_path, iteration).save(f"model_{iteration:07d}", iteration=iteration)
    (tmp_path / "model_0000003.pth").write_bytes(b"")
    assert resumed(tmp_path) == (1, 1.0)
    checkpointer_of(tmp_path, 3.0).save("model_0000003", iteration=3)
    assert resumed(tmp_path) == (3, 3.0)
