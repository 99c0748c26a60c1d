"""The hooks of training: time, learning rate, checkpoints, evaluation, writers, progress bar."""

from __future__ import annotations

import datetime
import logging
import math
import operator
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler as TorchLRScheduler
from tqdm import tqdm

from segdet.checkpoint import DetectionCheckpointer
from segdet.checkpoint import PeriodicCheckpointer as _PeriodicCheckpointer
from segdet.engine.precise_bn import PreciseBN as PreciseBN
from segdet.engine.train_loop import HookBase
from segdet.evaluation.testing import flatten_results_dict
from segdet.utils import comm
from segdet.utils.events import EventWriter

_log = logging.getLogger(__name__)


class CallbackHook(HookBase):
    """Calls functions; each gets the trainer.

    Args:
        before_train: called before the first iteration.
        after_train: called after the last.
        before_step: called before each iteration.
        after_step: called after each.
    """

    def __init__(
        self,
        *,
        before_train: Callable[[Any], None] | None = None,
        after_train: Callable[[Any], None] | None = None,
        before_step: Callable[[Any], None] | None = None,
        after_step: Callable[[Any], None] | None = None,
    ) -> None:
        self._before_train = before_train
        self._after_train = after_train
        self._before_step = before_step
        self._after_step = after_step

    def before_train(self) -> None:
        """Call the function, if there is one."""
        if self._before_train:
            self._before_train(self.trainer)

    def after_train(self) -> None:
        """Call the function, if there is one."""
        if self._after_train:
            self._after_train(self.trainer)

    def before_step(self) -> None:
        """Call the function, if there is one."""
        if self._before_step:
            self._before_step(self.trainer)

    def after_step(self) -> None:
        """Call the function, if there is one."""
        if self._after_step:
            self._after_step(self.trainer)


class IterationTimer(HookBase):
    """Stores seconds an iteration as `time`, without hooks; logs the run's speed at its end.

    Args:
        warmup_iter: the first iterations, which are not timed.
    """

    def __init__(self, warmup_iter: int = 3) -> None:
        self._warmup_iter = warmup_iter
        self._step_start = 0.0
        self._in_steps = 0.0  # seconds
        self._timed_since: float | None = None
        self._timed = 0

    def before_step(self) -> None:
        """Start the clock."""
        self._step_start = time.perf_counter()
        if self._timed_since is None and self._done() >= self._warmup_iter:
            self._timed_since = self._step_start

    def after_step(self) -> None:
        """Store the time, once warm."""
        if self._timed_since is not None:
            seconds = time.perf_counter() - self._step_start
            self._in_steps += seconds
            self._timed += 1
            self.trainer.storage.put_scalar("time", seconds)

    def after_train(self) -> None:
        """Log the speed."""
        if self._timed_since is None or self._timed == 0:
            return
        total = time.perf_counter() - self._timed_since
        _log.info(
            "Overall training speed: %d iterations in %s (%.4f s / it); %s on hooks",
            self._timed,
            datetime.timedelta(seconds=int(self._in_steps)),
            self._in_steps / self._timed,
            datetime.timedelta(seconds=int(total - self._in_steps)),
        )

    def _done(self) -> int:
        return self.trainer.iter - self.trainer.start_iter


class LRScheduler(HookBase):
    """Stores the learning rate as `lr`, then steps the schedule.

    Args:
        optimizer: the trainer's own by default.
        scheduler: the trainer's own by default.
    """

    def __init__(
        self, optimizer: Optimizer | None = None, scheduler: TorchLRScheduler | None = None
    ) -> None:
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._group = 0

    @property
    def optimizer(self) -> Optimizer:
        """Whose rate it stores."""
        return self._optimizer or self.trainer.optimizer

    @property
    def scheduler(self) -> TorchLRScheduler:
        """What it steps."""
        return self._scheduler or self.trainer.scheduler

    def before_train(self) -> None:
        """Choose the group whose rate is stored: the one with the most parameters."""
        sizes = [len(group["params"]) for group in self.optimizer.param_groups]
        self._group = sizes.index(max(sizes))

    def after_step(self) -> None:
        """Store the rate of this iteration and set that of the next."""
        rate = self.optimizer.param_groups[self._group]["lr"]
        self.trainer.storage.put_scalar("lr", rate, smoothing_hint=False)
        self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """The schedule's."""
        return self.scheduler.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """The schedule's."""
        _log.info("Loading the learning-rate schedule from the checkpoint")
        self.scheduler.load_state_dict(dict(state_dict))


