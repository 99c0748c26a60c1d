#!/usr/bin/env python
"""Writes weights of detectron2, Caffe2, torchvision, timm or maskrcnn-benchmark as safetensors.

tools/convert_weights.py model_final.pkl model.safetensors --config-file FILE
"""

from segdet.cli import run_command
from segdet.engine.convert import main

if __name__ == "__main__":
    run_command(main)
