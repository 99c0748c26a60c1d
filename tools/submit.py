#!/usr/bin/env python
"""Queues a training on a SLURM cluster, by submitit.

tools/submit.py --partition gpu --num-machines 2 --num-gpus 8 --config-file FILE [KEY VALUE ...]
"""

from segdet.cli import run_command
from segdet.engine.submit import main

if __name__ == "__main__":
    run_command(main)
