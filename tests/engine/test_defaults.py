import gc
import json
import math
import weakref
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from segdet.checkpoint import DetectionCheckpointer
from segdet.config import CfgNode, get_cfg
from segdet.data import MetadataCatalog
from segdet.engine import DefaultTrainer, defaults, hooks
from segdet.errors import ConfigError, DataError
from segdet.evaluation import (
    CityscapesInstanceEvaluator,
    DatasetEvaluator,
)


class Net(nn.Module):
    """In training a noisy loss; else the number of what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, batch):
        if not self.training:
            return [{"instances": len(batch)}]
        return {"loss": self.linear(batch + torch.randn_like(batch)).square().mean()}


class Stream:
    """Batch k is a function of the seed and k."""

    def __init__(self, seed: int) -> None:
        self.seed, self.start = seed, 0

    def seek(self, batch_index: int) -> None:
        self.start = batch_index

    def __iter__(self):
        k = self.start
        while True:
            yield torch.full((2, 4), (self.seed % 97) / 97 + k)
            k += 1


class Count(DatasetEvaluator):
    """How many batches it saw."""

    def reset(self) -> None:
        self.count = 0

    def process(self, inputs, outputs) -> None:
        self.count += torch.as_tensor(outputs[0]["instances"]).sum().item()

    def evaluate(self) -> dict:
        return {"bbox": {"AP": float(self.count)}}


class Trainer(DefaultTrainer):
    """As users write them: class methods overridden."""

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        return Net()

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Stream:
        return Stream(cfg.SEED)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> list:
        return [[0]] * len(dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> Count:
        return Count()

    def build_hooks(self) -> list:
        given = super().build_hooks()
        self.losses: list[float] = []
        given.insert(-1, hooks.CallbackHook(after_step=self.note))
        return given

    def note(self, trainer: DefaultTrainer) -> None:
        self.losses.append(trainer.storage.latest()["total_loss"][0])


class Plain(Trainer):
    """With the standard hooks only; that of `Trainer` holds it."""

    build_hooks = DefaultTrainer.build_hooks


def small_config(folder: Path) -> CfgNode:
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(folder)
    cfg.SEED = 3
    cfg.SOLVER.MAX_ITER = 8
    cfg.SOLVER.STEPS = (6,)
    cfg.SOLVER.WARMUP_ITERS = 2
    cfg.SOLVER.BASE_LR = 0.01
    cfg.SOLVER.CHECKPOINT_PERIOD = 3
    cfg.DATASETS.TEST = ("abc",)
    return cfg


@pytest.fixture
def cfg(tmp_path) -> CfgNode:
    return small_config(tmp_path / "out")


def metrics(cfg: CfgNode) -> list[dict]:
    lines = (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_run_leaves_what_it_should(cfg):
    cfg.TEST.EVAL_PERIOD = 4
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    assert trainer.train() == {"bbox": {"AP": 3.0}}
    files = {path.name for path in Path(cfg.OUTPUT_DIR).iterdir()}
    expected = {"model_0000002.pth", "model_0000005.pth", "model_final.pth", "last_checkpoint"}
    assert expected <= files
    assert any(name.startswith("events.out.tfevents") for name in files)
    periodic, last, final = metrics(cfg)
    assert periodic == {"iteration": 3, "bbox/AP": 3.0}
    assert {"total_loss", "loss", "lr", "time", "data_time", "eta_seconds"} <= set(last)
    assert last["iteration"] == 7
    assert final == {"iteration": 8, "bbox/AP": 3.0}
    assert isinstance(trainer.model, Net) and trainer.model.training
    assert isinstance(trainer.optimizer, torch.optim.SGD)
    assert isinstance(trainer.data_loader, Stream)
    content = torch.load(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    assert set(content) == {"model", "trainer", "iteration", "config"}
    assert set(content["trainer"]) == {
        *("iteration", "hooks", "_trainer", "seed", "storage", "buffers"),
    }
    assert set(content["trainer"]["_trainer"]) == {"iteration", "optimizer"}
    assert content["trainer"]["hooks"]["LRScheduler"] == {"base_lrs": [0.01], "last_epoch": 8}


def test_a_trainer_that_is_done_is_not_kept_alive(cfg):
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = 1, ()
    cfg.TEST.EVAL_PERIOD = 1
    trainer = Plain(cfg)
    trainer.train()
    model = weakref.ref(trainer.model)
    gc.disable()
    try:
        del trainer
        assert model() is None
    finally:
        gc.enable()


def cut(cfg: CfgNode) -> list[float]:
    """The losses of a run that is cut after 6 iterations and resumed by a second trainer."""
    first = Trainer(cfg)
    first.max_iter = 6
    first.train()
    second = Trainer(cfg)
    second.resume_or_load(resume=True)
    assert second.start_iter == 6
    second.train()
    return first.losses + second.losses


def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one(cfg, tmp_path):
    whole = Trainer(cfg)
    whole.train()
    cfg.OUTPUT_DIR = str(tmp_path / "cut")
    assert cut(cfg) == whole.losses
    rates = [line["lr"] for line in metrics(cfg) if "lr" in line]
    assert rates == pytest.approx([0.001])  # no line of where it was cut


def test_a_drawn_seed_is_logged_kept_and_continued(cfg, tmp_path, capsys):
    cfg.SEED = -1
    first = Trainer(cfg)
    drawn = first.cfg.SEED
    assert drawn >= 0
    assert cfg.SEED == -1
    assert f"drew SEED {drawn}" in capsys.readouterr().out
    first.max_iter = 4
    first.train()
    second = Trainer(cfg)
    assert drawn != second.cfg.SEED
    second.resume_or_load(resume=True)
    assert second.cfg.SEED == second._trainer.seed == second.data_loader.seed == drawn
    second.train()
    cfg.SEED, cfg.OUTPUT_DIR = drawn, str(tmp_path / "whole")
    whole = Trainer(cfg)
    whole.train()
    assert first.losses + second.losses == whole.losses


def test_a_mistake_in_the_test_set_stops_the_run_before_it_trains(cfg):
    class Typo(Trainer):
        @classmethod
        def build_test_loader(cls, cfg, dataset_name):
            raise DataError(f"no data set is named {dataset_name!r}")

    cfg.DATASETS.TEST = ("typo",)
    trainer = Typo(cfg)
    with pytest.raises(DataError, match="no data set is named 'typo'"):
        trainer.train()
    assert trainer.iter == 0 and not trainer.checkpointer.has_checkpoint()


def test_a_type_without_evaluator_stops_the_run_before_it_trains(cfg):
    class ByType(Trainer):
        build_evaluator = DefaultTrainer.build_evaluator
        test = DefaultTrainer.test

    MetadataCatalog.get("engine_test_type").set(evaluator_type="own")
    cfg.DATASETS.TEST = ("engine_test_type",)
    trainer = ByType(cfg)
    with pytest.raises(ConfigError, match='engine_test_type has evaluator_type "own"; built in'):
        trainer.train()
    assert trainer.iter == 0
    assert Trainer(cfg).train() is not None, "users' own evaluators are not looked at"


def test_resuming_without_a_checkpoint_begins_at_the_weights(cfg, tmp_path):
    donor = Net()
    DetectionCheckpointer(donor, str(tmp_path)).save("weights")
    cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 0
    assert torch.equal(trainer.model.linear.weight, donor.linear.weight)


def test_amp_by_the_config(cfg):
    cfg.SOLVER.AMP.ENABLED = True
    cfg.SOLVER.MAX_ITER = 1
    cfg.SOLVER.STEPS = ()
    trainer = Trainer(cfg)
    trainer.train()
    assert "grad_scaler" in trainer.state_dict()["_trainer"]
    assert math.isfinite(trainer.losses[0])


def test_hooks_of_the_trainer_see_the_gradients(cfg):
    seen = []

    class Look(hooks.HookBase):
        def after_backward(self) -> None:
            seen.append(self.trainer.model.linear.weight.grad is not None)

    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = 2, ()
    trainer = Trainer(cfg)
    trainer.register_hooks([Look()])
    trainer.train()
    assert seen == [True, True]


def test_expected_results_that_are_missed_end_with_exit_code_1(cfg):
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = 1, ()
    cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP", 3.0, 0.1]]
    Trainer(cfg).train()
    cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP", 4.0, 0.1]]
    with pytest.raises(SystemExit) as exit:
        Trainer(cfg).train()
    assert exit.value.code == 1


def test_pictures_come_last_and_cost_no_results(cfg, capsys):
    class NoPictures(Trainer):
        def save_pictures(self) -> None:
            raise DataError("a.jpg: cannot be read")

    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = 1, ()
    assert NoPictures(cfg).train() == {"bbox": {"AP": 3.0}}
    assert "No pictures of predictions: a.jpg: cannot be read" in capsys.readouterr().out
    cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP", 4.0, 0.1]]
    with pytest.raises(SystemExit):
        NoPictures(cfg).train()
    assert "No pictures" not in capsys.readouterr().out


def test_a_run_saved_after_its_end_can_be_prolonged(cfg):
    first = Trainer(cfg)
    first.train()
    first.checkpointer.save("by_hand")
    cfg.SOLVER.MAX_ITER = 10
    with pytest.raises(ConfigError, match=r"other settings: SOLVER.MAX_ITER is 10, was 8\. .* add"):
        Trainer(cfg).resume_or_load(resume=True)
    cfg.SOLVER.RESUME_CHANGED = True
    second = Trainer(cfg)
    second.resume_or_load(resume=True)
    assert second.start_iter == 8


def test_the_last_and_the_best_checkpoints_are_kept(cfg):
    cfg.SOLVER.CHECKPOINT_PERIOD = cfg.TEST.EVAL_PERIOD = 2
    cfg.SOLVER.CHECKPOINTS_KEPT = 1
    cfg.TEST.BEST_METRIC = "bbox/AP"
    Trainer(cfg).train()
    names = {path.name for path in Path(cfg.OUTPUT_DIR).glob("*.pth")}
    assert names == {"model_0000007.pth", "model_final.pth", "model_best.pth"}


def test_several_data_sets_keep_their_names(cfg):
    cfg.DATASETS.TEST = ("a", "bc")
    assert Trainer.test(cfg, Net()) == {"a": {"bbox": {"AP": 1.0}}, "bc": {"bbox": {"AP": 2.0}}}
    with pytest.raises(ValueError, match=r"2 data sets in DATASETS.TEST, 1 given"):
        Trainer.test(cfg, Net(), Count())
    cfg.DATASETS.TEST = ("a",)
    assert Trainer.test(cfg, Net(), Count()) == {"bbox": {"AP": 1.0}}


def test_a_single_evaluator_needs_no_base_class(cfg):
    class Own:
        reset, process, evaluate = Count.reset, Count.process, Count.evaluate

    assert Trainer.test(cfg, Net(), Own()) == {"bbox": {"AP": 3.0}}


def test_evaluator_by_metadata(cfg):
    MetadataCatalog.get("engine_test_own").set(evaluator_type="own")
    with pytest.raises(
        ConfigError, match=r'evaluator_type "own"; built in are coco, sem_seg, coco_pan'
    ):
        DefaultTrainer.build_evaluator(cfg, "engine_test_own")
    MetadataCatalog.get("engine_test_city").set(evaluator_type="cityscapes_instance")
    evaluator = DefaultTrainer.build_evaluator(cfg, "engine_test_city")
    assert isinstance(evaluator, CityscapesInstanceEvaluator)


def test_amp_has_the_precision_asked_for(cfg):
    cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.PRECISION = True, "float16"
    assert Plain(cfg)._trainer.precision is torch.float16


@pytest.mark.parametrize("period, drawn", [(0, 0), (3, 1)])
def test_vis_period_draws_training_images(cfg, period, drawn):
    cfg.VIS_PERIOD = period
    order = [type(hook).__name__ for hook in Plain(cfg)._hooks]
    assert order.count("TrainingPictures") == drawn and order[-1] == "PeriodicWriter"


class NormNet(Net):
    """With a batch norm whose statistics its evaluation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, batch):
        if not self.training:
            return [{"instances": self.norm.running_mean.clone()}]
        return super().forward(self.norm(batch))


