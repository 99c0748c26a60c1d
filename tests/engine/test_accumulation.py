"""One batch in parts: Mask R-CNN's gradients are those of the whole, to float tolerance."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from segdet.config import CfgNode, get_cfg
from segdet.data import build_detection_train_loader
from segdet.engine import SimpleTrainer, create_ddp_model
from segdet.engine.accumulation import as_share, split
from segdet.errors import ConfigError
from segdet.layers import Losses
from segdet.modeling import build_model
from tests.engine.test_train_net import ROOT, SETTINGS, arguments, data  # noqa: F401  a fixture
from tests.faults.processes import start

# Everything is sampled, so that nothing depends on what is drawn; norms look at no other image.
WHOLE = """
    MODEL.RPN.BATCH_SIZE_PER_IMAGE 100000 MODEL.RPN.POSITIVE_FRACTION 1.0
    MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 100000 MODEL.ROI_HEADS.POSITIVE_FRACTION 1.0
    MODEL.RESNETS.NORM FrozenBN SOLVER.IMS_PER_BATCH 4 DATALOADER.NUM_WORKERS 0
"""


@pytest.fixture
def cfg(data) -> CfgNode:  # noqa: F811
    cfg = get_cfg()
    cfg.merge_from_file(str(ROOT / "configs/Base-RCNN-FPN.yaml"))
    settings = [part for pair in SETTINGS.items() for part in pair]
    cfg.merge_from_list([*settings, "DATASETS.TRAIN", f"('{data}',)", *WHOLE.split()])
    return cfg


def gradients(cfg: CfgNode, parts: int = 1) -> tuple[dict[str, Tensor], float]:
    """After one step at learning rate 0; and the total loss that the run shows."""
    torch.manual_seed(0)
    model = build_model(cfg)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    loader = build_detection_train_loader(cfg)
    trainer = SimpleTrainer(create_ddp_model(model), loader, optimizer, seed=1)
    trainer.accumulate = parts
    trainer.train(0, 1)
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return found, trainer.storage.latest()["total_loss"][0]


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Of two gradients, relative to their norm; that of a single tensor is bounded here."""
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name] - b[name]).norm() <= 5e-6 * a[name].norm(), name
    one, other = (torch.cat([x[name].flatten() for name in a]) for x in (a, b))
    return float((one - other).norm() / one.norm())


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_in_parts(cfg, parts):
    whole, loss = gradients(cfg)
    others, other_loss = gradients(cfg, parts)
    assert other_loss == pytest.approx(loss, rel=1e-6)
    assert difference(whole, others) < 1e-6


def in_two(cfg: CfgNode, folder: Path, rank: int, parts: int) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.save(gradients(cfg, parts), folder / f"{rank}.pth")


@pytest.mark.parametrize("parts", [1, 2])
def test_in_two_processes(cfg, tmp_path, parts):
    whole, loss = gradients(cfg)
    processes = [start(in_two, cfg, tmp_path, rank, parts) for rank in (0, 1)]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    for rank in (0, 1):
        others, other_loss = torch.load(tmp_path / f"{rank}.pth")
        assert other_loss == pytest.approx(loss, rel=1e-6)
        assert difference(whole, others) < 1e-6


def test_means_over_counts_and_means_over_images():
    losses = Losses(
        {"a": torch.tensor(2.0), "b": torch.tensor(3.0)}, {"m": 1.0}, {"a": 6, "none": 0}
    )
    shared = as_share(losses, 0.25, {"a": 8.0, "none": 0.0})
    assert shared == {"a": 1.5, "b": 0.75}
    assert as_share(losses, 0.25, {"a": 8.0, "none": 4.0}) == {"a": 1.5, "b": 0.75}
    without = Losses({"b": torch.tensor(3.0)})
    assert as_share(without, 0.25, {}) == {"b": 0.75}
    assert (shared.metrics, shared.counts) == (losses.metrics, losses.counts)
    assert as_share(losses, 1.0, None) is losses


def test_a_batch_is_cut_evenly_or_refused():
    assert split(list(range(5)), 2) == [[0, 2, 4], [1, 3]]
    assert split([1], 3) == [[1]]
    assert split("anything", 1) == ["anything"]
    with pytest.raises(ConfigError, match=r"SOLVER.ACCUMULATE cuts lists, a batch is a str"):
        split("anything", 2)
