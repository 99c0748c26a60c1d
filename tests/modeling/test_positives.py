from pathlib import Path

import torch
import torch.distributed as dist

from segdet.modeling.positives import enter_mean
from tests.faults.processes import start


def one_of_two(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    mean = torch.tensor(100.0, dtype=torch.float64)
    for number in ([4, 0], [0, 0]):  # of both processes; their mean is never below 1
        enter_mean(mean, number[rank])
    torch.save(mean, folder / f"{rank}.pth")


def test_all_processes_have_one_mean(tmp_path):
    processes = [start(one_of_two, tmp_path, rank) for rank in (0, 1)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1))
    assert first == second
    torch.testing.assert_close(first.item(), (100 * 0.9 + 0.1 * 2) * 0.9 + 0.1)
