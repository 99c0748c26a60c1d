import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from segdet.cli import main
from segdet.config import CfgNode, get_cfg
from segdet.errors import ConfigError
from segdet.modeling import build_model
from segdet.modeling.meta_arch import OFFICIAL_NAMES, SYSTEMS, system_name
from segdet.projects import (
    TABLES,
    add_project,
    load_installed_projects,
    load_project,
    unload_project,
)
from segdet.solver import build_lr_scheduler

# One of everything that a project may hand in, over two files.
INIT = """
from toy_project.parts import ConstantConfig, ToyConfig, constant, toy_backbone, toy_mask_head

SYSTEMS = {"Toy": ToyConfig}
META, HEADS = "MODEL.META_ARCHITECTURE", "MODEL.ROI_HEADS.NAME"
OFFICIAL_NAMES = [({META: "GeneralizedRCNN", HEADS: "T"}, "Toy")]
BACKBONES = {"toy_backbone": toy_backbone}
MASK_HEADS = {"ToyMaskHead": toy_mask_head}
LR_SCHEDULES = {"ConstantLR": constant}
SECTIONS = {"SOLVER": ConstantConfig}
"""
PARTS = """
from dataclasses import dataclass, field
from functools import partial

from segdet.config.reader import read_section, tree_of
from segdet.modeling.backbones import ResNetConfig
from segdet.modeling.mask_head import MaskRCNNConvUpsampleHead
from segdet.modeling.meta_arch import ProposalNetworkConfig


@dataclass(frozen=True, kw_only=True)
class ToyResNetConfig(ResNetConfig):
    toy_width: int = 4


@dataclass(frozen=True, kw_only=True)
class ToyConfig(ProposalNetworkConfig):
    resnets: ToyResNetConfig = field(default_factory=ToyResNetConfig)


def toy_backbone(sections, input_channels):
    width = sections.resnets.toy_width
    resnets = ResNetConfig(depth=18, res2_out_channels=width, stem_out_channels=width, norm="")
    return resnets.build(freeze_at=0, input_channels=input_channels)


class ToyMaskHead(MaskRCNNConvUpsampleHead):
    pass


def toy_mask_head(section):
    return partial(ToyMaskHead, conv_dim=section.conv_dim, num_conv=0)


@dataclass(frozen=True, kw_only=True)
class ConstantConfig:
    constant_factor: float = 0.5


def constant(solver):
    factor = read_section(ConstantConfig, tree_of(solver), at="SOLVER").constant_factor
    return lambda where: factor
"""
SETTINGS = ["MODEL.META_ARCHITECTURE", "Toy", "MODEL.BACKBONE.NAME", "toy_backbone"]


def write_project(parent: Path, name: str, init: str) -> Path:
    folder = parent / name
    folder.mkdir()
    (folder / "__init__.py").write_text(init)
    return folder


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Path]:
    """A project's folder; what was loaded of it is taken back."""
    folder = write_project(tmp_path, "toy_project", INIT)
    (folder / "parts.py").write_text(PARTS)
    yield folder
    if "Toy" in SYSTEMS:
        unload_project(folder)
    sys.modules.pop("toy_project", None)


def tables() -> list:
    """Everything that loading changes."""
    return [*(dict(table) for table in TABLES.values()), list(OFFICIAL_NAMES), get_cfg()]


def test_a_project_brings_names_and_keys(toy):
    load_project(toy)
    cfg = get_cfg()
    assert (cfg.MODEL.RESNETS.TOY_WIDTH, cfg.SOLVER.CONSTANT_FACTOR) == (4, 0.5)
    cfg.merge_from_list([*SETTINGS, "MODEL.DEVICE", "cpu", "MODEL.RESNETS.TOY_WIDTH", "8"])
    model = build_model(cfg)
    assert model.backbone.output_shape()["res4"].channels == 32
    named = {"MODEL.META_ARCHITECTURE": "GeneralizedRCNN", "MODEL.ROI_HEADS.NAME": "T"}
    assert system_name(named) == "Toy"
    cfg.merge_from_list(["SOLVER.LR_SCHEDULER_NAME", "ConstantLR", "SOLVER.BASE_LR", "0.1"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert build_lr_scheduler(cfg, optimizer).get_last_lr() == [0.05]


def test_a_mask_head_of_a_project_stands_in_our_systems(toy):
    project = load_project(toy)
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "MaskRCNNC4", "MODEL.DEVICE", "cpu"])
    cfg.merge_from_list(["MODEL.RESNETS.WIDTH_PER_GROUP", 2, "MODEL.RESNETS.RES2_OUT_CHANNELS", 8])
    cfg.merge_from_list(["MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.NAME", "ToyMaskHead"])
    head = build_model(cfg).roi_heads.mask_head
    assert type(head) is project.parts.ToyMaskHead
    assert head.deconv.in_channels == 64 and head.predictor.out_channels == 80


