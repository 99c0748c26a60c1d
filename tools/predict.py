#!/usr/bin/env python
"""Draws what a trained model finds in pictures or a video, and writes it as COCO results json.

tools/predict.py --config-file FILE --input IMAGE|FOLDER|GLOB ... --output DIR \
    --opts MODEL.WEIGHTS output/model_final.pth
"""

from segdet.cli import run_command
from segdet.engine.predict import main

if __name__ == "__main__":
    run_command(main)
