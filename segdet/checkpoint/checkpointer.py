"""Saving and loading a model together with what training needs to go on."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from segdet.checkpoint.catalog import locate
from segdet.checkpoint.loading import LoadReport, load_weights
from segdet.checkpoint.manifest import defect_of, numbered_before, save_whole
from segdet.checkpoint.reading import read_checkpoint, to_tensors
from segdet.checkpoint.settings import differing_settings, refuse_changes, settings_of
from segdet.config.node import CfgNode
from segdet.errors import CheckpointError, SegdetError
from segdet.utils import comm
from segdet.utils.writing import write_text_atomically

_log = logging.getLogger("segdet.checkpoint")

LAST = "last_checkpoint"  # the text file that names the newest checkpoint of a folder
AVERAGE = "ema_state"  # the entry of a checkpoint with the average of its weights
_LONGEST_NAME = 4096  # bytes of it that are read


class DetectionCheckpointer:
    """Saves and loads a model and other objects.

    Args:
        model: saved as `model`; without its DataParallel or DistributedDataParallel wrapper.
        save_dir: folder of the checkpoints; "" never saves.
        save_to_disk: whether this process writes; by default the main one does.
        cfg: compared, when given, with what the loaded weights tell of how they were trained; a
            difference is a warning. Saved, too: a run is resumed with the settings it had.
        averaged: load the average of the weights (MODEL_EMA) where a checkpoint has one.
        checkpointables: further objects with `state_dict` and `load_state_dict`, by the names
            that they have in the file (`trainer=...`).

    Attributes:
        report: what became of each tensor at the last `load`; None before.
        resumed_from: the checkpoint that `resume_or_load` went on from; "" where there was none.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str | os.PathLike[str] = "",
        *,
        save_to_disk: bool | None = None,
        cfg: CfgNode | None = None,
        averaged: bool = False,
        **checkpointables: Any,
    ) -> None:
        wrapped = isinstance(model, DataParallel | DistributedDataParallel)
        self.model: nn.Module = model.module if wrapped else model
        self.save_dir = os.fspath(save_dir)
        self.save_to_disk = comm.is_main_process() if save_to_disk is None else save_to_disk
        self.cfg = cfg
        self.averaged = averaged
        self.checkpointables = checkpointables
        self.report: LoadReport | None = None
        self.resumed_from = ""

    def save(self, name: str, *, tag: bool = True, **extra: Any) -> None:
        """Write `save_dir`/`name`.pth, and its name into `last_checkpoint`.

        Args:
            name: without folder and suffix.
            tag: whether it becomes the last checkpoint.
            extra: further entries of the file (`iteration=...`).

        Raises:
            CheckpointError: no space, no permission; earlier checkpoints are as they were.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        content = {"model": self.model.state_dict()}
        content |= {key: value.state_dict() for key, value in self.checkpointables.items()}
        content |= extra
        if self.cfg is not None:
            content["config"] = settings_of(self.cfg)
        path = Path(self.save_dir) / f"{name}.pth"
        _log.info("saving %s", path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_whole(path, content)
            if tag:
                self.tag_last_checkpoint(path.name)
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be saved: {error.strerror}. Earlier checkpoints are as they were: "
                "make room or permit writing, and go on with --resume"
            ) from error

    def load(
        self,
        path: str | os.PathLike[str],
        checkpointables: list[str] | None = None,
        *,
        strict: bool = False,
    ) -> dict[str, Any]:
        """Load the model, and the other objects that the file holds.

        Args:
            path: a file, `detectron2://X`, `catalog://X` or a URL (see `catalog.locate`); "" loads
                nothing. Official, Caffe2 and torchvision names are known.
            checkpointables: which of the other objects to load; None means all.
            strict: a missing, unexpected or wrongly shaped tensor is an error; otherwise it is
                reported, and parameters without a value stay as they are.

        Returns:
            What else the file holds, such as `iteration`.

        Raises:
            CheckpointError: the file is not there, cannot be read or does not fit.
        """
        if not path:
            _log.info("no checkpoint given: the weights stay as they were initialised")
            return {}
        file, by_suffix = locate(os.fspath(path))
        return self._take(file, read_checkpoint(file), by_suffix, checkpointables, strict)

    def _take(
        self,
        file: Path,
        checkpoint: dict[str, Any],
        by_suffix: bool = False,
        checkpointables: list[str] | None = None,
        strict: bool = False,
    ) -> dict[str, Any]:
        by_suffix |= checkpoint.pop("matching_heuristics")
        weights = self._weights_of(checkpoint, file)
        self.report = load_weights(
            self.model, weights, file=str(file), by_suffix=by_suffix, strict=strict
        )
        self.report.log()
        if self.cfg is not None:
            for message in differing_settings(self.cfg, self.report, checkpoint.get("__author__")):
                _log.warning("%s", message)
        for key in self.checkpointables if checkpointables is None else checkpointables:
            if key in checkpoint:
                self._load_other(key, checkpoint.pop(key), file)
        return checkpoint

    def _weights_of(self, checkpoint: dict[str, Any], file: Path) -> dict[str, Tensor]:
        weights = checkpoint.pop("model")
        if not self.averaged:
            return weights
        if AVERAGE not in checkpoint:
            _log.warning("%s has no average of its weights: they are taken themselves", file)
            return weights
        average = checkpoint.pop(AVERAGE)
        if not isinstance(average, dict):
            raise CheckpointError(f"{file}: {AVERAGE} must be a dict of tensors")
        _log.info("%s: taking the average of its weights, %s", file, AVERAGE)
        return to_tensors(average, file)

    def _load_other(self, key: str, state: Any, file: Path) -> None:
        try:
            self.checkpointables[key].load_state_dict(state)
        except SegdetError:
            raise
        except Exception as error:  # the state comes from outside and can be wrong in any way
            raise CheckpointError(
                f"{file}: its {key!r} does not fit this run ({type(error).__name__}: {error}); "
                "load it without resuming to take over the weights alone"
            ) from error

    def resume_or_load(
        self, path: str | os.PathLike[str], *, resume: bool = True
    ) -> dict[str, Any]:
        """Everything from the last checkpoint of `save_dir` if resuming, else the model of `path`.

        A damaged checkpoint is passed over for the one before, with a warning.

        Args:
            path: initial weights, used when not resuming or when there is no checkpoint yet.
            resume: go on from the last checkpoint if there is one.

        Returns:
            As `load`.

        Raises:
            CheckpointError: no checkpoint is whole, or as `load`.
            ConfigError: the run had other settings, and SOLVER.RESUME_CHANGED does not allow that.
        """
        # One process looks, since hashing takes a while and all must agree.
        found = self._last_whole_checkpoint() if resume and comm.is_main_process() else ""
        self.resumed_from = comm.all_gather(found)[0]
        if not self.resumed_from:
            return self.load(path, checkpointables=[])
        file = Path(self.resumed_from)
        checkpoint = read_checkpoint(file)
        if self.cfg is not None:
            refuse_changes(self.cfg, checkpoint.pop("config", {}), file)
        return self._take(file, checkpoint)

    def _last_whole_checkpoint(self) -> str:
        """The last checkpoint, or the one before it that is whole; "" when there is none."""
        tagged = ""
        try:
            tagged = self.get_checkpoint_file()
            problem = defect_of(Path(tagged)) if tagged else ""
        except CheckpointError as error:
            problem = str(error)
        if not problem:
            return tagged
        for older in numbered_before(Path(self.save_dir), Path(tagged).name):
            if not defect_of(older):
                _log.warning("%s; going on from %s, the last that is whole", problem, older.name)
                return str(older)
        raise CheckpointError(problem)

    def has_checkpoint(self) -> bool:
        """Whether `save_dir` has a last checkpoint; raises as `get_checkpoint_file`."""
        return bool(self.get_checkpoint_file())

    def get_checkpoint_file(self) -> str:
        """Path of the last checkpoint; "" when there is none.

        Raises:
            CheckpointError: `last_checkpoint` is empty, or names a file that is not there or lies
                outside of the folder.
        """
        tag = Path(self.save_dir) / LAST
        if not self.save_dir or not tag.is_file():
            return ""
        with tag.open("rb") as file:
            name = file.read(_LONGEST_NAME).decode(errors="replace").strip()
        path = tag.parent / name
        found = ""
        if not name.isprintable() or not os.path.isfile(path):
            found = f"{name[:200]!r}: no such file" if name else "it is empty"
        elif not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(tag.parent)):
            found = f"{name[:200]!r} lies in another folder"  # another run's, or this one's moved
        if found:
            raise CheckpointError(
                f"{tag} must name the checkpoint to resume from, but {found}; write the name of a "
                "checkpoint beside it into it, or delete it to begin from the weights"
            )
        return str(path)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Make a file of `save_dir` the one that `resume_or_load` resumes from."""
        write_text_atomically(Path(self.save_dir) / LAST, last_filename_basename)