def test_loading_twice_adds_once_and_unloading_takes_back(toy, monkeypatch):
    before = tables()
    project = load_project(toy)
    after = tables()
    monkeypatch.chdir(toy.parent)
    assert load_project("toy_project") is project
    add_project(project)
    assert tables() == after != before
    unload_project(toy)
    assert tables() == before
    assert "toy_project.parts" not in sys.modules
    assert load_project(toy) is not project
    assert tables()[-1] == after[-1]


@pytest.mark.parametrize("table", TABLES)
def test_a_name_that_is_taken_is_refused_and_nothing_is_added(tmp_path, table):
    taken = next(iter(TABLES[table]))
    init = f"OFFICIAL_NAMES = [({{}}, 'MaskRCNN')]\n{table} = {{'own': object, {taken!r}: object}}"
    before = tables()
    with pytest.raises(ConfigError, match=f"project .*mine: {table} has '{taken}' already; give"):
        load_project(write_project(tmp_path, "mine", init))
    assert tables() == before and "mine" not in sys.modules


@pytest.mark.parametrize(
    "init, said",
    [
        ("", "hands in nothing; it may have SYSTEMS, "),
        ("OFFICIAL_NAMES = [({'MODEL.A': 'b'}, 'Nowhere')]", "leads to 'Nowhere', which is not in"),
        (
            "from segdet.modeling.meta_arch import OFFICIAL_NAMES as ours\n"
            "OFFICIAL_NAMES = [(ours[0][0], 'RetinaNet')]",
            "OFFICIAL_NAMES has .* already",
        ),
        (
            "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Other:\n"
            "    max_iter: int = 7\nSECTIONS = {'SOLVER': Other}",
            "SOLVER.MAX_ITER has two defaults: 40000 and 7",
        ),
    ],
)
def test_a_project_that_cannot_be_added_is_refused(tmp_path, init, said):
    with pytest.raises(ConfigError, match=said):
        load_project(write_project(tmp_path, "mine", init))
    assert "mine" not in sys.modules


def test_a_folder_must_be_a_package_with_a_name_of_its_own(tmp_path, toy):
    with pytest.raises(ConfigError, match=r"absent: must be the folder of a package, has no __i"):
        load_project(tmp_path / "absent")
    load_project(toy)
    (tmp_path / "elsewhere").mkdir()
    twin = write_project(tmp_path / "elsewhere", "toy_project", INIT)
    with pytest.raises(ConfigError, match="has a module toy_project already; rename the folder"):
        load_project(twin)
    with pytest.raises(ConfigError, match="elsewhere/toy_project: is not loaded"):
        unload_project(twin)


def test_a_project_that_is_imported_already_is_the_one_that_is_added(toy, monkeypatch):
    monkeypatch.syspath_prepend(toy.parent)
    imported = importlib.import_module("toy_project")
    assert "Toy" not in SYSTEMS
    assert load_project(toy) is imported
    assert SYSTEMS["Toy"] is imported.ToyConfig


def test_a_fault_in_a_project_keeps_its_traceback(tmp_path):
    folder = write_project(tmp_path, "broken", "import no_such_module_anywhere")
    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        load_project(folder)
    assert "broken" not in sys.modules


def test_installed_projects_are_found_by_their_entry_points(toy, monkeypatch):
    distribution = toy.parent / "toy-1.0.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (distribution / "entry_points.txt").write_text("[segdet.projects]\ntoy = toy_project\n")
    monkeypatch.syspath_prepend(toy.parent)
    load_installed_projects()
    assert "Toy" in SYSTEMS
    load_installed_projects()
    assert load_project(toy) is sys.modules["toy_project"]

    (distribution / "entry_points.txt").write_text("[segdet.projects]\ntoy = toy_project:SYSTEMS\n")
    with pytest.raises(ConfigError, match=r"entry point toy of .* must name a package"):
        load_installed_projects()


@pytest.mark.parametrize("command", [["info"], ["train", "--print-config"]])
def test_commands_take_projects(toy, monkeypatch, capsys, command):
    monkeypatch.setattr(sys, "argv", ["segdet", *command, "--project", str(toy), *SETTINGS])
    main()
    out = capsys.readouterr().out
    assert "META_ARCHITECTURE: Toy  # command line" in out
    assert "CONSTANT_FACTOR: 0.5" in out


def test_a_config_file_imports_nothing(toy, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(toy.parent)
    file = tmp_path / "a.yaml"
    file.write_text("MODEL: {META_ARCHITECTURE: toy_project.ToyConfig, DEVICE: cpu}")
    cfg: CfgNode = get_cfg()
    cfg.merge_from_file(file)
    with pytest.raises(ConfigError, match=r"'toy_project.ToyConfig' is unknown"):
        build_model(cfg)
    assert "toy_project" not in sys.modules
