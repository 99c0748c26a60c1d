"""Training and evaluating what a config describes, in one process or several."""

from __future__ import annotations

import argparse

from segdet.checkpoint import DetectionCheckpointer
from segdet.config import CfgNode
from segdet.engine.defaults import DefaultTrainer
from segdet.engine.hooks import EvalHook
from segdet.engine.launch import is_restarted, launch
from segdet.engine.setup import (
    add_project_argument,
    default_argument_parser,
    default_setup,
    load_config,
)
from segdet.engine.train_loop import HookBase
from segdet.evaluation import verify_results
from segdet.modeling import GeneralizedRCNNWithTTA
from segdet.utils import comm


def main(argv: list[str]) -> None:
    """Train what a config describes and evaluate it, or only evaluate it."""
    parser = default_argument_parser()
    parser.description = main.__doc__
    add_project_argument(parser)
    parser.add_argument(
        "--print-config", action="store_true", help="show every setting and what set it, and stop"
    )
    parser.add_argument("--debug", action="store_true", help="keep the traceback of a mistake")
    args = parser.parse_args(argv)
    if args.print_config:
        print(load_config(args).dump_with_sources(), end="")
        return
    launch(
        run,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


class Trainer(DefaultTrainer):
    """Evaluates with test-time augmentation, too, at the end, where the config asks for it."""

    def build_hooks(self) -> list[HookBase | None]:
        """Those of `DefaultTrainer`; writers come last."""
        hooks = super().build_hooks()
        if self.cfg.TEST.AUG.ENABLED:
            model = self.evaluated_model
            GeneralizedRCNNWithTTA(self.cfg, model)  # refuses before the training
            hooks.insert(-1, EvalHook(0, lambda: self.test_with_TTA(self.cfg, model)))
        return hooks


def run(args: argparse.Namespace) -> None:
    """What each process does."""
    cfg = load_config(args)
    default_setup(cfg, args)
    if args.eval_only:
        evaluate(cfg, resume=args.resume)
    else:
        trainer = Trainer(cfg)
        # Of several machines only that of the process that failed may know.
        trainer.resume_or_load(resume=args.resume or any(comm.all_gather(is_restarted())))
        trainer.train()


def evaluate(cfg: CfgNode, *, resume: bool) -> None:
    """Evaluate MODEL.WEIGHTS, or OUTPUT_DIR's last checkpoint if `resume`."""
    model = Trainer.build_model(cfg)
    if cfg.TEST.AUG.ENABLED:
        GeneralizedRCNNWithTTA(cfg, model)  # refuses before the evaluation without it
    averaged = cfg.MODEL_EMA.ENABLED
    checkpointer = DetectionCheckpointer(model, cfg.OUTPUT_DIR, cfg=cfg, averaged=averaged)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    results = dict(Trainer.test(cfg, model))
    if cfg.TEST.AUG.ENABLED:
        results |= Trainer.test_with_TTA(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
