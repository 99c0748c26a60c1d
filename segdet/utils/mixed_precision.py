"""Mixed precision: which operations have half the digits, and when."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any

import torch


@dataclass(frozen=True, kw_only=True)
class AMPConfig:
    """SOLVER.AMP of training, TEST.AMP of prediction; PRECISION is D2Go's name."""

    enabled: bool = False
    # "": float16 on GPUs, bfloat16 on CPUs.
    precision: Annotated[str, ("", "float16", "bfloat16")] = ""

    def dtype(self, device_type: str) -> torch.dtype:
        """The type with half the digits on such a device."""
        default = "float16" if device_type == "cuda" else "bfloat16"
        return getattr(torch, self.precision or default)

    def autocast(self, device_type: str) -> AbstractContextManager[Any]:
        """A context with mixed precision, if it is enabled; else one that changes nothing."""
        if not self.enabled:
            return nullcontext()
        return torch.autocast(device_type, self.dtype(device_type))
