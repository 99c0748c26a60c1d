from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from segdet.projects import load_project, unload_project

FOLDER = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def deeplab() -> Iterator[ModuleType]:
    """The package, loaded while the tests of a file run."""
    yield load_project(FOLDER)
    unload_project(FOLDER)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
