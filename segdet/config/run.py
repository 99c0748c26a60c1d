"""The keys of a run that no part owns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from segdet.config.compat import VERSION


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Keys at the top of the tree; defaults are detectron2's."""

    version: int = VERSION
    output_dir: str = "./output"
    seed: int = -1  # negative: drawn anew for each run
    cudnn_benchmark: bool = False
    float32_precision: Annotated[str, ("", "highest", "high", "medium")] = ""  # "": torch's own
    vis_period: int = 0  # iterations between pictures of training images; 0: none
    device: str = field(default="cuda", metadata={"key": "MODEL.DEVICE"})
    weights: str = field(default="", metadata={"key": "MODEL.WEIGHTS"})