class PeriodicCheckpointer(_PeriodicCheckpointer, HookBase):
    """`segdet.checkpoint.PeriodicCheckpointer` as a hook."""

    _resumed = -1  # the iteration of the checkpoint that the run goes on from

    def catch_up(self) -> None:
        """Remember which iteration is saved; save the final checkpoint, had the run come so far."""
        self._resumed = self.trainer.iter
        final = f"{self.file_prefix}_final"
        is_over = self.trainer.iter >= self.trainer.max_iter - 1
        if is_over and Path(self.checkpointer.resumed_from).stem != final:
            self.save(final, iteration=self.trainer.iter)

    def before_train(self) -> None:
        """Learn where the run ends."""
        self.max_iter = self.trainer.max_iter

    def after_step(self) -> None:
        """Save if it is time."""
        self.step(self.trainer.iter)

    def on_stop(self) -> None:
        """Save what the last checkpoint has not."""
        done = self.trainer.iter + 1
        if self._resumed < self.trainer.iter and done % self.period and done < self.max_iter:
            self.save(f"{self.file_prefix}_{self.trainer.iter:07d}", iteration=self.trainer.iter)


class BestCheckpointer(HookBase):
    """Saves the model whenever a metric is the best so far; register it after the evaluation.

    A resumed run does not continue from this checkpoint but from the last one.

    Args:
        eval_period: iterations between evaluations; 0: only at the end.
        checkpointer: saves.
        val_metric: such as "bbox/AP50".
        mode: "max" or "min".
        file_prefix: of the checkpoint's name.
    """

    def __init__(
        self,
        eval_period: int,
        checkpointer: DetectionCheckpointer,
        val_metric: str,
        mode: str = "max",
        file_prefix: str = "model_best",
    ) -> None:
        if mode not in ("max", "min"):
            raise ValueError(f'mode must be "max" or "min", is "{mode}"')
        self._period = eval_period
        self._checkpointer = checkpointer
        self._metric = val_metric
        self._is_better = operator.gt if mode == "max" else operator.lt
        self._prefix = file_prefix
        self._best: float | None = None
        self._best_iter = -1

    def after_step(self) -> None:
        """Compare after each periodic evaluation."""
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0 and done != self.trainer.max_iter:
            self._compare()

    catch_up = after_step

    def after_train(self) -> None:
        """Compare after the final evaluation."""
        if self.trainer.iter >= self.trainer.max_iter:
            self._compare()

    def _compare(self) -> None:
        latest = self.trainer.storage.latest().get(self._metric)
        if latest is None:
            _log.warning("no metric %s has been stored: no best checkpoint", self._metric)
            return
        value, iteration = latest
        if not math.isfinite(value):
            return
        if self._best is None or self._is_better(value, self._best):
            self._best, self._best_iter = value, iteration
            self._checkpointer.save(self._prefix, tag=False, iteration=iteration)
            _log.info("Best %s so far: %.5f at iteration %d", self._metric, value, iteration)

    def state_dict(self) -> dict[str, Any]:
        """The best value and its iteration."""
        return {"best": self._best, "iteration": self._best_iter}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """The best value and its iteration."""
        self._best, self._best_iter = state_dict["best"], state_dict["iteration"]


