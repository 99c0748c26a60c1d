"""One signature, called with keyword arguments or with a config."""

import doctest
import sys

import pytest

from segdet.config import CfgNode, configurable

CFG = CfgNode({"CHANNELS": 8, "NAME": "a"})


class Head:
    @configurable
    def __init__(self, channels, *, name="none", scale=1):
        self.all = (channels, name, scale)

    @classmethod
    def from_config(cls, cfg, extra=0):
        return {"channels": cfg.CHANNELS + extra, "name": cfg.NAME}


class WideHead(Head):
    def __init__(self, cfg, **kwargs):
        super().__init__(cfg, **kwargs)

    @classmethod
    def from_config(cls, cfg, **kwargs):
        return super().from_config(cfg) | {"scale": kwargs["scale"] * 2}


@configurable(from_config=lambda cfg, extra=0: {"size": cfg.CHANNELS + extra})
def grow(size, by=1):
    return size + by


def test_a_class_from_arguments_or_config():
    assert Head(3).all == (3, "none", 1)
    assert Head(CFG).all == Head(cfg=CFG).all == (8, "a", 1)
    assert Head(CFG, 2, scale=5).all == Head(CFG, extra=2, scale=5).all == (10, "a", 5)
    assert Head(CFG, name="b").all == (8, "b", 1)


def test_a_subclass_reads_the_config_its_own_way():
    assert WideHead(CFG, scale=5).all == (8, "a", 10)


def test_a_function_from_arguments_or_config():
    assert grow(1) == 2
    assert grow(CFG) == 9 and grow(CFG, extra=1, by=2) == 11
    assert grow.__name__ == "grow"


def test_refuses_other_uses():
    with pytest.raises(TypeError, match="is no __init__"):
        configurable(lambda x: x)
    with pytest.raises(TypeError, match="needs the function"):
        configurable()


def test_examples():
    module = sys.modules["segdet.config.configurable"]
    found = doctest.testmod(module)
    assert found.attempted > 3 and found.failed == 0
