"""Runs that are killed at random and resumed, against runs that are not: do they differ in a bit?

python -m benchmarks.trust.kill_matrix [SYSTEM ...] [--points N] [--workers 0 1 3]
    [--processes 1 2] [--work FOLDER] [--json FILE]

Every run trains a system (by default each of `SYSTEMS`) in small for a few iterations on a few
pictures of the demo set, saves every second one and evaluates every fourth. SIGKILL comes from
outside at a random moment after a random step, save or evaluation has begun; the run is resumed,
and killed again, until it has finished; then its final checkpoint (weights, optimizer, schedule,
counters) is compared with that of a run that nobody killed, tensor by tensor. With several
processes a random one is killed. The table counts where the kills hit.

Rows that --json FILE has of earlier calls stay, those that are measured again are replaced.
`--show FILE` prints its table.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import hotcoco as hotcoco  # evaluators import it: here once for all processes
import torch
import torch._dynamo  # likewise, optimizers
import torch.distributed as dist

from segdet.checkpoint.manifest import defect_of
from segdet.checkpoint.reading import read_checkpoint
from segdet.config import CfgNode, get_cfg
from segdet.data.demo import make_demo_dataset
from segdet.engine.train import Trainer, default_setup

ROOT = Path(__file__).parents[2]
SETTINGS = """
    MODEL.DEVICE cpu SEED 1 SOLVER.MAX_ITER 6 SOLVER.CHECKPOINT_PERIOD 2 SOLVER.IMS_PER_BATCH 2
    SOLVER.STEPS (5,) SOLVER.WARMUP_ITERS 3 SOLVER.BASE_LR 0.005 TEST.EVAL_PERIOD 4
    TEST.DETECTIONS_PER_IMAGE 10 TEST.AUG.ENABLED False INPUT.MIN_SIZE_TRAIN (64,72)
    INPUT.MAX_SIZE_TRAIN 96 INPUT.MIN_SIZE_TEST 64 INPUT.MAX_SIZE_TEST 96 INPUT.SQUARE_SIZE 0
    VIS_PERIOD 0
    MODEL.RESNETS.STEM_OUT_CHANNELS 16 MODEL.RESNETS.RES2_OUT_CHANNELS 16
    MODEL.FPN.OUT_CHANNELS 32 MODEL.ROI_BOX_HEAD.FC_DIM 32 MODEL.ROI_MASK_HEAD.CONV_DIM 32
    MODEL.ROI_MASKIOU_HEAD.CONV_DIM 8 MODEL.SEM_SEG_HEAD.CONVS_DIM 32 MODEL.FCIS.CONV_DIM 16
    MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 16 MODEL.RPN.POST_NMS_TOPK_TRAIN 50
    MODEL.RPN.POST_NMS_TOPK_TEST 20 MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0
"""
_FROM_RES3 = (
    "MODEL.RESNETS.OUT_FEATURES ['res3','res4','res5'] MODEL.FPN.IN_FEATURES ['res3','res4','res5']"
)
_FROM_RES2 = _FROM_RES3.replace("'res3'", "'res2','res3'")
_CASCADE = "MODEL.ROI_HEADS.NAME CascadeROIHeads MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True"
_PANOPTIC = """
    DATASETS.TRAIN ('demo_panoptic_train',) DATASETS.TEST ('demo_panoptic_val',)
    MODEL.SEM_SEG_HEAD.NUM_CLASSES 5 DATALOADER.FILTER_EMPTY_ANNOTATIONS False
