"""What a run measures: storage of scalars, images and histograms, and the writers that read it."""

from __future__ import annotations

import datetime
import functools
import itertools
import json
import logging
import statistics
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_log = logging.getLogger(__name__)

_KEPT = 20  # values of a scalar in a checkpoint, the writers' window

_STORAGES: ContextVar[tuple[EventStorage, ...]] = ContextVar("storages", default=())


def has_event_storage() -> bool:
    """Whether the code runs inside `with EventStorage(...)`."""
    return bool(_STORAGES.get())


def get_event_storage() -> EventStorage:
    """The innermost storage whose `with` block encloses the call.

    Raises:
        RuntimeError: there is none.
    """
    if not has_event_storage():
        raise RuntimeError("get_event_storage() needs an enclosing `with EventStorage(...):`")
    return _STORAGES.get()[-1]


class HistoryBuffer:
    """The latest values of one scalar.

    Args:
        max_length: how many are kept.
    """

    def __init__(self, max_length: int = 100_000) -> None:
        self._values: deque[tuple[float, float]] = deque(maxlen=max_length)
        self._count = 0
        self._sum = 0.0

    def update(self, value: float, iteration: float | None = None) -> None:
        """Add a value; its iteration is the number of values before it by default."""
        self._values.append((value, self._count if iteration is None else iteration))
        self._count += 1
        self._sum += value

    def latest(self) -> float:
        """The last value."""
        return self._values[-1][0]

    def median(self, window_size: int) -> float:
        """Median of the last `window_size` values."""
        return statistics.median(self._last(window_size))

    def avg(self, window_size: int) -> float:
        """Mean of the last `window_size` values."""
        return statistics.fmean(self._last(window_size))

    def global_avg(self) -> float:
        """Mean of all values ever added."""
        return self._sum / self._count

    def values(self) -> list[tuple[float, float]]:
        """(value, iteration) of every value kept."""
        return list(self._values)

    def _last(self, window_size: int) -> list[float]:
        return [value for value, _ in itertools.islice(reversed(self._values), window_size)]


