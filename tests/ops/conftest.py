import os
import sys

import pytest
import torch

from segdet.ops import library

# tools/check_kernels.py names a library here whose kernels, CUDA's compiled as C++, replace the
# CPU's.
CUDA_ON_CPU = os.environ.get("SEGDET_CUDA_ON_CPU")


def pytest_configure() -> None:
    if CUDA_ON_CPU:
        torch.ops.load_library(CUDA_ON_CPU)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With these kernels: the tests of compiled ops that a GPU would run."""
    if not CUDA_ON_CPU:
        return

    def wanted(item: pytest.Item) -> bool:
        parameters = getattr(item, "callspec", None) and item.callspec.params
        return bool(parameters) and (
            parameters.get("device") == "cpu"
            and parameters.get("implementation", "compiled") == "compiled"
        )

    config.hook.pytest_deselected(items=[item for item in items if not wanted(item)])
    items[:] = [item for item in items if wanted(item)]


@pytest.fixture(params=["compiled", "torchvision", "plain"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test once per implementation behind the same face."""
    if request.param == "compiled":
        if not library.BINARY_DEVICES:
            pytest.skip("needs the compiled ops: pip install -e .")
        return request.param
    if request.param == "torchvision":
        pytest.importorskip("torchvision.ops")
    else:
        monkeypatch.setitem(sys.modules, "torchvision.ops", None)  # its import now fails
    monkeypatch.setattr(library, "BINARY_DEVICES", frozenset())
    monkeypatch.setattr(library, "_warn_of_fallback", lambda device_type: None)
    return request.param


@pytest.fixture
def compiled(device: str) -> str:
    """The device, where the compiled ops serve it."""
    if device not in library.BINARY_DEVICES:
        pytest.skip(f"needs the ops compiled for {device}: pip install -e .")
    return device