class EvalHook(HookBase):
    """Evaluates at a period and at the end of a run that finished; stores the results.

    Args:
        eval_period: in iterations; 0: only at the end.
        eval_function: gives a nested dict of floats, such as {"bbox": {"AP": 40.0}}, or nothing.
        eval_after_train: whether to evaluate at the end.
    """

    def __init__(
        self,
        eval_period: int,
        eval_function: Callable[[], Mapping[str, Any] | None],
        eval_after_train: bool = True,
    ) -> None:
        self._period = eval_period
        self._function = eval_function
        self._at_end = eval_after_train
        self._evaluated = -1  # the iteration of the last evaluation

    def after_step(self) -> None:
        """Evaluate if it is time; the last iteration's turn is `after_train`'s."""
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0 and done != self.trainer.max_iter:
            self._evaluate()

    def catch_up(self) -> None:
        """Evaluate if it was time and the checkpoint was saved before that."""
        if self._evaluated < self.trainer.iter:
            self.after_step()

    def after_train(self) -> None:
        """Evaluate, unless the run failed."""
        if self._at_end and self.trainer.iter >= self.trainer.max_iter:
            self._evaluate()
        # It often holds the trainer, a cycle that would keep the model's memory.
        del self._function

    def _evaluate(self) -> None:
        comm.say_where(f"iteration {self.trainer.iter}, evaluation")
        with self.trainer.interruptible():
            results = self._function()
        for name, value in flatten_results_dict(results or {}).items():
            try:
                number = float(value)
            except (TypeError, ValueError):
                raise ValueError(
                    f"eval_function must give a nested dict of floats, {name} is {value!r}"
                ) from None
            self.trainer.storage.put_scalar(name, number, smoothing_hint=False)
        self._evaluated = self.trainer.iter
        # Processes evaluate for different times: begin the next iteration together.
        comm.synchronize()

    def state_dict(self) -> dict[str, Any]:
        """The iteration of the last evaluation, if there was one."""
        return {"evaluated": self._evaluated} if self._evaluated >= 0 else {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """The iteration of the last evaluation."""
        self._evaluated = state_dict["evaluated"]


class PeriodicWriter(HookBase):
    """Lets writers write, every so many iterations and at the end. Register it last.

    Args:
        writers: called in their order.
        period: in iterations.
    """

    def __init__(self, writers: Iterable[EventWriter], period: int = 20) -> None:
        self._writers = list(writers)
        self._period = period

    def after_step(self) -> None:
        """Write if it is time or the last iteration."""
        done = self.trainer.iter + 1
        if done % self._period == 0 or done == self.trainer.max_iter:
            for writer in self._writers:
                writer.write()

    def catch_up(self) -> None:
        """Let writers take back what the resumed run will write again; write what was cut off."""
        self._rewind(self.trainer.iter - 1)
        self.after_step()

    def before_train(self) -> None:
        """Let writers take back all of a run that had no checkpoint yet, and so begins anew."""
        if self.trainer.begins_anew:
            self._rewind(-1)

    def _rewind(self, iteration: int) -> None:
        for writer in self._writers:
            writer.rewind(iteration)

    def after_train(self) -> None:
        """Write what other hooks stored after the last iteration, and close."""
        for writer in self._writers:
            writer.write()
            writer.close()


class ProgressBar(HookBase):
    """A bar on stderr with the iteration, the time left and the total loss."""

    def __init__(self) -> None:
        self._bar = tqdm(disable=True)

    def before_train(self) -> None:
        """Draw the bar."""
        self._bar = tqdm(
            total=self.trainer.max_iter,
            initial=self.trainer.start_iter,
            file=sys.stderr,
            unit="it",
            dynamic_ncols=True,
        )

    def after_step(self) -> None:
        """Move it by one."""
        loss = self.trainer.storage.latest().get("total_loss")
        if loss is not None:
            self._bar.set_postfix_str(f"loss {loss[0]:.3g}", refresh=False)
        self._bar.update()

    def after_train(self) -> None:
        """Leave it where it stands."""
        self._bar.close()
