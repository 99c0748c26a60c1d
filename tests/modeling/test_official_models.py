"""Every official config builds a model with the original's parameters, in name, shape and order."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from segdet.config import get_cfg
from segdet.modeling import build_model
from segdet.modeling.system import System

CONFIGS = Path(__file__).parents[2] / "configs"
# The originals' tables, and the folder that holds their configs.
FAMILIES = {
    "detectron2.json.gz": "",
    "pointrend.json.gz": "PointRend/",
    "centermask2.json.gz": "",
    "adelaidet.json.gz": "",
}
# Originals that have no file here, and why; there may be at most five.
MISSING: dict[str, str] = {}


@pytest.fixture(scope="module")
def originals(shared_configs: Path) -> dict[str, dict]:
    return {
        folder + name: entry
        for file, folder in FAMILIES.items()
        for name, entry in json.loads(gzip.decompress((shared_configs / file).read_bytes())).items()
    }


OURS = sorted(
    str(file.relative_to(CONFIGS))
    for file in CONFIGS.rglob("*.yaml")
    if not file.name.startswith("Base-")
)


def build_without_weights(config: str) -> System:
    cfg = get_cfg()
    cfg.merge_from_file(CONFIGS / config)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg)


@pytest.mark.parametrize("name", OURS)
def test_parameters_are_the_originals(originals, name):
    if name not in originals:
        pytest.skip("a config of our own")
    model, original = build_without_weights(name), originals[name]
    ours = [[name, list(tensor.shape)] for name, tensor in model.state_dict().items()]
    assert ours == original["state_dict"]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == original["num_trainable"]


def test_every_original_is_here(originals):
    assert set(originals) - set(OURS) == set(MISSING)
    assert len(MISSING) <= 5 and all(MISSING.values())
