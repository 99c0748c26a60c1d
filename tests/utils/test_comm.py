import os

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from segdet.utils import comm


def test_a_single_process_needs_no_group():
    assert (comm.get_world_size(), comm.get_rank(), comm.get_local_rank()) == (1, 0, 0)
    assert comm.get_local_size() == 1
    assert comm.is_main_process()
    comm.synchronize()
    assert comm.all_gather("x") == ["x"]
    assert comm.gather("x") == ["x"]
    assert comm.reduce_dict({"loss": torch.tensor(2.0)}) == {"loss": torch.tensor(2.0)}
    assert comm.mean_over_processes(torch.tensor([2.0, 3.0])).tolist() == [2, 3]
    assert 0 <= comm.shared_random_seed() < 2**31


def both(rank: int, file: str) -> None:
    """The checks of one of two processes; an AssertionError here fails the test below."""
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    os.environ["LOCAL_WORLD_SIZE"] = "2"
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    assert (comm.get_world_size(), comm.get_rank()) == (2, rank)
    assert (comm.get_local_rank(), comm.get_local_size()) == (rank, 2)
    assert comm.is_main_process() == (rank == 0)
    comm.synchronize()
    assert comm.all_gather({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
    assert comm.gather(rank) == ([0, 1] if rank == 0 else [])
    assert comm.gather(rank, dst=1) == ([0, 1] if rank == 1 else [])
    alone = dist.new_subgroups(1)[0]
    assert comm.all_gather(rank, group=alone) == [rank]
    assert comm.gather(rank, dst=rank, group=alone) == [rank]
    values = torch.tensor([rank, 4.0], requires_grad=True)
    assert comm.mean_over_processes(values).tolist() == [0.5, 4.0]
    assert values.tolist() == [rank, 4.0] and not comm.mean_over_processes(values).requires_grad
    seeds = comm.all_gather(comm.shared_random_seed())
    assert seeds[0] == seeds[1]
    reduced = comm.reduce_dict({"b": torch.tensor(rank + 1.0), "a": torch.tensor(4.0)})
    summed = comm.reduce_dict({"b": torch.tensor(rank + 1.0)}, average=False)
    if rank == 0:
        assert {name: value.item() for name, value in reduced.items()} == {"a": 4.0, "b": 1.5}
        assert summed["b"].item() == 3.0
    comm.synchronize()
    dist.destroy_process_group()


def test_two_processes(tmp_path):
    mp.spawn(both, args=(str(tmp_path / "meet"),), nprocs=2)
