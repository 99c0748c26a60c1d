import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def op_case(parity_dir: Path) -> Callable[[str], tuple[dict[str, Any], dict[str, Any]]]:
    """Reads a golden op: (meta, {case: {field: array}})."""
    spec = importlib.util.spec_from_file_location("op_fixture", parity_dir / "op_fixture.py")
    assert spec is not None and spec.loader is not None
    op_fixture = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(op_fixture)
    return lambda name: op_fixture.load("ops", name)
