import json

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from segdet.evaluation.row_file import RowFile


@pytest.mark.parametrize("rows", [[], [{"a": "ü\n"}], list(range(1200))])
def test_rows_come_back_as_a_list(tmp_path, rows):
    kept = RowFile()
    for row in rows:
        kept.add(row)
    for _ in range(2):  # an evaluation may be asked twice
        kept.write(tmp_path / "new/rows.json")
        assert json.loads((tmp_path / "new/rows.json").read_text()) == rows


def test_the_list_stands_in_other_text(tmp_path):
    kept = RowFile()
    kept.add([1])
    kept.write(tmp_path / "rows.json", head='{"rows": [', tail="]}")
    assert json.loads((tmp_path / "rows.json").read_text()) == {"rows": [[1]]}


def _part(rank: int, folder) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=3)
    kept, own = RowFile(), RowFile()
    for i in range((600, 0, 3)[rank]):
        kept.add([rank, i])
        own.add(i)
    kept.write(folder / "all.json")
    own.write(folder / f"{rank}.json", gather=False)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_processes_write_one_file(tmp_path):
    mp.spawn(_part, args=(tmp_path,), nprocs=3)
    rows = json.loads((tmp_path / "all.json").read_text())
    assert rows == [[0, i] for i in range(600)] + [[2, i] for i in range(3)]
    assert json.loads((tmp_path / "2.json").read_text()) == [0, 1, 2]
