"""Where the time of a prediction and of a training step goes, part by part."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from benchmarks.models import systems

METHODS = ("forward", "losses", "predict")
REST = "the rest"


class StageClock:
    """The time inside of the parts of a model, without that of parts within them.

    Args:
        model: its parts, and those of its `roi_heads`, are timed from now on.
        device: of the model.
    """

    def __init__(self, model: nn.Module, device: str) -> None:
        self._device = device
        self._open: list[str] = []
        self._since = 0.0
        self.seconds: defaultdict[str, float] = defaultdict(float)
        for name, part in model.named_children():
            self._watch(part, name)
        for name, part in getattr(model, "roi_heads", nn.Module()).named_children():
            self._watch(part, f"roi_heads.{name}")
        self._watch_method(model, "postprocess", "postprocess")

    def _watch(self, part: Any, name: str) -> None:
        for method in METHODS:
            if hasattr(part, method):
                self._watch_method(part, method, name)

    def _watch_method(self, part: Any, method: str, name: str) -> None:
        setattr(part, method, self.timed(name, getattr(part, method)))

    def timed(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """`method`, whose time counts as that of the part `name`."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._turn()
            self._open.append(name)
            try:
                return method(*args, **kwargs)
            finally:
                self._turn()
                self._open.pop()

        return timed

    def run(self, step: Callable[[], Any]) -> dict[str, float]:
        """Seconds by part, of one call; those outside of all parts are `REST`."""
        self.seconds.clear()
        self._open, self._since = [REST], self._now()
        step()
        self._turn()
        return dict(self.seconds)

    def _turn(self) -> None:
        now = self._now()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def _now(self) -> float:
        if self._device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def rows(device: str, threads: int, runs: int, wanted: Callable[[str], bool]) -> Iterator[Any]:
    """A row for each stage of each system's prediction and training step, at 640x480."""
    torch.set_num_threads(threads)
    for system, official in systems.SYSTEMS.items():
        size = (official.side, official.side) if official.side else (480, 640)
        works = [
            work
            for work in ("inference", "training step")
            if wanted(f"stages of {system} {size[1]}x{size[0]} {work}")
        ]
        if not works:
            continue
        torch.manual_seed(0)
        model = systems.our_model(system, device)
        inputs = systems.random_batch(size, 1, 7, device).ours
        clock = StageClock(model, device)
        steps = {
            "inference": systems.predicted(model, inputs),
            "training step": _training(model, inputs, clock),
        }
        for work in works:
            step = steps[work]
            found = [clock.run(step) for _ in range(runs + 1)][1:]
            names = dict.fromkeys(name for one in found for name in one)
            title = f"stages of {system} {size[1]}x{size[0]} {work}"
            for name in names:
                seconds = statistics.median(one.get(name, 0.0) for one in found)
                yield {
                    "name": f"{title}: {name}",
                    "ours_s": seconds,
                    "peer": "",
                    "peer_s": None,
                    "ratio": None,
                    "system": system,
                    "work": work,
                    "stage": name,
                }


def _training(model: nn.Module, inputs: list[dict], clock: StageClock) -> Callable[[], Any]:
    """A step whose backward pass and update are stages too."""
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-9, momentum=0.9, fused=True)

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        loss = torch.stack(list(model(inputs).values())).sum()
        clock.timed("backward", loss.backward)()
        clock.timed("optimizer", optimizer.step)()

    return step
