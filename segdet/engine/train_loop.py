"""The training loop: iterations between hooks, and one step of gradient descent."""

from __future__ import annotations

import contextlib
import logging
import math
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from segdet.engine import nonfinite
from segdet.engine.accumulation import compute_in_parts, unwrapped
from segdet.engine.heap import return_free_memory
from segdet.engine.nonfinite import BadStep, Snapshot
from segdet.engine.stopping import Stopped, StopSignals
from segdet.errors import DataError
from segdet.layers.losses import Losses
from segdet.utils import comm
from segdet.utils.events import EventStorage, get_event_storage
from segdet.utils.mixed_precision import AMPConfig

_log = logging.getLogger(__name__)


class HookBase:
    """Called by the trainer around every iteration; override what is needed.

    Attributes:
        trainer: the one that the hook is registered with: `trainer.iter`, `trainer.max_iter`,
            `trainer.storage`, `trainer.model` ...
    """

    trainer: Any

    def before_train(self) -> None:
        """Before the first iteration."""

    def after_train(self) -> None:
        """After the last iteration, also when an exception ended the run.

        `trainer.iter` is `trainer.max_iter` exactly when the run finished.
        """

    def catch_up(self) -> None:
        """In a resumed run, before `before_train`: what the checkpoint's iteration had yet to do.

        The checkpoint is saved amid that iteration's `after_step`; a hook behind the checkpointer
        may have been cut off. `trainer.iter` is that iteration.
        """

    def before_step(self) -> None:
        """Before each iteration."""

    def after_backward(self) -> None:
        """Between backward and the optimizer's step; under AMP gradients are still scaled."""

    def after_step(self) -> None:
        """After each iteration."""

    def on_stop(self) -> None:
        """A signal ends the run behind a finished iteration; before `after_train`."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; loaded by `load_state_dict`, which such a hook has too."""
        return {}


