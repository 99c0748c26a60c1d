"""Weight files: saving, loading and the names of other programs' files."""

from segdet.checkpoint.checkpointer import AVERAGE, DetectionCheckpointer, PeriodicCheckpointer
from segdet.checkpoint.loading import LoadReport

__all__ = ["AVERAGE", "DetectionCheckpointer", "LoadReport", "PeriodicCheckpointer"]
