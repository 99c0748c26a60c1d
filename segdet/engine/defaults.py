"""The standard trainer, built from a config."""

from __future__ import annotations

import logging
import sys
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from segdet import solver
from segdet.checkpoint import AVERAGE, DetectionCheckpointer
from segdet.config import CfgNode
from segdet.config.defaults import check_values
from segdet.config.reader import read_section
from segdet.data import (
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from segdet.engine import hooks
from segdet.engine.accumulation import unwrapped
from segdet.engine.evaluators import EVALUATORS, check_evaluator_type
from segdet.engine.nonfinite import NonFinitePolicy
from segdet.engine.output_lock import output_lock
from segdet.engine.pictures import TrainingPictures, save_predictions
from segdet.engine.predictor import DefaultPredictor
from segdet.engine.setup import (
    create_ddp_model,
    default_argument_parser,
    default_setup,
    default_writers,
    share_buffers,
)
from segdet.engine.train_loop import AMPTrainer, HookBase, SimpleTrainer, TrainerBase
from segdet.errors import ConfigError, SegdetError
from segdet.evaluation import (
    DatasetEvaluator,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)
from segdet.modeling import GeneralizedRCNNWithTTA, build_model
from segdet.utils import comm
from segdet.utils.env import seed_all_rng
from segdet.utils.events import EventWriter
from segdet.utils.logger import setup_logger
from segdet.utils.mixed_precision import AMPConfig
from segdet.utils.writing import make_output_folder, remove_leftovers

__all__ = [
    "DefaultPredictor",
    "DefaultTrainer",
    "create_ddp_model",
    "default_argument_parser",
    "default_setup",
    "default_writers",
]

_log = logging.getLogger(__name__)


class DefaultTrainer(TrainerBase):
    """Trains and evaluates what a config describes.

    Scripts subclass it and override the class methods `build_model`, `build_optimizer`,
    `build_lr_scheduler`, `build_train_loader`, `build_test_loader`, `build_evaluator`, `test`, and
    the methods `build_hooks` and `build_writers`.

    A SEED below 0 is replaced by one that is drawn, logged and kept in the checkpoints.

    Args:
        cfg: the complete config.

    Attributes:
        model_ema: the average of the weights, which is what is evaluated; None without MODEL_EMA.
    """

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        setup_logger(distributed_rank=comm.get_rank())
        check_values(cfg)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        self.cfg = cfg if cfg.SEED >= 0 else _with_seed(cfg, comm.shared_random_seed())
        if cfg.SEED < 0:
            _log.info("SEED is %d: drew SEED %d for this run", cfg.SEED, self.cfg.SEED)
        seed_all_rng(self.cfg.SEED + comm.get_rank())

        model = self.build_model(self.cfg)
        optimizer = self.build_optimizer(self.cfg, model)
        self._trainer = self._build_steps(create_ddp_model(model), optimizer)
        self._trainer.accumulate = _parts(self.cfg)
        self._trainer._hooks = self._hooks  # so that it calls their after_backward
        self.scheduler = self.build_lr_scheduler(self.cfg, optimizer)
        self.model_ema = solver.build_model_ema(self.cfg, model, optimizer)
        averages: dict[str, Any] = {AVERAGE: self.model_ema} if self.model_ema else {}
        self.checkpointer = DetectionCheckpointer(
            model, self.cfg.OUTPUT_DIR, cfg=self.cfg, trainer=weakref.proxy(self), **averages
        )
        self._trainer.on_nonfinite = self._build_policy(model)
        self.start_iter = 0
        self.max_iter = self.cfg.SOLVER.MAX_ITER
        self._last_eval_results: Mapping[str, Any] | None = None
        self.register_hooks(self.build_hooks())

    def _build_steps(self, model: nn.Module, optimizer: Optimizer) -> SimpleTrainer:
        amp = read_section(AMPConfig, self.cfg, at="SOLVER.AMP")
        # The gradients' memory is then free for activations.
        settings: dict[str, Any] = {"zero_grad_before_forward": True, "seed": self.cfg.SEED}
        if not amp.enabled:
            return SimpleTrainer(model, None, optimizer, **settings)
        precision = amp.dtype(next(model.parameters()).device.type)
        return AMPTrainer(model, None, optimizer, precision=precision, **settings)

    @property
    def model(self) -> nn.Module:
        """The model, in DistributedDataParallel where there are several processes."""
        return self._trainer.model

    @property
    def evaluated_model(self) -> nn.Module:
        """The model with the average of the weights, if there is one; otherwise `model`."""
        return self.model_ema.model if self.model_ema else self.model

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer."""
        return self._trainer.optimizer

    @property
    def data_loader(self) -> Any:
        """The training loader, built when first asked for: a resumed run has another SEED."""
        if self._trainer.data_loader is None:
            self._trainer.data_loader = self.build_train_loader(self.cfg)
        return self._trainer.data_loader

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from OUTPUT_DIR's last checkpoint, or else load MODEL.WEIGHTS and begin.

        Args:
            resume: whether to look for a checkpoint of an earlier run.
        """
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if self.checkpointer.resumed_from:
            self.start_iter = self.iter + 1  # the checkpoint names the last finished iteration
        self.begins_anew = resume and not self.checkpointer.resumed_from

    def train(self) -> Mapping[str, Any] | None:  # type: ignore[override]
        """Train up to SOLVER.MAX_ITER, evaluate and draw some predictions.

        Returns:
            The results of the final evaluation on the main process, if there was one.

        Raises:
            ConfigError: another run uses OUTPUT_DIR.
        """
        self._trainer.data_loader = self.data_loader
        for name in self.cfg.DATASETS.TEST:  # a mistake in one must not show after the training
            self.build_test_loader(self.cfg, name)
            if self._evaluates_by_type():
                check_evaluator_type(name)
        if self.model_ema:
            self.model_ema.begin()
        with self._own_output_folder():
            super().train(self.start_iter, self.max_iter)
        if comm.is_main_process():
            verify_results(self.cfg, self._last_eval_results or {})
            try:
                self.save_pictures()
            except SegdetError as error:  # the results of the run are worth more
                _log.warning("No pictures of predictions: %s", error)
        return self._last_eval_results

    @contextmanager
    def _own_output_folder(self) -> Iterator[None]:
        folder = Path(self.cfg.OUTPUT_DIR)
        if not comm.is_main_process():
            yield
            return
        make_output_folder(folder)
        with output_lock(folder):
            remove_leftovers(folder)
            yield

    def _evaluates_by_type(self) -> bool:
        """Whether subclasses leave the choice of evaluators to `build_evaluator` here."""
        kind = type(self)
        return (kind.test.__func__, kind.build_evaluator.__func__) == (
            DefaultTrainer.test.__func__,
            DefaultTrainer.build_evaluator.__func__,
        )

    def run_step(self) -> None:
        """One iteration of the inner trainer."""
        self._trainer.iter = self.iter
        self._trainer.run_step()

    def _build_policy(self, model: nn.Module) -> NonFinitePolicy:
        trainer = weakref.proxy(self)

        def roll_back() -> bool:
            file = trainer.checkpointer.get_checkpoint_file()
            if not file:
                return False
            averages = [AVERAGE] if trainer.model_ema else []
            rest = trainer.checkpointer.load(file, checkpointables=averages)
            trainer.optimizer.load_state_dict(rest["trainer"]["_trainer"]["optimizer"])
            return True

        return NonFinitePolicy(
            self.cfg.SOLVER.NONFINITE,
            model=model,
            folder=Path(self.cfg.OUTPUT_DIR),
            context=lambda: {"config": trainer.cfg.dump(), "seed": trainer.cfg.SEED},
            roll_back=roll_back,
        )

    def save_pictures(self) -> None:
        """Leave OUTPUT_DIR/predictions.png, beside ground truth; one for each of DATASETS.TEST."""
        for number, name in enumerate(self.cfg.DATASETS.TEST):
            file = "predictions.png" if number == 0 else f"predictions_{number + 1}.png"
            loader = self.build_test_loader(self.cfg, name)
            save_predictions(
                Path(self.cfg.OUTPUT_DIR) / file, unwrapped(self.evaluated_model), loader, name
            )

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the model."""
        inner = self._trainer.state_dict()
        inner.pop("hooks", None)  # they are this trainer's
        # What training counts in buffers that are no part of the weights.
        weights = self.checkpointer.model.state_dict()
        named = self.checkpointer.model.named_buffers()
        buffers = {name: buffer for name, buffer in named if name not in weights}
        own = {"_trainer": inner, "seed": self.cfg.SEED, "buffers": buffers}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; the seed too, so that the streams continue."""
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])
        buffers = dict(self.checkpointer.model.named_buffers())
        for name, saved in state_dict.get("buffers", {}).items():
            buffers[name].copy_(saved)
        seed = state_dict.get("seed", self.cfg.SEED)
        if seed != self.cfg.SEED:
            _log.info("The checkpoint's run had SEED %d: continuing with it", seed)
            self.cfg = _with_seed(self.cfg, seed)
            self._trainer.seed = seed
            self._trainer.data_loader = None

    def build_hooks(self) -> list[HookBase | None]:
        """The hooks, in the order in which they are called; writers come last."""
        is_main = comm.is_main_process()

        def evaluate() -> Mapping[str, Any]:
            if self.model_ema and self.cfg.DATASETS.TEST:
                _log.info("Evaluating the average of the weights (MODEL_EMA), not themselves")
            share_buffers(self.evaluated_model)  # statistics of norms, unless they are synchronised
            self._last_eval_results = self.test(self.cfg, self.evaluated_model)
            return self._last_eval_results

        section = self.cfg.SOLVER
        kept = section.CHECKPOINTS_KEPT or None
        periodic = hooks.PeriodicCheckpointer(
            self.checkpointer, section.CHECKPOINT_PERIOD, max_to_keep=kept
        )
        return [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            hooks.ProgressBar() if is_main and sys.stderr.isatty() else None,
            *(self._precise_bn() if self.cfg.TEST.PRECISE_BN.ENABLED else ()),
            periodic if is_main else None,
            hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, evaluate),
            self._best_checkpointer() if is_main and self.cfg.TEST.BEST_METRIC else None,
            self._training_pictures() if is_main and self.cfg.VIS_PERIOD > 0 else None,
            hooks.PeriodicWriter(self.build_writers(), period=20) if is_main else None,
        ]

    def _precise_bn(self) -> list[hooks.PreciseBN]:
        """At the evaluations, over batches of a loader of its own; of `evaluated_model`, too."""
        trainer = weakref.proxy(self)  # whose config may get another seed from a checkpoint

        def build_loader() -> Any:
            with _editable_copy(trainer.cfg) as cfg:
                cfg.DATALOADER.NUM_WORKERS = 0  # they would stand idle between evaluations
            return trainer.build_train_loader(cfg)

        period, number = self.cfg.TEST.EVAL_PERIOD, self.cfg.TEST.PRECISE_BN.NUM_ITER
        models = [self.model, self.model_ema.model] if self.model_ema else [self.model]
        return [hooks.PreciseBN(period, model, build_loader, number) for model in models]

    def _best_checkpointer(self) -> hooks.BestCheckpointer:
        section = self.cfg.TEST
        return hooks.BestCheckpointer(section.EVAL_PERIOD, self.checkpointer, section.BEST_METRIC)

    def _training_pictures(self) -> TrainingPictures:
        names = self.cfg.DATASETS.TRAIN
        metadata = MetadataCatalog.get(names[0]) if names else None
        return TrainingPictures(self.cfg.VIS_PERIOD, self.cfg.INPUT.FORMAT, metadata)

    def build_writers(self) -> list[EventWriter]:
        """Console, metrics.json and TensorBoard, in OUTPUT_DIR."""
        return default_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model, on its device."""
        return build_model(cfg)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> Optimizer:
        """The optimizer of SOLVER."""
        return solver.build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
        """The schedule of SOLVER."""
        return solver.build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        """Batches of DATASETS.TRAIN."""
        return build_detection_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """The images of one of DATASETS.TEST."""
        return build_detection_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        """The evaluator that the data set's metadata asks for, by `evaluator_type`.

        Args:
            cfg: the complete config.
            dataset_name: one of DATASETS.TEST.
            output_folder: for results files; None is OUTPUT_DIR/inference.

        Raises:
            ConfigError: a type without an evaluator.
        """
        folder = output_folder or str(Path(cfg.OUTPUT_DIR) / "inference")
        return EVALUATORS[check_evaluator_type(dataset_name)](cfg, dataset_name, folder)

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: DatasetEvaluator | list[DatasetEvaluator] | None = None,
    ) -> Mapping[str, Any]:
        """Evaluate on each of DATASETS.TEST and print the results.

        Args:
            cfg: the complete config.
            model: to evaluate.
            evaluators: one for each data set; by default those of `build_evaluator`.

        Returns:
            Task -> metric -> value; with several data sets, data set -> task -> metric -> value.
            Only the main process has them.
        """
        names = cfg.DATASETS.TEST
        if evaluators is None:
            evaluators = [cls.build_evaluator(cfg, name) for name in names]
        elif not isinstance(evaluators, list | tuple):
            evaluators = [evaluators]
        if len(evaluators) != len(names):
            raise ValueError(f"{len(names)} data sets in DATASETS.TEST, {len(evaluators)} given")
        results: dict[str, Any] = {}
        for name, evaluator in zip(names, evaluators, strict=True):
            loader = cls.build_test_loader(cfg, name)
            results[name] = inference_on_dataset(model, loader, evaluator)
            if comm.is_main_process():
                _log.info("Evaluation results for %s:", name)
                print_csv_format(results[name])
        return next(iter(results.values())) if len(results) == 1 else results

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> Mapping[str, Any]:
        """`test` with test-time augmentation, as TEST.AUG says.

        Returns:
            As `test`, with "_TTA" behind the outermost names; files go to
            OUTPUT_DIR/inference_TTA.
        """
        folder = str(Path(cfg.OUTPUT_DIR) / "inference_TTA")
        evaluators = [cls.build_evaluator(cfg, name, folder) for name in cfg.DATASETS.TEST]
        results = cls.test(cfg, GeneralizedRCNNWithTTA(cfg, model), evaluators)
        return {f"{name}_TTA": value for name, value in results.items()}

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """The recipe for another number of processes than SOLVER.REFERENCE_WORLD_SIZE.

        Batch and learning rate grow with the number of processes; iterations, steps, warm-up and
        periods shrink (arXiv:1706.02677, the linear scaling rule).

        Args:
            cfg: the complete config; it stays as it is.
            num_workers: the number of processes.

        Returns:
            A changed copy, or `cfg` itself where the reference is 0 or equal.
        """
        reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
        if reference in (0, num_workers):
            return cfg
        if cfg.SOLVER.IMS_PER_BATCH % reference:
            raise ConfigError(
                f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} cannot be divided by "
                f"SOLVER.REFERENCE_WORLD_SIZE {reference}"
            )
        scale = num_workers / reference
        with _editable_copy(cfg) as cfg:
            section = cfg.SOLVER
            section.IMS_PER_BATCH = round(section.IMS_PER_BATCH * scale)
            section.BASE_LR *= scale
            for key in ("MAX_ITER", "WARMUP_ITERS", "CHECKPOINT_PERIOD"):
                section[key] = round(section[key] / scale)
            section.STEPS = tuple(round(step / scale) for step in section.STEPS)
            section.REFERENCE_WORLD_SIZE = num_workers
            cfg.TEST.EVAL_PERIOD = round(cfg.TEST.EVAL_PERIOD / scale)
        _log.info("Scaled the recipe of %d processes to %d: %s", reference, num_workers, section)
        return cfg


def _parts(cfg: CfgNode) -> int:
    own = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
    if own < cfg.SOLVER.ACCUMULATE:
        raise ConfigError(
            f"SOLVER.ACCUMULATE is {cfg.SOLVER.ACCUMULATE}, but each process has only {own} images "
            "of SOLVER.IMS_PER_BATCH"
        )
    return cfg.SOLVER.ACCUMULATE


def _with_seed(cfg: CfgNode, seed: int) -> CfgNode:
    with _editable_copy(cfg) as cfg:
        cfg.SEED = seed
    return cfg


@contextmanager
def _editable_copy(cfg: CfgNode) -> Iterator[CfgNode]:
    """A copy that can be written to within, and is frozen afterwards if `cfg` is."""
    copy = cfg.clone()
    copy.defrost()
    yield copy
    if cfg.is_frozen():
        copy.freeze()