class EventStorage:
    """Holds what one run measures; `with storage:` makes it `get_event_storage()`'s.

    Args:
        start_iter: the iteration to begin with.
    """

    def __init__(self, start_iter: int = 0) -> None:
        self.iter = start_iter
        self._history: dict[str, HistoryBuffer] = defaultdict(HistoryBuffer)
        self._smooth: dict[str, bool] = {}
        self._latest: dict[str, tuple[float, int]] = {}
        self._images: list[tuple[str, Tensor, int]] = []
        self._histograms: list[dict[str, Any]] = []
        self._prefix = ""

    @property
    def iteration(self) -> int:
        """The same as `iter`."""
        return self.iter

    def step(self) -> None:
        """Go to the next iteration."""
        self.iter += 1

    def put_scalar(
        self, name: str, value: float, smoothing_hint: bool = True, cur_iter: int | None = None
    ) -> None:
        """Add a value to a scalar's history.

        Args:
            name: such as "loss_cls"; "a/b" groups in TensorBoard.
            value: anything that float() takes.
            smoothing_hint: whether writers show a median over recent values, as for noisy losses.
            cur_iter: the iteration it belongs to; the present one by default.

        Raises:
            ValueError: the name was used with the other hint before.
        """
        name, value = self._prefix + name, float(value)
        iteration = self.iter if cur_iter is None else cur_iter
        if self._smooth.setdefault(name, smoothing_hint) != smoothing_hint:
            raise ValueError(f"{name} was put with smoothing_hint={not smoothing_hint} before")
        self._history[name].update(value, iteration)
        self._latest[name] = (value, iteration)

    def put_scalars(
        self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs: float
    ) -> None:
        """`put_scalar` for each keyword."""
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint, cur_iter)

    def put_image(self, img_name: str, img_tensor: Tensor) -> None:
        """Keep an image for the next write.

        Args:
            img_name: its name.
            img_tensor: (3, H, W) RGB, uint8, or float in [0, 1].
        """
        self._images.append((self._prefix + img_name, img_tensor, self.iter))

    def put_histogram(self, hist_name: str, hist_tensor: Tensor, bins: int = 1000) -> None:
        """Keep the histogram of a tensor's values for the next write.

        Args:
            hist_name: its name.
            hist_tensor: any shape.
            bins: how many, of equal width between the least and the greatest value.
        """
        values = hist_tensor.detach().float().flatten().cpu()
        low, high = values.min().item(), values.max().item()
        edges = torch.linspace(low, high, bins + 1)
        self._histograms.append(
            {
                "tag": self._prefix + hist_name,
                "min": low,
                "max": high,
                "num": len(values),
                "sum": values.sum().item(),
                "sum_squares": values.square().sum().item(),
                "bucket_limits": edges[1:].tolist(),
                "bucket_counts": torch.histc(values, bins, low, high).tolist(),
                "global_step": self.iter,
            }
        )

    def history(self, name: str) -> HistoryBuffer:
        """The history of one scalar.

        Raises:
            KeyError: nothing was put under that name.
        """
        if name not in self._history:
            raise KeyError(f"no scalar {name}; there are {', '.join(sorted(self._history))}")
        return self._history[name]

    def histories(self) -> dict[str, HistoryBuffer]:
        """The history of every scalar."""
        return dict(self._history)

    def latest(self) -> dict[str, tuple[float, int]]:
        """Last value of every scalar and its iteration."""
        return dict(self._latest)

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """As `latest`, with the median of the last `window_size` values where the hint asks."""
        return {
            name: (self._history[name].median(window_size) if self._smooth[name] else value, it)
            for name, (value, it) in self._latest.items()
        }

    def smoothing_hints(self) -> dict[str, bool]:
        """The smoothing hint of every scalar."""
        return dict(self._smooth)

    @contextmanager
    def name_scope(self, name: str) -> Iterator[None]:
        """Within, every name gets the prefix `name/`."""
        outer, self._prefix = self._prefix, name.rstrip("/") + "/"
        try:
            yield
        finally:
            self._prefix = outer

    def take_images(self) -> list[tuple[str, Tensor, int]]:
        """(name, image, iteration) of the images put since the last call."""
        images, self._images = self._images, []
        return images

    def take_histograms(self) -> list[dict[str, Any]]:
        """The histograms put since the last call, as TensorBoard's raw ones."""
        histograms, self._histograms = self._histograms, []
        return histograms

    def state_dict(self) -> dict[str, Any]:
        """Of every scalar its latest values, as many as writers look at, and its hint."""
        return {
            name: {"values": history.values()[-_KEPT:], "smooth": self._smooth[name]}
            for name, history in self._history.items()
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        for name, scalar in state_dict.items():
            for value, iteration in scalar["values"]:
                self.put_scalar(name, value, scalar["smooth"], iteration)

    def __enter__(self) -> EventStorage:
        _STORAGES.set((*_STORAGES.get(), self))
        return self

    def __exit__(self, *_: object) -> None:
        _STORAGES.set(_STORAGES.get()[:-1])


class EventWriter:
    """Writes what is new in `get_event_storage()`."""

    def write(self) -> None:
        """Write what came since the last call."""
        raise NotImplementedError

    def rewind(self, iteration: int) -> None:
        """A run is resumed: what is later than `iteration` will come again."""

    def close(self) -> None:
        """Nothing will be written any more."""


class JSONWriter(EventWriter):
    """A line for each write, a JSON object: `{"iteration": 19, "total_loss": 1.5, ...}`.

    It holds each scalar's latest value, or the median of recent ones where its hint asks.
    Iterations between two writes have no line of their own.

    A line goes to the file in one piece, so a run that is killed leaves whole lines.

    Args:
        json_file: appended to.
        window_size: of the median over noisy scalars.
    """

    def __init__(self, json_file: str | Path, window_size: int = 20) -> None:
        self._path = Path(json_file)
        # Open as long as the run; unbuffered, so that one write is one system call.
        self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115
        self._window_size = window_size
        self._last_write = -1

    def rewind(self, iteration: int) -> None:
        """Take the lines of later iterations off the end, and one that was cut short."""
        lines = self._path.read_bytes().splitlines(keepends=True)
        while lines:
            last = _iteration_of(lines[-1])
            if last is not None and last <= iteration:
                self._last_write = last
                break
            lines.pop()
        self._file.truncate(sum(map(len, lines)))

    def write(self) -> None:
        """Write the new scalars; only those stored at different iterations take several lines."""
        lines: dict[int, dict[str, float]] = defaultdict(dict)
        latest = get_event_storage().latest_with_smoothing_hint(self._window_size)
        for name, (value, iteration) in latest.items():
            if iteration > self._last_write:
                lines[iteration][name] = value
        for iteration, scalars in sorted(lines.items()):
            line = json.dumps({**scalars, "iteration": iteration}, sort_keys=True)
            self._file.write(f"{line}\n".encode())
            self._last_write = iteration

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _iteration_of(line: bytes) -> int | None:
    """Of a line of metrics.json; None if it is not whole."""
    try:
        return json.loads(line)["iteration"] if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        return None


class TensorboardXWriter(EventWriter):
    """Scalars, images and histograms for TensorBoard.

    Args:
        log_dir: the folder of the event files.
        window_size: of the median over noisy scalars.
        kwargs: of `torch.utils.tensorboard.SummaryWriter`.
    """

    def __init__(self, log_dir: str | Path, window_size: int = 20, **kwargs: Any) -> None:
        self._options = {"log_dir": str(log_dir), **kwargs}
        self._window_size = window_size
        self._last_write = -1

    @functools.cached_property
    def _writer(self) -> Any:
        """Made by the first write, so that a run that fails before it leaves no empty file."""
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(**self._options)

    def write(self) -> None:
        """Write the scalars, images and histograms since the last call."""
        storage = get_event_storage()
        latest = storage.latest_with_smoothing_hint(self._window_size)
        for name, (value, iteration) in latest.items():
            if iteration > self._last_write:
                self._writer.add_scalar(name, value, iteration)
        self._last_write = max((it for _, it in latest.values()), default=self._last_write)
        for name, image, iteration in storage.take_images():
            self._writer.add_image(name, image, iteration)
        for histogram in storage.take_histograms():
            self._writer.add_histogram_raw(**histogram)

    def close(self) -> None:
        """Flush and close the event file."""
        if "_writer" in self.__dict__:
            self._writer.close()


class CommonMetricPrinter(EventWriter):
    """Logs one line: time left, iteration, losses, seconds an iteration, lr, GPU memory.

    Args:
        max_iter: the run's length, for the time left; None prints none.
        window_size: of the median over noisy scalars.
    """

    def __init__(self, max_iter: int | None = None, window_size: int = 20) -> None:
        self._max_iter = max_iter
        self._window_size = window_size

    def write(self) -> None:
        """Log the line of the present iteration."""
        storage = get_event_storage()
        if storage.iter == self._max_iter:
            return  # after the last iteration there are only results of evaluation
        shown = storage.latest_with_smoothing_hint(self._window_size)
        parts = [f"iter: {storage.iter}"]
        if self._max_iter is not None and "time" in shown:
            left = storage.history("time").median(1000) * (self._max_iter - storage.iter - 1)
            storage.put_scalar("eta_seconds", left, smoothing_hint=False)
            parts.insert(0, f"eta: {datetime.timedelta(seconds=int(left))}")
        parts += [f"{name}: {shown[name][0]:.4g}" for name in shown if "loss" in name]
        parts += [
            f"{name}: {shown[name][0]:.4f}" for name in ("time", "data_time") if name in shown
        ]
        if "lr" in shown:
            parts.append(f"lr: {shown['lr'][0]:.5g}")
        if torch.cuda.is_available():
            parts.append(f"max_mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}M")
        _log.info("  ".join(parts))
