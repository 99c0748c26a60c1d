import sys

import pytest

from segdet.ops import library


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