class TrainerBase:
    """Runs hooks and `run_step` from one iteration to another.

    Attributes:
        iter: the present iteration; `max_iter` once the run has finished.
        start_iter: the first iteration of this call of `train`.
        max_iter: the iteration after the last.
        begins_anew: a run was to be resumed that had no checkpoint yet.
    """

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self._storage: EventStorage | None = None
        self._measured: dict[str, Any] | None = None  # of the run that is resumed
        self._signals = StopSignals()
        self.iter = 0
        self.start_iter = 0
        self.max_iter = 0
        self.begins_anew = False

    @property
    def storage(self) -> EventStorage:
        """Where measurements go; of the run around it for a trainer that another one steps."""
        return get_event_storage() if self._storage is None else self._storage

    def register_hooks(self, hooks: Iterable[HookBase | None]) -> None:
        """Add hooks; they are called in the order of registration. None is skipped."""
        for hook in hooks:
            if hook is not None:
                # A proxy, since a cycle would keep the model's memory until garbage collection.
                hook.trainer = weakref.proxy(self)
                self._hooks.append(hook)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run the iterations from `start_iter` up to, but not including, `max_iter`.

        Raises:
            Stopped: SIGTERM or SIGINT came; it ends the process with the signal's exit code.
        """
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        _log.info("Starting training from iteration %d", start_iter)
        with EventStorage(start_iter) as self._storage, StopSignals() as self._signals:
            try:
                self._catch_up()
                self.before_train()
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    if signal := self._signals.agreed():
                        raise Stopped(signal)
                self.iter = max(start_iter, max_iter)
            except Stopped:
                for hook in self._hooks:
                    hook.on_stop()
                raise
            finally:
                self.after_train()

    def interruptible(self) -> AbstractContextManager[None]:
        """Within, SIGTERM and SIGINT end the run at once: for what a resumed run does again."""
        return self._signals.may_interrupt()

    def _catch_up(self) -> None:
        if self._measured is not None:
            self.storage.load_state_dict(self._measured)
            self._measured = None
            self.iter = self.storage.iter = self.start_iter - 1
            for hook in self._hooks:
                hook.catch_up()
            self.iter = self.storage.iter = self.start_iter

    def before_train(self) -> None:
        """Call the hooks."""
        for hook in self._hooks:
            hook.before_train()

    def after_train(self) -> None:
        """Call the hooks."""
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.after_train()

    def before_step(self) -> None:
        """Call the hooks."""
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.before_step()

    def after_backward(self) -> None:
        """Call the hooks."""
        for hook in self._hooks:
            hook.after_backward()

    def after_step(self) -> None:
        """Call the hooks."""
        for hook in self._hooks:
            hook.after_step()

    def run_step(self) -> None:
        """One iteration."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """The last finished iteration, what was measured, and the hooks' states by class name."""
        hooks: dict[str, Any] = {}
        for name, hook in self._named_hooks():
            if state := hook.state_dict():
                hooks[name] = state
        # A trainer that another one steps has no max_iter.
        is_over = 0 < self.max_iter <= self.iter
        iteration = self.iter - 1 if is_over else self.iter
        state = {"iteration": iteration, **({"hooks": hooks} if hooks else {})}
        return state if self._storage is None else {**state, "storage": self._storage.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; hooks are matched by class name."""
        self.iter = state_dict["iteration"]
        self._measured = state_dict.get("storage")
        present = dict(self._named_hooks())
        for name, state in state_dict.get("hooks", {}).items():
            if name in present:
                present[name].load_state_dict(state)  # type: ignore[attr-defined]
            elif comm.is_main_process():  # which has hooks that the others have not
                _log.warning("the checkpoint has the state of a hook %s, this run has none", name)

    def _named_hooks(self) -> Iterator[tuple[str, HookBase]]:
        """Class name and hook; the second of a class is `Name#2`, and so on."""
        counts: dict[str, int] = {}
        for hook in self._hooks:
            name = type(hook).__qualname__
            counts[name] = counts.get(name, 0) + 1
            yield (name if counts[name] == 1 else f"{name}#{counts[name]}"), hook


class SimpleTrainer(TrainerBase):
    """One loss, one optimizer, one stream of batches.

    Args:
        model: from a batch to a dict of scalar losses (with further measurements in its
            `.metrics`, if it has that), or to one scalar. It is put into training mode.
        data_loader: gives batches; one with `seek(iteration)` continues there, one that ends is
            begun anew.
        optimizer: over the model's parameters.
        gather_metric_period: losses and metrics are stored every so many iterations, and a loss
            that is not finite is noticed then: fetching them waits for the GPU.
        zero_grad_before_forward: set gradients to zero earlier, which frees their memory sooner.
        seed: >= 0: torch's generators are seeded from (seed, iteration, rank) before each forward,
            so that a resumed run draws the same numbers. None leaves them alone.

    Attributes:
        accumulate: the parts that a batch is computed in, one after the other.
        on_nonfinite: called with a step whose loss or gradient is not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any] | None,
        optimizer: Optimizer,
        *,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        model.train()
        self.model = model
        self.data_loader = data_loader
        self.optimizer = optimizer
        self.gather_metric_period = gather_metric_period
        self.zero_grad_before_forward = zero_grad_before_forward
        self.seed = seed
        self.grad_scaler = torch.amp.GradScaler("cpu", enabled=False)
        self.accumulate = 1
        self.on_nonfinite: Callable[[BadStep], None] = nonfinite.stop
        self._snapshot = Snapshot()
        self._batches: Iterator[Any] | None = None

    def run_step(self) -> None:
        """Batch, losses, gradients, measurements, step.

        A loss or gradient that is not finite goes to `on_nonfinite`; the step is not taken. (The
        gradient scaler has its own way with gradients.)

        Raises:
            NonFiniteError: that is what `on_nonfinite` does.
            MemoryLimitError: the batch does not fit into memory.
        """
        if not self.model.training:
            raise RuntimeError("the model is in evaluation mode: call model.train() first")
        comm.say_where(f"iteration {self.iter}, its batch")
        start = time.perf_counter()
        if self._batches is None:
            self._batches = _endless(self.data_loader, self.iter)
        batch = next(self._batches)
        data_time = time.perf_counter() - start

        comm.say_where(f"iteration {self.iter}, its step")
        buffers = self._snapshot.of(unwrapped(self.model))
        try:
            losses = self._compute_gradients(batch, buffers)
        except FloatingPointError as error:  # systems refuse to go on with NaN
            self.on_nonfinite(self._bad_step(batch, buffers, reason=str(error)))
            return
        except RuntimeError as error:
            if not nonfinite.is_out_of_memory(error):
                raise
            raise nonfinite.out_of_memory(self.iter, batch, error) from error
        self.after_backward()
        if (self.iter + 1) % self.gather_metric_period == 0:
            bad = self._write_metrics(losses, data_time)
            if bad is not None:
                self.on_nonfinite(self._bad_step(batch, buffers, *bad))
                return
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _compute_gradients(self, batch: Any, buffers: Mapping[str, Tensor]) -> Losses:
        """Of the whole batch, in parts; the losses are those of all processes' batch."""
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        return compute_in_parts(
            self.model,
            batch,
            self.accumulate,
            forward=self._forward,
            backward=self._backward,
            buffers=buffers,
        )

    def _forward(self, model: nn.Module, part: Any, number: int) -> Losses:
        seed_generators(self.seed, self.iter, comm.get_rank(), number)
        with self._autocast():
            return as_losses(model(part))

    def _backward(self, total: Tensor, number: int) -> None:
        if not self.zero_grad_before_forward and number == 0:
            self.optimizer.zero_grad()
        if total.device.type == "cpu":  # behind the forward pass little is free, but much is kept
            return_free_memory()
        self.grad_scaler.scale(total).backward()

    def _bad_step(
        self,
        batch: Any,
        buffers: Mapping[str, Tensor],
        losses: Mapping[str, float] | None = None,
        own_losses: Mapping[str, float] | None = None,
        reason: str = "",
    ) -> BadStep:
        return BadStep(
            iteration=self.iter,
            losses=losses or {},
            own_losses=own_losses or {},
            batch=batch,
            buffers=buffers,
            reason=reason,
        )

    def _autocast(self) -> AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def _write_metrics(
        self, loss_dict: Mapping[str, Tensor], data_time: float
    ) -> tuple[Mapping[str, float], Mapping[str, float]] | None:
        """Store losses and metrics, as means over the processes.

        Returns:
            The means and this process's losses, if something is not finite in any process; then
            nothing is stored.
        """
        own = _as_floats(loss_dict), _as_floats(getattr(loss_dict, "metrics", {}))
        has_gradients = self.grad_scaler.is_enabled() or nonfinite.gradients_are_finite(self.model)
        gathered = comm.all_gather((*own, data_time, has_gradients))
        all_losses, all_metrics, all_times, all_have = zip(*gathered, strict=True)
        losses = _mean(all_losses)
        total = sum(losses.values())
        if not (math.isfinite(total) and all(all_have)):
            return losses, own[0]
        self.storage.put_scalars(rank_data_time=data_time, data_time=max(all_times))
        self.storage.put_scalars(**{"total_loss": total, **losses, **_mean(all_metrics)})
        return None

    def state_dict(self) -> dict[str, Any]:
        """Also the optimizer's."""
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Also the optimizer's."""
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])


