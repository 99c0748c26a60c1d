"""The rows of `benchmarks.models`: what is measured, and how."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask as mask_util
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import systems
from benchmarks.models.systems import SYSTEMS, Size
from benchmarks.ops.duel import machine_rates, seconds
from segdet.evaluation.rle import encode_masks

INFERENCE, TRAINING, ENCODED = "inference", "training step", "inference to RLE"
FIRST = next(iter(SYSTEMS))  # Mask R-CNN, which has peers of its own
SIZE: Size = (480, 640)
LARGE: Size = (800, 1333)
OBJECTS, DETECTIONS = 7, 100  # of an image


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of work of one system; a row of the results begins with these fields."""

    system: str
    work: str
    size: Size = SIZE
    batch: int = 1
    objects: int = OBJECTS  # in training annotated, in inference found
    threads: int = 0  # 0: as the command says
    scaling: str = ""  # of what, where the row is for comparison with others

    @property
    def name(self) -> str:
        """What `--filter` looks at."""
        width, height = self.size[1], self.size[0]
        if self.scaling:
            threads = f", {self.threads} threads" if self.threads else ""
            return (
                f"scaling with {self.scaling}, {self.system} {self.work}: {width}x{height}, "
                f"batch {self.batch}, {self.objects} objects{threads}"
            )
        images = f"{self.batch} image{'s'[: self.batch > 1]}"
        return f"{self.system} {width}x{height} {self.work}, {images}"


def _square(system: str, size: Size) -> Size:
    side = SYSTEMS[system].side
    return (side, side) if side else size


def speed_cases() -> Iterator[Case]:
    """Latency, throughput and training of every system."""
    for system in SYSTEMS:
        size = _square(system, SIZE)
        for work, batch in ((INFERENCE, 1), (INFERENCE, 4), (TRAINING, 1), (TRAINING, 2)):
            yield Case(system=system, work=work, size=size, batch=batch)
    for size in (SIZE, LARGE):
        yield Case(system=FIRST, work=ENCODED, size=size)
    for work in (INFERENCE, TRAINING):
        yield Case(system=FIRST, work=work, size=LARGE)


def scaling_cases(threads: int) -> Iterator[Case]:
    """Image size, objects, batch and threads, one at a time, of Mask R-CNN and YOLACT."""
    for system in (FIRST, "YOLACT R50"):
        heights = (240, 480, 720, 960) if system == FIRST else (270, 400, 550, 700)
        for work in (INFERENCE, TRAINING):
            case = functools.partial(Case, system=system, work=work)
            size = _square(system, SIZE)
            usual = DETECTIONS if work == INFERENCE else OBJECTS
            for height in heights:
                own = (height, height if size[0] == size[1] else height * 4 // 3)
                yield case(size=own, objects=usual, scaling="image size")
            for objects in (1, 10, 30, 100):
                yield case(size=size, objects=objects, scaling="objects")
            for batch in (1, 2, 4):
                yield case(size=size, batch=batch, objects=usual, scaling="batch")
            for count in range(1, threads + 1):
                yield case(size=size, objects=usual, threads=count, scaling="threads")


class Peer(NamedTuple):
    """Another project's model on the same batch."""

    name: str
    run: Callable[[], Any]


@dataclass(frozen=True)
class Clock:
    """How cases are timed.

    Args:
        device: of the models.
        threads: of the CPU, where a case says nothing else.
        runs: timed calls of each model, in turn, behind one that is not.
    """

    device: str
    threads: int
    runs: int = 5
    _rates: list[tuple[float, float]] = field(default_factory=list)

    def measure(self, case: Case) -> list[dict[str, Any]]:
        """The rows of a case: one for each peer."""
        torch.manual_seed(0)
        torch.set_num_threads(case.threads or self.threads)
        batch = systems.random_batch(case.size, case.batch, _annotated(case), self.device)
        model = _model(case.system, self.device, _found(case))
        ours = _run_of(case.work, model, batch.ours)
        peers = [] if case.scaling else list(_peers(case, batch, self.device))
        times = self._medians([ours, *(peer.run for peer in peers)])
        row: dict[str, Any] = {
            "name": case.name,
            "ours_s": times[0],
            "peer": "",
            "peer_s": None,
            "ratio": None,
            **self._limit(case, ours),
            "system": case.system,
            "work": case.work,
            "width": case.size[1],
            "height": case.size[0],
            "batch": case.batch,
            "objects": case.objects,
            "threads": case.threads or self.threads,
            "scaling": case.scaling,
            "images_per_s": case.batch / times[0],
        }
        if not peers:
            return [row]
        return [
            {**row, "peer": peer.name, "peer_s": time, "ratio": time / times[0]}
            for peer, time in zip(peers, times[1:], strict=True)
        ]

    def _medians(self, runs: list[Callable[[], Any]]) -> list[float]:
        for run in runs:
            run()
        times = [[seconds(run, self.device) for run in runs] for _ in range(self.runs)]
        return [statistics.median(column) for column in zip(*times, strict=True)]

    def _limit(self, case: Case, run: Callable[[], Any]) -> dict[str, float]:
        """The time that the convolutions and matrix products alone would take, of Mask R-CNN."""
        if case.system != FIRST or case.work == ENCODED or case.scaling:
            return {}
        if not self._rates:
            self._rates.append(machine_rates(self.device))
        # Under autocast every convolution is one that the counter knows.
        with torch.autocast(self.device, torch.bfloat16), FlopCounterMode(display=False) as counter:
            run()
        return {"limit_s": counter.get_total_flops() / 1e9 / self._rates[0][1]}


def _annotated(case: Case) -> int:
    return case.objects if case.work == TRAINING else OBJECTS


def _found(case: Case) -> int:
    return case.objects if case.work != TRAINING and case.scaling else DETECTIONS


@functools.lru_cache(maxsize=1)
def _model(system: str, device: str, detections: int) -> nn.Module:
    return systems.our_model(system, device, detections=detections)


def _run_of(work: str, model: nn.Module, *inputs: Any) -> Callable[[], Any]:
    if work == TRAINING:
        return systems.training_step(model, *inputs)
    predict = systems.predicted(model, *inputs)
    return predict if work == INFERENCE else lambda: encode(predict())


def encode(results: list[dict[str, Any]]) -> list[Any]:
    """The masks of every image as COCO's RLE, those of torchvision by pycocotools."""
    rles = []
    for one in results:
        if "instances" in one:
            rles.append(encode_masks(one["instances"].pred_masks))
        else:
            masks = (one["masks"][:, 0] >= 0.5).permute(1, 2, 0).to("cpu", torch.uint8)
            rles.append(mask_util.encode(np.asfortranarray(masks)))
    return rles


def _peers(case: Case, batch: systems.Batch, device: str) -> Iterator[Peer]:
    """Mask R-CNN of torchvision, and for ours detectron2's where there is one."""
    theirs = _torchvision(device, case.size)
    inputs = (batch.images, batch.targets) if case.work == TRAINING else (batch.images,)
    name = f"torchvision {torchvision.__version__}"
    if case.system != FIRST:
        name = f"Mask R-CNN R50-FPN of {name}"
    yield Peer(name, _run_of(case.work, theirs, *inputs))
    model = systems.detectron2_model(device) if case.system == FIRST else None
    if model is not None:
        yield Peer("detectron2", _run_of(case.work, model, systems.for_detectron2(batch)))


@functools.lru_cache(maxsize=1)
def _torchvision(device: str, size: Size) -> nn.Module:
    return systems.torchvision_model(device, size)
