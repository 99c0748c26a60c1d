from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from segdet.config.node import CfgNode
from segdet.config.reader import defaults_of, read_as, read_section
from segdet.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    num_conv: int = 0
    norm: str = ""
    weights: tuple[tuple[float, ...], ...] = ((1.0, 2.0),)
    size: tuple[int, int] = (3, 4)
    decay: float | None = None

    def __post_init__(self) -> None:
        if self.num_conv < 0:
            raise ConfigError(f"NUM_CONV must be >= 0, is {self.num_conv}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    mask_on: bool = False
    roi_head: HeadConfig = field(default_factory=lambda: HeadConfig(num_conv=2))
    top_k: int = field(default=100, metadata={"key": "TEST.TOP_K"})


@dataclass(frozen=True, kw_only=True)
class EdgeHeadConfig(HeadConfig):
    border: float = 4.0


@dataclass(frozen=True, kw_only=True)
class EdgeModelConfig(ModelConfig):
    roi_head: EdgeHeadConfig = field(default_factory=EdgeHeadConfig)


@pytest.fixture
def cfg() -> CfgNode:
    return CfgNode({"MODEL": defaults_of(ModelConfig), "TEST": {"TOP_K": 100}})


def test_defaults_are_the_keys_that_the_section_owns():
    assert defaults_of(ModelConfig) == {
        "MASK_ON": False,
        "ROI_HEAD": {
            "NUM_CONV": 2,
            "NORM": "",
            "WEIGHTS": ((1.0, 2.0),),
            "SIZE": (3, 4),
            "DECAY": None,
        },
    }


def test_defaults_read_back_as_the_default_section(cfg):
    assert read_section(ModelConfig, cfg, at="MODEL") == ModelConfig()


def test_reads_nested_and_foreign_keys(cfg):
    cfg.merge_from_list(["TEST.TOP_K", 7, "MODEL.ROI_HEAD.NORM", "GN", "MODEL.ROI_HEAD.DECAY", 1])
    cfg.MODEL.ROI_HEAD.WEIGHTS = [[1, 2], [3]]
    model = read_section(ModelConfig, cfg, at="MODEL")
    assert model.top_k == 7 and model.roi_head.norm == "GN"
    assert model.roi_head.weights == ((1.0, 2.0), (3.0,)) and model.roi_head.decay == 1.0
    assert read_section(HeadConfig, cfg.MODEL.ROI_HEAD) == model.roi_head


def test_a_retyped_field_brings_its_keys():
    cfg = CfgNode({"MODEL": defaults_of(EdgeModelConfig), "TEST": {"TOP_K": 100}})
    cfg.merge_from_list(["MODEL.ROI_HEAD.BORDER", "2"])
    assert read_section(EdgeModelConfig, cfg, at="MODEL").roi_head.border == 2.0


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("NUM_CONV", 1.0, r"MODEL.ROI_HEAD.NUM_CONV must be int, is 1.0 \(set by code\)"),
        ("NUM_CONV", True, r"NUM_CONV must be int, is True"),
        ("NORM", None, r"NORM must be str, is None"),
        ("WEIGHTS", [1.0], r"WEIGHTS must be tuple\[tuple\[float, ...\], ...\], is \[1.0\]"),
        ("WEIGHTS", 1.0, r"WEIGHTS must be tuple"),
        ("WEIGHTS", [["a"]], r"WEIGHTS must be tuple"),
        ("SIZE", [1, 2, 3], r"SIZE must be tuple\[int, int\], is \[1, 2, 3\]"),
        ("DECAY", "a", r"DECAY must be float \| None, is 'a'"),
    ],
)
def test_a_wrong_type_names_key_value_and_source(cfg, key, value, message):
    cfg.MODEL.ROI_HEAD[key] = value
    with pytest.raises(ConfigError, match=message):
        read_section(ModelConfig, cfg, at="MODEL")


def test_a_refused_value_names_section_and_source(cfg):
    cfg.merge_from_list(["MODEL.ROI_HEAD.NUM_CONV", "-1", "MODEL.ROI_HEAD.NORM", "GN"])
    with pytest.raises(
        ConfigError,
        match=r"^MODEL.ROI_HEAD: NUM_CONV must be >= 0, is -1 \(NUM_CONV set by command line\)$",
    ):
        read_section(ModelConfig, cfg, at="MODEL")


def test_a_plug_ins_section_is_read_where_ours_stands(cfg):
    cfg.MODEL.ROI_HEAD.BORDER = 3.0
    ours = read_section(ModelConfig, cfg, at="MODEL").roi_head
    theirs = read_as(EdgeHeadConfig, ours, at="MODEL.ROI_HEAD")
    assert theirs == EdgeHeadConfig(num_conv=2, border=3.0)
    assert read_as(EdgeHeadConfig, theirs, at="MODEL.ROI_HEAD") is theirs
    with pytest.raises(ConfigError, match="HeadConfig was not read from a config"):
        read_as(EdgeHeadConfig, HeadConfig(), at="MODEL.ROI_HEAD")
