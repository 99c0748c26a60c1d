"""Runs whose weights are averaged: what is saved, resumed and evaluated."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from segdet.checkpoint import DetectionCheckpointer
from segdet.checkpoint.reading import read_checkpoint
from segdet.config import CfgNode
from segdet.errors import CheckpointError, ConfigError
from tests.engine.test_defaults import Net, NormNet, Plain, Stream, small_config
from tests.faults.processes import start
from tests.faults.runs import differing


class WeightNet(NormNet):
    """It is evaluated to its own weight, so that results say what it was."""

    def forward(self, batch):
        if not self.training:
            return [{"instances": self.linear.weight.detach().double().sum()}]
        return super().forward(batch)


class Trainer(Plain):
    """Over that net."""

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        return WeightNet()

    def build_writers(self) -> list:
        return []


@pytest.fixture
def cfg(tmp_path) -> CfgNode:
    cfg = small_config(tmp_path / "out")
    cfg.MODEL_EMA.ENABLED, cfg.MODEL_EMA.DECAY = True, 0.8
    cfg.DATASETS.TEST = ("a",)
    cfg.TEST.EVAL_PERIOD = 4
    return cfg


def final(cfg: CfgNode) -> dict:
    content = read_checkpoint(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    content.pop("config"), content["trainer"].pop("storage")
    return content


def test_the_average_is_saved_beside_the_weights_and_evaluated(cfg, capsys):
    trainer = Trainer(cfg)
    results = trainer.train()
    saved = final(cfg)
    assert saved["ema_state"].keys() == saved["model"].keys()
    assert differing(saved["model"], saved["ema_state"]) != []
    assert differing(saved["model"], trainer.model.state_dict()) == []
    assert results == {"bbox": {"AP": saved["ema_state"]["linear.weight"].double().sum().item()}}
    assert "Evaluating the average of the weights" in capsys.readouterr().out
    assert trainer.evaluated_model.training, "put back as it was"


def test_a_resumed_run_ends_in_the_same_bits(cfg, tmp_path):
    whole = Trainer(cfg).train()
    expected = final(cfg)
    cfg.OUTPUT_DIR = str(tmp_path / "cut")
    first = Trainer(cfg)
    first.max_iter = 6
    first.train()
    second = Trainer(cfg)
    second.resume_or_load(resume=True)
    assert second.start_iter == 6
    assert second.train() == whole
    assert differing(final(cfg), expected) == []


@pytest.mark.parametrize("key, value", [("ENABLED", False), ("DECAY", 0.9)])
def test_a_run_is_not_resumed_with_another_average(cfg, key, value):
    Trainer(cfg).train()
    before = cfg.MODEL_EMA[key]
    cfg.MODEL_EMA[key] = value
    with pytest.raises(ConfigError, match=f"MODEL_EMA.{key} is {value}, was {before}"):
        Trainer(cfg).resume_or_load(resume=True)


def test_an_average_that_is_new_begins_at_the_weights_that_are_resumed(cfg):
    cfg.MODEL_EMA.ENABLED = False
    Trainer(cfg).train()
    cfg.MODEL_EMA.ENABLED = cfg.SOLVER.RESUME_CHANGED = True
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()
    assert differing(trainer.evaluated_model.state_dict(), trainer.model.state_dict()) == []


def test_a_batch_in_parts_is_one_step(cfg, monkeypatch):
    cfg.SOLVER.ACCUMULATE = 2
    updates = []

    class Lists(Trainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return [[torch.ones(4), torch.zeros(4)]]

        @classmethod
        def build_model(cls, cfg):
            class Stacks(Net):
                def forward(self, batch):
                    return super().forward(torch.stack(batch) if self.training else batch)

            return Stacks()

    trainer = Lists(cfg)
    trainer.optimizer.register_step_post_hook(
        lambda *_: updates.append(int(trainer.model_ema._average.n_averaged))
    )
    trainer.train()
    assert updates == list(range(2, 10)), "8 steps, behind the weights of the beginning"


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_step_that_is_not_taken_is_not_averaged(cfg, policy):
    class Bad(Stream):
        def __iter__(self):
            for k, batch in enumerate(super().__iter__(), start=self.start):
                yield batch * float("nan") if k == 4 else batch

    seen = {}

    class Once(Trainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return Bad(cfg.SEED)

        def run_step(self) -> None:
            super().run_step()
            seen[self.iter] = {k: v.clone() for k, v in self.model_ema.state_dict().items()}

    cfg.SOLVER.NONFINITE = policy
    Once(cfg).train()
    kept = 2 if policy == "rollback" else 3  # the checkpoint is that of iteration 2
    assert differing(seen[4], seen[kept]) == []
    assert differing(seen[5], seen[4]) != [] and all(v.isfinite().all() for v in seen[7].values())


def test_precise_bn_measures_the_average_too(cfg):
    cfg.TEST.PRECISE_BN.ENABLED, cfg.TEST.PRECISE_BN.NUM_ITER = True, 3
    Trainer(cfg).train()
    saved = final(cfg)
    measured = cfg.SEED % 97 / 97 + 1  # of batches 0, 1, 2 of the stream
    for entry in ("model", "ema_state"):
        assert saved[entry]["norm.running_mean"].tolist() == pytest.approx([measured] * 4)


def test_only_who_asks_for_it_gets_the_average(cfg, capsys, tmp_path):
    Trainer(cfg).train()
    saved, path = final(cfg), Path(cfg.OUTPUT_DIR) / "model_final.pth"
    for averaged, entry in ((False, "model"), (True, "ema_state")):
        net = WeightNet()
        DetectionCheckpointer(net, averaged=averaged).load(path)
        assert differing(net.state_dict(), saved[entry]) == []
    plain = tmp_path / "plain.pth"
    torch.save({"model": saved["model"]}, plain)
    DetectionCheckpointer(net, averaged=True).load(plain)
    assert differing(net.state_dict(), saved["model"]) == []
    assert "plain.pth has no average of its weights" in capsys.readouterr().out
    for content in ([1], {"linear.weight": "no tensor"}):
        torch.save({"model": saved["model"], "ema_state": content}, plain)
        with pytest.raises(CheckpointError, match=r"plain.pth.*(ema_state must be|not a tensor)"):
            DetectionCheckpointer(net, averaged=True).load(plain)


def train_one_of_two(cfg: CfgNode, folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)

    class OwnShare(Trainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return Stream(cfg.SEED + rank)

    trainer = OwnShare(cfg)
    trainer.train()
    torch.save(trainer.model_ema.state_dict(), folder / f"average_{rank}.pth")


def test_two_processes_agree(cfg, tmp_path):
    processes = [start(train_one_of_two, cfg, tmp_path, rank) for rank in (0, 1)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    one, other = (torch.load(tmp_path / f"average_{rank}.pth") for rank in (0, 1))
    assert differing(one, final(cfg)["ema_state"]) == []
    assert differing(one, other) == [], "statistics, too, each of which saw batches of its own"