class AMPTrainer(SimpleTrainer):
    """Forward in mixed precision; float16 with a gradient scaler, bfloat16 without.

    Args:
        model: see SimpleTrainer.
        data_loader: see SimpleTrainer.
        optimizer: see SimpleTrainer.
        gather_metric_period: see SimpleTrainer.
        zero_grad_before_forward: see SimpleTrainer.
        seed: see SimpleTrainer.
        precision: of autocast; by default float16 on CUDA and bfloat16 on the CPU.
        grad_scaler: by default torch's own where precision is float16.
        log_grad_scaler: store its scale, as `grad_scaler`.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any] | None,
        optimizer: Optimizer,
        *,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        seed: int | None = None,
        precision: torch.dtype | None = None,
        grad_scaler: torch.amp.GradScaler | None = None,
        log_grad_scaler: bool = False,
    ) -> None:
        super().__init__(
            model,
            data_loader,
            optimizer,
            gather_metric_period=gather_metric_period,
            zero_grad_before_forward=zero_grad_before_forward,
            seed=seed,
        )
        self.log_grad_scaler = log_grad_scaler
        self._device = next(model.parameters()).device.type
        self.precision = precision or AMPConfig().dtype(self._device)
        self.grad_scaler = grad_scaler or torch.amp.GradScaler(
            self._device, enabled=self.precision is torch.float16
        )

    def run_step(self) -> None:
        """As of SimpleTrainer, in mixed precision."""
        super().run_step()
        if self.log_grad_scaler:
            self.storage.put_scalar("grad_scaler", self.grad_scaler.get_scale())

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device, dtype=self.precision)

    def state_dict(self) -> dict[str, Any]:
        """Also the gradient scaler's."""
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Also the gradient scaler's, if the checkpoint is of a run with AMP."""
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def as_losses(output: Any) -> Losses:
    """What a model in training gives: losses by name, maybe with `.metrics`, or one scalar."""
    if isinstance(output, Losses):
        return output
    terms = {"total_loss": output} if isinstance(output, Tensor) else output
    return Losses(terms, getattr(output, "metrics", None))


def seed_generators(seed: int | None, iteration: int, rank: int, part: int = 0) -> None:
    """Torch's generators, as a function of the counters of a step; None leaves them alone."""
    if seed is not None:
        counters = np.random.SeedSequence((seed, iteration, rank, part))
        torch.manual_seed(int(counters.generate_state(1, np.uint64)[0]))


def _endless(loader: Iterable[Any] | None, start: int) -> Iterator[Any]:
    """Batches from number `start` on if the loader can seek; again and again if it ends."""
    if loader is None:
        raise ValueError("the trainer has no data_loader")
    if hasattr(loader, "seek"):
        loader.seek(start)  # type: ignore[attr-defined]
    while True:
        count = 0
        for count, batch in enumerate(loader, start=1):  # noqa: B007
            yield batch
        if count == 0:
            raise DataError("the training data loader gives no batch; is DATASETS.TRAIN empty?")


def _as_floats(scalars: Mapping[str, Tensor | float]) -> dict[str, float]:
    """The same as Python floats; tensors travel in one transfer, each alone would wait for CUDA."""
    tensors = {name: value for name, value in scalars.items() if isinstance(value, Tensor)}
    floats = {name: float(v) for name, v in scalars.items() if not isinstance(v, Tensor)}
    if tensors:
        stacked = torch.stack([value.detach().float().reshape(()) for value in tensors.values()])
        floats |= dict(zip(tensors, stacked.tolist(), strict=True))
    return {name: floats[name] for name in scalars}


def _mean(dicts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Of each name, over the processes that have it."""
    values: dict[str, list[float]] = {}
    for one in dicts:
        for name, value in one.items():
            values.setdefault(name, []).append(value)
    return {name: sum(found) / len(found) for name, found in values.items()}
