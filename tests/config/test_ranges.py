from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator
from typing import Annotated, Any

import pytest

from segdet.config import get_cfg
from segdet.config.defaults import SECTIONS
from segdet.config.ranges import Fraction, NonNegativeInt, PositiveFloat, Range
from segdet.config.reader import read_section
from segdet.errors import ConfigError
from segdet.modeling.meta_arch import SYSTEMS

ANY_WHOLE_NUMBER = {
    "MODEL.VOVNET.BACKBONE_OUT_CHANNELS",  # no effect
    "MODEL.VOVNET.OUT_CHANNELS",  # no effect
    "MODEL.RESNETS.DEPTH",  # its section lists them
    "MODEL.RPN.BOUNDARY_THRESH",
    "MODEL.RPN.CONV_DIMS",  # -1 has a meaning of its own
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE",
    "SEED",
    "TEST.EVAL_PERIOD",
}
TOP = [*SECTIONS.items(), *(("MODEL", section) for section in SYSTEMS.values())]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    count: NonNegativeInt = 0
    sizes: tuple[PositiveFloat, ...] = (1.0,)
    share: Fraction | None = None
    kind: Annotated[str, ("", "sum", "avg")] = "sum"


def read(**values: Any) -> Section:
    cfg = get_cfg()
    cfg.HERE = {"COUNT": 0, "SIZES": (1.0,), "SHARE": None, "KIND": "sum"} | values
    return read_section(Section, cfg, at="HERE")


def keys_of(section: type, at: str) -> Iterator[tuple[str, Any]]:
    hints = typing.get_type_hints(section, include_extras=True)
    for field in dataclasses.fields(section):
        path = field.metadata.get("key") or f"{at}.{field.name.upper()}"
        if dataclasses.is_dataclass(hints[field.name]):
            yield from keys_of(hints[field.name], path)
        else:
            yield path, hints[field.name]


def numbers_in(hint: Any) -> set[Any]:
    """The types of a hint's numbers that have no range."""
    if hint in (int, float):
        return {hint}
    is_ranged = typing.get_origin(hint) is Annotated
    return set() if is_ranged else set().union(*map(numbers_in, typing.get_args(hint)))


@pytest.mark.parametrize("at, section", TOP, ids=lambda one: getattr(one, "__name__", one))
def test_every_number_of_a_config_has_a_range(at: str, section: type):
    for path, hint in keys_of(section, at):
        if path not in ANY_WHOLE_NUMBER:
            assert not numbers_in(hint), f"{path}: {hint}; see segdet/config/ranges.py"


def test_values_within_are_read():
    assert read(COUNT=3, SIZES=[2, 0.5], SHARE=1, KIND="") == Section(
        count=3, sizes=(2.0, 0.5), share=1.0, kind=""
    )


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("COUNT", -1, r"^HERE.COUNT must be int >= 0, is -1 \(set by default\)$"),
        ("SIZES", (1.0, 0.0), r"HERE.SIZES must be tuple\[float > 0, ...\], is \(1.0, 0.0\)"),
        ("SIZES", (math.nan,), "HERE.SIZES must be"),
        ("SIZES", (math.inf,), "HERE.SIZES must be"),
        ("SHARE", 1.5, r"HERE.SHARE must be float in \[0, 1\] \| None, is 1.5"),
        ("KIND", "max", "HERE.KIND must be one of '', sum, avg, is 'max'"),
    ],
)
def test_others_are_refused(key: str, value: Any, message: str):
    with pytest.raises(ConfigError, match=message):
        read(**{key: value})


def test_a_key_without_effect_warns_where_it_is_changed(caplog: pytest.LogCaptureFixture):
    cfg = get_cfg()
    read_section(SYSTEMS["BlendMask"], cfg, at="MODEL")
    assert not caplog.messages
    cfg.merge_from_list(["MODEL.BLENDMASK.VISUALIZE", True])
    read_section(SYSTEMS["BlendMask"], cfg, at="MODEL")
    assert caplog.messages == [
        "MODEL.BLENDMASK.VISUALIZE True has no effect: there it draws the bases "
        "(set by command line)"
    ]


def test_open_ends_are_left_out():
    inner = Range(0, 1, open_low=True, open_high=True)
    assert [x in inner for x in (0, 0.5, 1, math.nan)] == [False, True, False, False]
    assert str(inner) == "in (0, 1)" and math.inf in Range(0, math.inf)