class PeriodicCheckpointer:
    """Saves every so many iterations, and at the end of training.

    Args:
        checkpointer: does the saving.
        period: iterations from one checkpoint to the next.
        max_iter: of the training; after the last one `model_final` is saved. None: no end known.
        max_to_keep: older checkpoints than this many are deleted, never `model_final`. None: keep
            all.
        file_prefix: of the files' names.
    """

    def __init__(
        self,
        checkpointer: DetectionCheckpointer,
        period: int,
        max_iter: int | None = None,
        max_to_keep: int | None = None,
        file_prefix: str = "model",
    ) -> None:
        if period < 1:
            raise ValueError(f"period must be >= 1, is {period}")
        if max_to_keep is not None and max_to_keep < 1:
            raise ValueError(f"max_to_keep must be >= 1 or None, is {max_to_keep}")
        self.checkpointer = checkpointer
        self.period = period
        self.max_iter = max_iter
        self.max_to_keep = max_to_keep
        self.file_prefix = file_prefix

    def step(self, iteration: int, **extra: Any) -> None:
        """Save if it is time.

        Args:
            iteration: the one just finished, counted from 0.
            extra: further entries of the file.
        """
        extra = {"iteration": iteration, **extra}
        if (iteration + 1) % self.period == 0:
            self.save(f"{self.file_prefix}_{iteration:07d}", **extra)
            self._delete_old(iteration)
        if self.max_iter is not None and iteration >= self.max_iter - 1:
            self.save(f"{self.file_prefix}_final", **extra)

    def save(self, name: str, **extra: Any) -> None:
        """Save now, under this name."""
        self.checkpointer.save(name, **extra)

    def _delete_old(self, iteration: int) -> None:
        """Delete checkpoints up to `iteration`; later ones are of another run and not ours."""
        if self.max_to_keep is None or not self.checkpointer.save_to_disk:
            return
        numbered = {}
        for path in Path(self.checkpointer.save_dir).glob(f"{self.file_prefix}_*.pth"):
            number = re.fullmatch(rf"{re.escape(self.file_prefix)}_(\d{{7,}})\.pth", path.name)
            if number and int(number[1]) <= iteration:
                numbered[int(number[1])] = path
        for number in sorted(numbered)[: -self.max_to_keep]:
            numbered[number].unlink()
