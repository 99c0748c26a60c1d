"""How far it is from the command to a head, and to a loss.

    python -m benchmarks.call_path

Prints our own stack frames from `build_model` to the mask head's constructor (at most four), and
how many of our functions, in how many files, run from `DefaultTrainer(cfg)` to the first mask
loss. For detectron2 the counts are 12 frames from the command line to a head, and 378 functions
in 67 files before the first mask loss.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from types import CodeType, FrameType

from torch import nn

import segdet
from segdet.config import get_cfg
from segdet.data.demo import make_demo_dataset
from segdet.engine import DefaultTrainer
from segdet.modeling import build_model
from segdet.modeling.mask_head import MaskRCNNConvUpsampleHead, mask_loss

PACKAGE = str(Path(segdet.__file__).parent)
CONFIG = Path(__file__).resolve().parents[1] / "configs" / "demo" / "mask_rcnn.yaml"


class FirstMaskLoss(Exception):
    """Raised to end the run where the count ends."""


def is_ours(code: CodeType) -> bool:
    """Whether a function is written in the package (comprehensions and lambdas are not counted)."""
    return code.co_filename.startswith(PACKAGE) and not code.co_name.startswith("<")


def frames_to_head(cfg, head: type[nn.Module]) -> list[str]:
    """Our stack frames, outermost first, when the head's constructor runs."""
    found: list[str] = []

    def profile(frame: FrameType, event: str, _arg: object) -> None:
        if event == "call" and frame.f_code is head.__init__.__code__:
            caller: FrameType | None = frame
            while caller is not None:
                if is_ours(caller.f_code):
                    found.insert(0, caller.f_code.co_qualname)
                caller = caller.f_back

    sys.setprofile(profile)
    try:
        build_model(cfg)
    finally:
        sys.setprofile(None)
    return found


def functions_before_mask_loss(cfg) -> set[CodeType]:
    """Our functions that a training run enters before its first mask loss."""
    seen: set[CodeType] = set()

    def profile(frame: FrameType, event: str, _arg: object) -> None:
        if event != "call" or not is_ours(frame.f_code):
            return
        if frame.f_code is mask_loss.__code__:
            sys.setprofile(None)
            raise FirstMaskLoss
        seen.add(frame.f_code)

    sys.setprofile(profile)
    try:
        trainer = DefaultTrainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.train()
    except FirstMaskLoss:
        return seen
    finally:
        sys.setprofile(None)
    raise RuntimeError("the run ended without a mask loss")


def main() -> None:
    """Counts on the demo config and a handful of demo images."""
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIG))
    frames = frames_to_head(cfg, MaskRCNNConvUpsampleHead)
    print(f"build_model to the mask head: {len(frames)} frames of ours: {' -> '.join(frames)}")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "demo"
        make_demo_dataset(data, num_train=8, num_val=2)
        cfg.merge_from_list(
            [
                *("DATASETS.TRAIN", [f"{data}/annotations/instances_train.json:{data}/train"]),
                *("DATASETS.TEST", [], "OUTPUT_DIR", f"{folder}/output"),
                *("DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 2),
            ]
        )
        seen = functions_before_mask_loss(cfg)
    files = {code.co_filename for code in seen}
    print(
        f"DefaultTrainer to the first mask loss: {len(seen)} functions of ours, {len(files)} files"
    )


if __name__ == "__main__":
    main()