class Precise(Plain):
    """With that net; its loaders tell who made them."""

    made: ClassVar[list[int]] = []

    @classmethod
    def build_model(cls, cfg):
        return NormNet()

    @classmethod
    def build_train_loader(cls, cfg):
        cls.made.append(cfg.DATALOADER.NUM_WORKERS)
        return Stream(cfg.SEED)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return Count()


def test_precise_bn_measures_before_checkpoint_and_evaluation(cfg):
    cfg.TEST.PRECISE_BN.ENABLED, cfg.TEST.PRECISE_BN.NUM_ITER = True, 3
    cfg.TEST.EVAL_PERIOD, cfg.DATALOADER.NUM_WORKERS = 3, 2
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD = 5, 3
    Precise.made.clear()
    trainer = Precise(cfg)
    order = [type(hook).__name__ for hook in trainer._hooks]
    assert order[:3] == ["IterationTimer", "LRScheduler", "PreciseBN"]
    assert order.index("PreciseBN") < order.index("PeriodicCheckpointer") < order.index("EvalHook")
    assert Precise.made == []  # a resumed run may have another seed
    results = trainer.train()
    assert Precise.made == [2, 0]
    measured = cfg.SEED % 97 / 97 + 1  # of batches 0, 1, 2 of the stream, each time
    assert results is not None and results["bbox"]["AP"] == pytest.approx(3 * 4 * measured, 1e-5)
    saved = torch.load(Path(cfg.OUTPUT_DIR) / "model_0000002.pth")["model"]
    assert saved["norm.running_mean"].tolist() == pytest.approx([measured] * 4)


