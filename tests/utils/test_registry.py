import pytest

from segdet.errors import ConfigError
from segdet.utils.registry import Registry, locate


def test_decorator_and_call():
    registry = Registry("HEADS")

    @registry.register()
    class First: ...

    def second(): ...

    assert registry.register(second) is second
    assert registry.get("First") is First and "second" in registry and "third" not in registry
    assert dict(registry) == {"First": First, "second": second}
    assert repr(registry) == "Registry HEADS: First, second"


def test_unknown_and_taken_names():
    registry = Registry("HEADS")
    registry.register(Registry)
    with pytest.raises(ConfigError, match="HEADS has no 'Registri'; did you mean Registry"):
        registry.get("Registri")
    with pytest.raises(ConfigError, match="HEADS has 'Registry' already; give yours another name"):
        registry.register(Registry)


def test_locate():
    assert locate("segdet.utils.registry.Registry") is Registry
    with pytest.raises(ConfigError, match=r"there is no 'segdet\.utils\.Teapot' to import"):
        locate("segdet.utils.Teapot")
