from __future__ import annotations

import json
from pathlib import Path

import pytest

from segdet.data.catalog import DatasetCatalog, MetadataCatalog
from segdet.data.demo import make_demo_dataset
from tests.report.runs import EVIL, write_run


@pytest.fixture(autouse=True)
def _own_catalogs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test learns of data sets is gone afterwards."""
    monkeypatch.setattr(DatasetCatalog, "_loaders", {})
    monkeypatch.setattr(MetadataCatalog, "_metadata", {})


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures; the first class has a name that is markup."""
    folder = make_demo_dataset(tmp_path_factory.mktemp("demo"), num_train=0, num_val=6)
    file = folder / "annotations/instances_val.json"
    tree = json.loads(file.read_text())
    tree["categories"][0]["name"] = EVIL
    file.write_text(json.dumps(tree))
    return folder


@pytest.fixture
def run_folder(tmp_path: Path, demo: Path) -> Path:
    return write_run(tmp_path / "run", demo)
