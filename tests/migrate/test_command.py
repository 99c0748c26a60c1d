import os
import shutil
from pathlib import Path

import pytest
import torch

from segdet.config import get_cfg
from segdet.errors import ConfigError
from segdet.migrate import main
from segdet.migrate.configs import config_problems
from segdet.modeling import build_model
from tests.test_getting_started import run_tour

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "#!/usr/bin/env python\r\nfrom detectron2.config import get_cfg  # the tree\r\n"


def names(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def project(tmp_path) -> Path:
    (tmp_path / "sub").mkdir()
    script = tmp_path / "sub" / "train.py"
    script.write_bytes(SCRIPT.encode())
    script.chmod(0o755)
    (tmp_path / "other.py").write_text("import os\n")
    (tmp_path / "broken.py").write_text("from detectron2 import (\n")
    (tmp_path / "a.yaml").write_text("MODEL: {MASK_ONN: true, WEIGHTS: detectron2://a.pkl}\n")
    (tmp_path / "compose.yaml").write_text("services: {}\n")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "hook.py").write_text("import detectron2\n")
    return tmp_path


def test_a_report_changes_nothing(project, capsys):
    before = {name: (project / name).read_bytes() for name in names(project)}
    main([str(project)])
    assert {name: (project / name).read_bytes() for name in names(project)} == before
    out = capsys.readouterr().out
    assert f"{project}/sub/train.py: 1 to rename\n" in out
    assert (
        f"{project}/a.yaml: no config key MODEL.MASK_ONN here; did you mean MODEL.MASK_ON?" in out
    )
    assert f"{project}/broken.py: cannot be read, left as it is" in out
    assert "compose" not in out and "hook" not in out
    assert out.endswith("4 files: 1 to rename (--write does it), 2 to look at\n")


def test_writing_keeps_the_old_file_and_its_rights(project, capsys):
    before = names(project)
    main([str(project), "--write"])
    script = project / "sub" / "train.py"
    assert script.read_bytes() == SCRIPT.replace("detectron2", "segdet").encode()
    assert os.access(script, os.X_OK)
    assert (project / "sub" / "train.py.orig").read_bytes() == SCRIPT.encode()
    assert names(project) - before == {"sub/train.py.orig"}
    main([str(project / "a.yaml"), str(project / "other.py"), "--write"])
    with pytest.raises(ConfigError, match=r"train\.py\.orig is there from an earlier time"):
        main([str(project), "--write"])


def test_an_absent_path_is_named(tmp_path):
    with pytest.raises(ConfigError, match="gone: no such file or folder"):
        main([str(tmp_path / "gone")])


def test_official_configs_need_nothing(tmp_path, capsys):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    main([str(tmp_path / "configs"), "--write"])
    assert capsys.readouterr().out.endswith("0 renamed, 0 to look at\n")
    assert names(tmp_path / "configs") == names(ROOT / "configs")
    for file in (tmp_path / "configs").rglob("*.yaml"):
        get_cfg().merge_from_file(file)


@pytest.mark.slow
def test_every_official_config_builds_afterwards(tmp_path):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    main([str(tmp_path / "configs"), "--write"])
    files = [file for file in (tmp_path / "configs").rglob("*.yaml") if "Base-" not in file.name]
    assert len(files) > 60
    for file in files:
        cfg = get_cfg()
        cfg.merge_from_file(file)
        cfg.MODEL.DEVICE = "meta"
        with torch.device("meta"):
            assert len(build_model(cfg).state_dict()) > 50, file


@pytest.mark.parametrize(
    "text, problem",
    [
        ("MODEL: {META_ARCHITECTURE: Teapot}", "MODEL.META_ARCHITECTURE 'Teapot' is unknown"),
        ("MODEL: {BACKBONE: {NAME: build_teapot}}", "unknown MODEL.BACKBONE.NAME build_teapot"),
        ("MODEL: {ROI_HEADS: {NAME: Teapot}}", "MODEL.ROI_HEADS.NAME 'Teapot' is unknown"),
        ("SEED: !!python/object/apply:os.system [ls]", "python/object/apply:os.system"),
        ("SOLVER: {MAX_ITER: many}", "SOLVER.MAX_ITER must be int"),
        ("MODEL: {WEIGHT: a.pkl}", None),  # of version 1
    ],
)
def test_configs(tmp_path, text, problem):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    found = config_problems(file)
    assert (found == []) if problem is None else (len(found) == 1 and problem in found[0])


def migrated_tour(folder: Path) -> Path:
    tour = (ROOT / "docs" / "getting_started.py").read_text()
    script = folder / "tour.py"
    script.write_text(tour.replace("segdet", "detectron2"))
    main([str(script), "--write"])
    return script


def test_the_tour_in_detectron2s_spelling_becomes_ours(tmp_path, capsys):
    text = migrated_tour(tmp_path).read_text()
    assert capsys.readouterr().out.endswith("1 files: 8 renamed, 0 to look at\n")
    tour = (ROOT / "docs" / "getting_started.py").read_text()
    assert text.replace("is to detectron2 is", "is to segdet is") == tour


@pytest.mark.slow
def test_the_tour_in_detectron2s_spelling_runs_afterwards(tmp_path):
    run_tour(migrated_tour(tmp_path), tmp_path)
