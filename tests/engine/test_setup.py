import argparse
import os
import random

import numpy as np
import pytest
import torch
from torch import nn

from segdet.config import get_cfg
from segdet.engine import (
    DefaultTrainer,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    default_writers,
)
from segdet.errors import ConfigError


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path / "out" / "run")
    return cfg


@pytest.fixture(autouse=True)
def _backends_as_before():
    precision = torch.get_float32_matmul_precision()
    flags = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = flags


ARGS = argparse.Namespace(config_file="", eval_only=False)


def test_leaves_the_config_and_a_log(cfg, tmp_path):
    cfg.SOLVER.BASE_LR = 0.125
    cfg.freeze()
    default_setup(cfg, ARGS)
    folder = tmp_path / "out" / "run"
    again = get_cfg()
    again.merge_from_file(str(folder / "config.yaml"))
    assert again.dump() == cfg.dump()  # YAML turns inner tuples into lists
    log = (folder / "log.txt").read_text()
    assert "Process 0 of 1" in log
    assert torch.__version__ in log


def test_an_output_dir_that_cannot_be_used_is_named(cfg, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    for folder, reason in [(file, "it is a file"), (file / "run", "Not a directory")]:
        cfg.OUTPUT_DIR = str(folder)
        with pytest.raises(ConfigError, match=rf"OUTPUT_DIR {folder} cannot be used: {reason}"):
            default_setup(cfg, ARGS)
    monkeypatch.setattr(os, "access", lambda *_: False)  # permissions do not bind root
    with pytest.raises(ConfigError, match=r"OUTPUT_DIR .* it is not writable"):
        default_writers(str(tmp_path / "read_only"))


def test_seeds_every_generator(cfg):
    def draws() -> tuple:
        default_setup(cfg, ARGS)
        return random.random(), np.random.rand(), torch.rand(()).item()

    cfg.SEED = 7
    assert draws() == draws()
    cfg.SEED = -1
    assert draws() != draws()


def test_precision_and_cudnn(cfg):
    cfg.FLOAT32_PRECISION = "high"
    cfg.CUDNN_BENCHMARK = True
    default_setup(cfg, argparse.Namespace(eval_only=True))
    assert torch.get_float32_matmul_precision() == "high"
    assert torch.backends.cudnn.allow_tf32
    assert not torch.backends.cudnn.benchmark
    cfg.FLOAT32_PRECISION = "highest"
    default_setup(cfg, ARGS)
    assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.benchmark


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("OUTPUT_DIR", None, "OUTPUT_DIR must be str, is None"),
        ("SEED", None, "SEED must be int, is None"),
        ("FLOAT32_PRECISION", "low", "FLOAT32_PRECISION must be one of '', highest, .*, is 'low'"),
        ("TEST.DETECTIONS_PER_IMAGE", 0, r"TEST\.DETECTIONS_PER_IMAGE must be int >= 1, is 0"),
    ],
)
def test_bad_values_are_refused_before_anything_is_written(cfg, tmp_path, key, value, message):
    cfg.merge_from_list([key, value])
    before = list(tmp_path.iterdir())
    for begin in (lambda: default_setup(cfg, ARGS), lambda: DefaultTrainer(cfg)):
        with pytest.raises(ConfigError, match=message):
            begin()
    assert list(tmp_path.iterdir()) == before


def test_command_line_of_detectron2():
    line = (
        "--config-file a.yaml --resume --eval-only --num-gpus 2 --num-machines 3 "
        "--machine-rank 1 --dist-url tcp://h:1 MODEL.DEVICE cpu SOLVER.BASE_LR 0.1"
    )
    args = default_argument_parser().parse_args(line.split())
    assert vars(args) == {
        "config_file": "a.yaml",
        "resume": True,
        "eval_only": True,
        "num_gpus": 2,
        "num_machines": 3,
        "machine_rank": 1,
        "dist_url": "tcp://h:1",
        "opts": ["MODEL.DEVICE", "cpu", "SOLVER.BASE_LR", "0.1"],
    }
    args = default_argument_parser().parse_args([])
    assert (args.num_gpus, args.dist_url, args.opts) == (1, "auto", [])


def test_writers_make_their_folder(tmp_path):
    folder = tmp_path / "a" / "b"
    for writer in default_writers(str(folder), 10):
        writer.close()
    assert (folder / "metrics.json").read_text() == ""


def test_one_process_needs_no_ddp():
    model = nn.Linear(1, 1)
    assert create_ddp_model(model) is model