"""
# name -> configs/demo/<file>.yaml, and what makes another system of it
SYSTEMS: dict[str, tuple[str, str]] = {
    "mask_rcnn": ("mask_rcnn", ""),
    "mask_rcnn_c4": (
        "mask_rcnn",
        """MODEL.BACKBONE.NAME build_resnet_backbone MODEL.RESNETS.OUT_FEATURES ['res4']
        MODEL.RESNETS.DEPTH 50 MODEL.RESNETS.WIDTH_PER_GROUP 8 MODEL.ROI_HEADS.NAME Res5ROIHeads
        MODEL.ROI_HEADS.IN_FEATURES ['res4'] MODEL.RPN.IN_FEATURES ['res4']
        MODEL.ANCHOR_GENERATOR.SIZES [[16,32,64]] MODEL.ROI_BOX_HEAD.NAME ''
        MODEL.ROI_MASK_HEAD.NUM_CONV 0""",
    ),
    "mask_rcnn_options": (
        "mask_rcnn",
        """SOLVER.AMP.ENABLED True SOLVER.ACCUMULATE 2 SOLVER.CHECKPOINTS_KEPT 1
        SOLVER.LR_SCHEDULER_NAME WarmupCosineLR TEST.BEST_METRIC bbox/AP
        TEST.PRECISE_BN.ENABLED True TEST.PRECISE_BN.NUM_ITER 2""",
    ),
    "mask_rcnn_ema": (
        "mask_rcnn",
        """MODEL_EMA.ENABLED True MODEL_EMA.DECAY 0.9
        MODEL.RESNETS.NORM BN MODEL.BACKBONE.FREEZE_AT 0
        TEST.PRECISE_BN.ENABLED True TEST.PRECISE_BN.NUM_ITER 2""",
    ),
    "mask_scoring_rcnn": ("mask_scoring_rcnn", ""),
    "cascade_mask_rcnn": ("mask_rcnn", _CASCADE),
    "pointrend": ("pointrend", ""),
    "implicit_pointrend": (
        "pointrend",
        """MODEL.ROI_MASK_HEAD.NAME ImplicitPointRendMaskHead MODEL.POINT_HEAD.SUBDIVISION_STEPS 2
        MODEL.ROI_MASK_HEAD.POINT_HEAD_ON False""",
    ),
    "fcis": ("fcis", ""),
    "centermask_lite": ("centermask_lite", ""),
    "blendmask": ("blendmask", ""),
    "yolact": ("yolact", "INPUT.SQUARE_SIZE 96"),
    "yolact_plus": ("yolact_plus", "INPUT.SQUARE_SIZE 96 MODEL.RESNETS.WIDTH_PER_GROUP 8"),
    "panoptic_fpn": ("panoptic_fpn", ""),
    "cascade_panoptic_fpn": ("panoptic_fpn", _CASCADE),
    "panoptic_centermask": (
        "centermask_lite",
        f"MODEL.META_ARCHITECTURE PanopticFPN {_FROM_RES2} {_PANOPTIC}",
    ),
    "panoptic_blendmask": (
        "blendmask",
        f"MODEL.PANOPTIC_FPN.COMBINE.ENABLED True {_FROM_RES2} {_PANOPTIC}",
    ),
    "semantic_fpn": ("semantic_fpn", ""),
    "pointrend_semantic": (
        "semantic_fpn",
        """MODEL.SEM_SEG_HEAD.NAME PointRendSemSegHead MODEL.POINT_HEAD.NUM_CLASSES 9
        MODEL.POINT_HEAD.IN_FEATURES ['p2'] MODEL.POINT_HEAD.FC_DIM 16
        MODEL.POINT_HEAD.SUBDIVISION_STEPS 2""",
    ),
    "fcos": ("fcos", ""),
    "retinanet": (
        "mask_rcnn",
        f"""MODEL.META_ARCHITECTURE RetinaNet MODEL.MASK_ON False MODEL.RETINANET.NUM_CLASSES 5
        MODEL.BACKBONE.NAME build_retinanet_resnet_fpn_backbone {_FROM_RES3}
        MODEL.RETINANET.NUM_CONVS 1""",
    ),
    "faster_rcnn": ("mask_rcnn", "MODEL.MASK_ON False"),
    "rpn": ("mask_rcnn", "MODEL.META_ARCHITECTURE ProposalNetwork MODEL.MASK_ON False"),
}
PLACES: tuple[str, ...] = ("step", "save", "evaluation", "between")
_FORK = multiprocessing.get_context("fork")
_LONGEST = 300.0  # seconds of a run


class Kill(NamedTuple):
    """When a process is killed: so long after it enters a place for the n-th time."""

    rank: int
    place: str
    entry: int
    seconds: float


@dataclass
class Row:
    """What one combination gave; `kills` were where `PLACES` says."""

    system: str
    processes: int = 1
    workers: int = 0
    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PLACES, 0))
    runs: int = 0  # that were compared
    differing_tensors: int = 0
    lost_checkpoints: int = 0
    seconds: float = 0.0


class Marks:
    """Says where a process is, measures how long it stays there, reports one entry.

    Args:
        here: one shared integer, the number of the place.
        awaited: the place and the number of the entry to it that is reported.
        report: where to.
    """

    def __init__(self, here: Any, awaited: tuple[str, int] | None, report: Any) -> None:
        self._here, self._awaited, self._report = here, awaited, report
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)

    @contextmanager
    def at(self, place: str) -> Iterator[None]:
        """Within is the place."""
        before, self._here.value = self._here.value, PLACES.index(place)
        if self._awaited == (place, len(self.seconds[place])):
            self._report.send(None)
        started = time.perf_counter()
        yield
        self.seconds[place].append(time.perf_counter() - started)
        self._here.value = before


def config_of(system: str, workers: int) -> CfgNode:
    """What all runs of a row have, whose folder is to come."""
    file, changes = SYSTEMS[system]
    cfg = get_cfg()
    cfg.merge_from_file(ROOT / f"configs/demo/{file}.yaml")
    cfg.merge_from_list([*SETTINGS.split(), *changes.split(), "DATALOADER.NUM_WORKERS", workers])
    return cfg


def train(cfg: CfgNode, marks: Marks, rank: int, processes: int, store: str) -> None:
    """One process of a run that is resumed where there is something to resume."""
    torch.set_num_threads(1)
    if processes > 1:
        url = f"file://{store}"
        dist.init_process_group("gloo", init_method=url, rank=rank, world_size=processes)
    default_setup(cfg, argparse.Namespace())

    class Marked(Trainer):
        def run_step(self) -> None:
            with marks.at("step"):
                super().run_step()

        @classmethod
        def test(cls, *args: Any, **options: Any) -> Any:
            with marks.at("evaluation"):
                return super().test(*args, **options)

        def build_writers(self) -> list[Any]:
            return []

        def save_pictures(self) -> None:
            """None: they are no part of what is compared."""

    trainer = Marked(cfg)
    save = trainer.checkpointer.save

    def marked_save(*args: Any, **options: Any) -> None:
        with marks.at("save"):
            save(*args, **options)

    trainer.checkpointer.save = marked_save
    trainer.resume_or_load(resume=True)
    trainer.train()


class Ended(NamedTuple):
    """How a run ended: the place where it was killed, or what each process took for each place."""

    killed_in: str | None
    seconds: dict[int, dict[str, list[float]]]


def run(cfg: CfgNode, folder: Path, processes: int = 1, kill: Kill | None = None) -> Ended:
    """A run up to its end or death."""
    cfg.OUTPUT_DIR = str(folder)
    store = tempfile.mktemp(dir=folder.parent)
    results = _FORK.SimpleQueue()
    entered, report = _FORK.Pipe(duplex=False)
    here = [_FORK.RawValue("i", PLACES.index("between")) for _ in range(processes)]

    def call(rank: int) -> None:
        log = os.open(folder.with_suffix(f".{rank}.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        awaited = kill[1:3] if kill is not None and kill.rank == rank else None
        marks = Marks(here[rank], awaited, report)
        train(cfg, marks, rank, processes, store)
        results.put((rank, dict(marks.seconds)))
        os._exit(0)

    children = [_FORK.Process(target=call, args=(rank,)) for rank in range(processes)]
    for child in children:
        child.start()
    try:
        _wait_for(children, kill, entered, folder)
    finally:
        for child in children:
            child.kill()
    codes = [child.exitcode for child in children]
    if kill is not None and codes[kill.rank] == -signal.SIGKILL:
        return Ended(PLACES[here[kill.rank].value], {})
    if any(codes):
        raise RuntimeError(f"{folder}: fails; see {folder.with_suffix('.0.log')}")
    return Ended(None, dict(results.get() for _ in children))


def _wait_for(children: list[Any], kill: Kill | None, entered: Any, folder: Path) -> None:
    """Up to the end of all; strikes when the awaited entry has been reported."""
    end, strike = time.monotonic() + _LONGEST, None
    # A process's sentinel stays open as long as its loader workers live, so no waiting on these.
    while any(child.exitcode is None for child in children):
        now = time.monotonic()
        if now > end:
            raise RuntimeError(f"{folder}: hangs; see {folder.with_suffix('.0.log')}")
        if kill is not None and strike is None and entered.poll(0.002):
            strike = now + kill.seconds
        elif kill is not None and strike is not None and now >= strike:
            children[kill.rank].kill()
            strike = end
        else:
            time.sleep(0.002)


def differing(a: Any, b: Any, at: str = "") -> list[str]:
    """Where two checkpoints differ, in any bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape
        return [] if same and torch.equal(a, b) else [at]
    if isinstance(a, dict) and isinstance(b, dict):
        return [x for key in {**a, **b} for x in differing(a.get(key), b.get(key), f"{at}/{key}")]
    return [] if a == b else [at]


