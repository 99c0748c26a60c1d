"""`segdet replay` on a dump of a real run of Mask R-CNN that diverges."""

import math
from pathlib import Path

import pytest
import torch

from segdet.cli import run_command
from segdet.config import get_cfg
from segdet.engine import replay, train
from segdet.modeling import build_model
from tests.engine.test_train_net import ROOT, SETTINGS, arguments, data  # noqa: F401  a fixture


def dump_of(data: str, folder: Path, *settings: object) -> Path:  # noqa: F811
    """What a run that ends at a bad step leaves."""
    argv = [*arguments(data, folder), "DATALOADER.NUM_WORKERS", 0, *settings]
    with pytest.raises(FloatingPointError, match="segdet replay"):
        train.main(list(map(str, argv)))
    (found,) = folder.glob("nonfinite_*.pth")
    return found


def test_the_step_is_computed_again(data, tmp_path, capsys):  # noqa: F811
    cfg = get_cfg()
    cfg.merge_from_file(str(ROOT / "configs/Base-RCNN-FPN.yaml"))
    cfg.merge_from_list([part for pair in SETTINGS.items() for part in pair])
    weights = build_model(cfg).state_dict()
    weights["roi_heads.mask_head.predictor.bias"][1] = math.nan
    torch.save({"model": weights}, tmp_path / "weights.pth")
    # In two parts, and in mixed precision on a device that may not be there.
    settings = ["SOLVER.ACCUMULATE", 2, "SOLVER.AMP.ENABLED", True, "MODEL.DEVICE", "cuda"]
    file = dump_of(data, tmp_path, "MODEL.WEIGHTS", tmp_path / "weights.pth", *settings)
    content = replay.read_dump(file)
    found = replay.replay(content, replay.config_of(content, file), file)
    assert found.images == content["images"] and len(found.images) == 2
    then = [content["losses"][name] for name in found.losses]
    for a, b in zip(then, found.losses.values(), strict=True):
        assert a == b or (math.isnan(a) and math.isnan(b))
    assert found.gradients and not math.isfinite(sum(then))
    assert found.layers[0] == "roi_heads.mask_head (MaskRCNNConvUpsampleHead)"
    run_command(replay.main, [str(file)])
    out = capsys.readouterr().out
    assert "loss_rpn_cls" in out and "value that is not finite: roi_heads.mask_head (" in out


def test_a_model_that_refuses_is_asked_which_layer_began(data, tmp_path, capsys):  # noqa: F811
    settings = {"SOLVER.BASE_LR": 1e25, "SOLVER.WARMUP_ITERS": 0, "SOLVER.MAX_ITER": 9}
    file = dump_of(data, tmp_path, *(part for pair in settings.items() for part in pair))
    run_command(replay.main, [str(file)])
    out = capsys.readouterr().out
    assert "the model refuses: the RPN predicts NaN" in out
    assert "first layer with a value that is not finite: backbone." in out

    content = replay.read_dump(file)
    content["images"][0] = "gone.png"
    torch.save(content, tmp_path / "moved.pth")
    torch.save({"model": {}}, tmp_path / "weights.pth")
    torch.save({**content, "config": "MODEL: {NO_SUCH_KEY: 1}"}, tmp_path / "key.pth")
    torch.save({**content, "config": 5}, tmp_path / "number.pth")
    weights = content["model"]
    torch.save({**content, "model": {**weights, "x.y": torch.ones(1)}}, tmp_path / "more.pth")
    last = next(name for name in weights if name.endswith("mask_head.predictor.bias"))
    torch.save({**content, "model": {**weights, last: torch.ones(99)}}, tmp_path / "shape.pth")
    for name, said in (
        ("moved", "the batch was gone.png"),
        ("weights", "is no dump of a step"),
        ("key", "key.pth: unknown key MODEL.NO_SUCH_KEY"),
        ("number", "number.pth: config must be a str, is a int"),
        ("more", "more.pth: the model of its config has no 'x.y'"),
        ("shape", f"shape.pth: {last} has the shape (99,), the model's is"),
    ):
        with pytest.raises(SystemExit) as exit_:
            run_command(replay.main, [str(tmp_path / f"{name}.pth")])
        assert exit_.value.code == 2
        assert said in capsys.readouterr().err
