"""Collects golden cases: `SEGDET_PARITY_DIR`, by default the shared folder beside the project."""

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from segdet.projects import load_project, unload_project

PROJECTS = Path(__file__).resolve().parents[2] / "projects"
PARITY_DIR = Path(
    os.environ.get("SEGDET_PARITY_DIR", Path(__file__).resolve().parents[3] / "shared" / "parity")
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`model_case` and `system_case` run over the cases that lie in the folder under test."""
    for name, folder in (("model_case", "models"), ("system_case", "systems")):
        if name in metafunc.fixturenames:
            cases = sorted(p.stem for p in (PARITY_DIR / folder).glob("*.json"))
            missing = pytest.param(
                None, id="no-golden-data", marks=pytest.mark.skip(f"no cases in {PARITY_DIR}")
            )
            metafunc.parametrize(name, cases or [missing], scope="module")


@pytest.fixture(scope="module")
def projects() -> Iterator[None]:
    """The repository's plug-ins, whose systems have cases too."""
    folders = [file.parent for file in sorted(PROJECTS.glob("*/__init__.py"))]
    for folder in folders:
        load_project(folder)
    yield
    for folder in folders:
        unload_project(folder)


@pytest.fixture(scope="session")
def model_fixture() -> ModuleType:
    """The reader that comes with the cases (numpy only)."""
    sys.path.insert(0, str(PARITY_DIR))
    return importlib.import_module("model_fixture")