def test_what_training_counts_outside_of_the_weights_is_resumed(cfg):
    """As RetinaNet does with its positives."""

    class Counting(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("steps", torch.tensor(0.0), persistent=False)

        def forward(self, batch):
            self.steps += self.training
            return super().forward(batch)

    class Counts(Plain):
        @classmethod
        def build_model(cls, cfg: CfgNode) -> nn.Module:
            return Counting()

    Counts(cfg).train()
    resumed = Counts(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.model.steps == 8
    assert "steps" not in resumed.model.state_dict()


def test_scaling_to_another_number_of_processes(cfg):
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 8
    cfg.SOLVER.IMS_PER_BATCH = 16
    cfg.SOLVER.BASE_LR = 0.02
    cfg.SOLVER.MAX_ITER = 5000
    cfg.SOLVER.STEPS = (4000, 4500)
    cfg.SOLVER.CHECKPOINT_PERIOD = 1000
    cfg.TEST.EVAL_PERIOD = 500
    cfg.freeze()
    scaled = DefaultTrainer.auto_scale_workers(cfg, 16)
    assert (scaled.SOLVER.IMS_PER_BATCH, scaled.SOLVER.BASE_LR) == (32, 0.04)
    assert (scaled.SOLVER.MAX_ITER, scaled.SOLVER.STEPS) == (2500, (2000, 2250))
    assert (scaled.SOLVER.WARMUP_ITERS, scaled.SOLVER.CHECKPOINT_PERIOD) == (1, 500)
    assert (scaled.TEST.EVAL_PERIOD, scaled.SOLVER.REFERENCE_WORLD_SIZE) == (250, 16)
    assert scaled.is_frozen()
    assert cfg.SOLVER.MAX_ITER == 5000
    assert DefaultTrainer.auto_scale_workers(cfg, 8) is cfg
    cfg.defrost()
    cfg.SOLVER.IMS_PER_BATCH = 12
    with pytest.raises(ConfigError, match="IMS_PER_BATCH 12 cannot be divided"):
        DefaultTrainer.auto_scale_workers(cfg, 4)


def test_test_time_augmentation_has_its_own_names_and_folder(cfg, monkeypatch):
    folders = []

    class Own(Trainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name, output_folder=None):
            folders.append(output_folder)
            return Count()

    monkeypatch.setattr(defaults, "GeneralizedRCNNWithTTA", lambda cfg, model: model)
    cfg.DATASETS.TEST = ("abc",)
    assert Own.test_with_TTA(cfg, Net()) == {"bbox_TTA": {"AP": 3.0}}
    assert folders == [str(Path(cfg.OUTPUT_DIR) / "inference_TTA")]
