"""What a key may hold, written beside it: `num_conv: NonNegativeInt = 0`.

`Annotated[type, allowed]` says that values are of the type and in `allowed`, a `Range` or names:
`Annotated[str, ("sum", "avg")]`. The reader refuses others.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Annotated, Any

_LARGEST = sys.float_info.max


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`; neither NaN nor, unless it is an end, infinity.

    Args:
        low: the smallest number; by default any finite one.
        high: the largest number, likewise.
        open_low: leaves out `low` itself.
        open_high: leaves out `high` itself.

    Examples:
        >>> 0 in Range(0, 1), 0 in Range(0, 1, open_low=True), float("nan") in Range()
        (True, False, False)
        >>> print(Range(0, 1, open_low=True), Range(1), Range())
        in (0, 1] >= 1 that is finite
    """

    low: float = -_LARGEST
    high: float = _LARGEST
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        inside = self.low <= value <= self.high
        left_out = (self.open_low and value == self.low) or (self.open_high and value == self.high)
        return inside and not left_out

    def __str__(self) -> str:
        if self.low == -_LARGEST:
            return "that is finite"
        if self.high >= _LARGEST:
            return f"{'>' if self.open_low else '>='} {self.low}"
        left, right = "(" if self.open_low else "[", ")" if self.open_high else "]"
        return f"in {left}{self.low}, {self.high}{right}"


PositiveInt = Annotated[int, Range(1)]
NonNegativeInt = Annotated[int, Range(0)]
Finite = Annotated[float, Range()]
PositiveFloat = Annotated[float, Range(0, open_low=True)]
NonNegativeFloat = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
PositiveFraction = Annotated[float, Range(0, 1, open_low=True)]
InnerFraction = Annotated[float, Range(0, 1, open_low=True, open_high=True)]
FocalAlpha = Annotated[float, Range(-1, 1)]  # weight of positives; below 0 all weigh 1
IoULabel = Annotated[int, Range(-1, 1)]  # of boxes between two IoUs: object, none, or ignored (-1)


def no_effect(default: Any, why: str) -> Any:
    """The field of a key that other programs' files may have; the reader warns of other values.

    Args:
        default: the key's.
        why: what stands in its place here, or what it does there.
    """
    return field(default=default, metadata={"no_effect": why})
