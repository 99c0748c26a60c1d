import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photos and nasty files; tests that need it skip where it is absent."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the shared test data, which is not at {folder}")
    return folder


@pytest.fixture(scope="session")
def shared_configs() -> Path:
    """The official configs' values and parameter tables."""
    folder = SHARED / "configs"
    if not folder.is_dir():
        pytest.skip(f"needs the official config tables, which are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    """The golden data; `SEGDET_PARITY_DIR` names another folder of the same format."""
    folder = Path(os.environ.get("SEGDET_PARITY_DIR", SHARED / "parity"))
    if not folder.is_dir():
        pytest.skip(f"needs the golden data, which is not at {folder}")
    return folder


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return request.param


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither downloads nor earlier ones: a test sees the same on every machine."""
    monkeypatch.delenv("SEGDET_DOWNLOAD", raising=False)
    monkeypatch.setenv("SEGDET_CACHE", "/nowhere")


@pytest.fixture(autouse=True)
def _logger_as_before() -> Iterator[None]:
    """The trainer sets up the package's logger; later tests must find it as it was."""
    logger = logging.getLogger("segdet")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    for handler in set(logger.handlers) - set(before[0]):
        handler.close()
    logger.handlers[:], logger.level, logger.propagate = before