def compared(file: Path) -> dict[str, Any]:
    """The checkpoint without what tells of times and folders."""
    content = read_checkpoint(file)
    content.pop("config")
    content["trainer"].pop("storage")
    return content


def last_of(folder: Path) -> str:
    """The name of the last checkpoint; "" where there is none."""
    tag = folder / "last_checkpoint"
    return tag.read_text() if tag.is_file() else ""


def is_lost(folder: Path, before: str) -> bool:
    """Whether the checkpoint that is the last one now is damaged, or older than that before."""
    now = last_of(folder)  # names sort by iteration, model_final behind all
    return now < before or bool(now and defect_of(folder / now))


def measure(row: Row, work: Path, points: int) -> Row:
    """Kill `points` times; what came of it."""
    cfg = config_of(row.system, row.workers)
    started = time.perf_counter()
    whole, folder = work / "whole", work / "killed"
    seconds = run(cfg, whole, row.processes).seconds
    expected = compared(whole / "model_final.pth")
    draw = random.Random(f"{row.system} {row.processes} {row.workers}")
    while sum(row.kills.values()) < points or folder.exists():
        rank = draw.randrange(row.processes)
        place = draw.choice(list(seconds[rank]))
        entry = draw.randrange(max(1, len(seconds[rank][place]) // 2))
        kill = Kill(rank, place, entry, draw.uniform(0.0, seconds[rank][place][entry]))
        before = last_of(folder)
        is_last = sum(row.kills.values()) >= points
        ended = run(cfg, folder, row.processes, None if is_last else kill)
        if ended.killed_in:
            row.kills[ended.killed_in] += 1
            row.lost_checkpoints += is_lost(folder, before)
        else:
            row.differing_tensors += len(differing(compared(folder / "model_final.pth"), expected))
            row.runs += 1
            shutil.rmtree(folder)
    row.seconds = time.perf_counter() - started
    shutil.rmtree(whole)
    return row


HEADING = (
    "system                procs workers   step  save  eval between   runs differing  lost  seconds"
)


def show(row: Row) -> str:
    kills = " ".join(f"{row.kills[place]:5}" for place in PLACES)
    return (
        f"{row.system:22} {row.processes:4} {row.workers:7}  {kills}  {row.runs:7} "
        f"{row.differing_tensors:9} {row.lost_checkpoints:5} {row.seconds:8.0f}"
    )


def merge(file: Path, rows: list[Row]) -> None:
    """Put the rows into the file, over those of the same combinations."""
    found = {(r.system, r.processes, r.workers): r for r in [*read(file), *rows]}
    file.write_text(json.dumps([asdict(row) for row in found.values()], indent=1) + "\n")


def read(file: Path) -> list[Row]:
    return [Row(**one) for one in json.loads(file.read_text())] if file.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("systems", nargs="*", metavar="SYSTEM", help=", ".join(SYSTEMS))
    parser.add_argument("--points", type=int, default=50, help="kills of each combination")
    parser.add_argument("--workers", type=int, nargs="+", default=[0], help="of the loader")
    parser.add_argument("--processes", type=int, nargs="+", default=[1])
    parser.add_argument("--work", type=Path, help="folder to work in; a temporary one")
    parser.add_argument("--json", metavar="FILE", type=Path, help="keep the rows there, too")
    parser.add_argument("--show", metavar="FILE", type=Path, help="only print what is there")
    args = parser.parse_args()
    if unknown := set(args.systems) - set(SYSTEMS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(SYSTEMS)}")
    print(HEADING)
    if args.show:
        print("\n".join(show(row) for row in read(args.show)))
        return
    rows = []
    with tempfile.TemporaryDirectory(dir=args.work) as name:
        work = Path(name)
        make_demo_dataset(work / "data" / "demo", num_train=6, num_val=3)
        os.environ["SEGDET_DATASETS"] = str(work / "data")
        for system in args.systems or SYSTEMS:
            for processes in args.processes:
                for workers in args.workers:
                    rows.append(measure(Row(system, processes, workers), work, args.points))
                    print(show(rows[-1]), flush=True)
                    if args.json:
                        merge(args.json, rows)
    bad = sum(row.differing_tensors + row.lost_checkpoints for row in rows)
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
