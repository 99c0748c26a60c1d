"""The files in configs/ have exactly the values that the originals' files of these names have."""

import gzip
import itertools
import json
from pathlib import Path

import pytest

from segdet.config import CfgNode, get_cfg
from segdet.config.arithmetic import evaluate

CONFIGS = Path(__file__).parents[2] / "configs"
FOLDERS = [
    "COCO-Detection",
    "COCO-InstanceSegmentation",
    "COCO-Keypoints",
    "COCO-PanopticSegmentation",
    "Cityscapes",
    "Detectron1-Comparisons",
    "LVISv0.5-InstanceSegmentation",
    "LVISv1-InstanceSegmentation",
    "Misc",
    "PascalVOC-Detection",
    "PointRend/InstanceSegmentation",
    "PointRend/SemanticSegmentation",
    "centermask",
    "BlendMask",
    "FCOS-Detection",
    "RCNN",
    "quick_schedules",
]
OURS = sorted(
    str(file.relative_to(CONFIGS))
    for folder in FOLDERS
    for file in (CONFIGS / folder).glob("*.yaml")
    if not file.name.startswith("Base-")
)
# The originals' tables, and the folder that holds their configs.
FAMILIES = {
    "detectron2.json.gz": "",
    "pointrend.json.gz": "PointRend/",
    "centermask2.json.gz": "",
    "adelaidet.json.gz": "",
}


@pytest.fixture(scope="module")
def originals(shared_configs: Path) -> dict[str, dict]:
    return {
        folder + name: entry
        for file, folder in FAMILIES.items()
        for name, entry in json.loads(gzip.decompress((shared_configs / file).read_bytes())).items()
    }


def changes(cfg: CfgNode) -> dict[str, object]:
    before = {path: value for path, value, _ in get_cfg().leaves()}
    changed = {path: value for path, value, _ in cfg.leaves() if value != before[path]}
    return json.loads(json.dumps(changed))  # tuples as lists


@pytest.mark.parametrize("name", OURS)
def test_values_are_the_originals(originals, name):
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS / name))
    assert changes(cfg) == originals[name]["overrides"]


def test_the_originals_anchor_arithmetic_gives_these_values(originals):
    text = "[[x, x * 2**(1.0/3), x * 2**(2.0/3) ] for x in [32, 64, 128, 256, 512 ]]"
    overrides = originals["COCO-Detection/retinanet_R_50_FPN_1x.yaml"]["overrides"]
    assert evaluate(text) == overrides["MODEL.ANCHOR_GENERATOR.SIZES"]


def opening_comment(file: Path) -> str:
    lines = file.read_text().splitlines()
    return "\n".join(itertools.takewhile(lambda line: line.startswith("#"), lines))


@pytest.mark.parametrize("file", sorted(CONFIGS.rglob("*.yaml")), ids=lambda file: file.name)
def test_a_file_opens_with_its_source_and_can_be_merged(file):
    assert "Source:" in opening_comment(file)
    get_cfg().merge_from_file(file)


@pytest.mark.parametrize("name", OURS)
def test_an_official_file_opens_with_what_one_needs_to_know(name):
    comment = opening_comment(CONFIGS / name)
    assert f"--config-file configs/{name}" in comment
    assert "# Hardware and time: " in comment and "# Reaches: " in comment
