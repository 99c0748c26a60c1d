#!/usr/bin/env python
"""Trains what a config describes and evaluates it, or only evaluates it (--eval-only).

The command line is detectron2's. OUTPUT_DIR of the config gets the log, metrics.json, checkpoints,
results and pictures.
"""

from segdet.cli import run_command
from segdet.engine.train import main

if __name__ == "__main__":
    run_command(main)
