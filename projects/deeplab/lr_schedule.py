"""The polynomial learning-rate schedule of the DeepLab papers (arXiv:1606.00915, section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass

from segdet.config.ranges import Fraction, PositiveFloat
from segdet.config.reader import read_section, tree_of
from segdet.solver import SolverConfig
from segdet.solver.lr_scheduler import Schedule


@dataclass(frozen=True, kw_only=True)
class PolyLRConfig:
    """The keys of WarmupPolyLR in SOLVER; defaults are those of detectron2's project."""

    poly_lr_power: PositiveFloat = 0.9
    poly_lr_constant_ending: Fraction = 0.0  # share of BASE_LR that the rate does not fall below


def warmup_poly(solver: SolverConfig) -> Schedule:
    """WarmupPolyLR: (1 - where) ** POLY_LR_POWER, times the warm-up's factor.

    Unlike other schedules' the warm-up multiplies: the rate falls from its first iteration on.
    """
    poly = read_section(PolyLRConfig, tree_of(solver), at="SOLVER")
    warmup = solver.warmed_up(lambda where: 1.0)

    def schedule(where: float) -> float:
        factor = warmup(where)
        value = max(1.0 - where, 0.0) ** poly.poly_lr_power
        return factor * value if factor < 1 else max(value, poly.poly_lr_constant_ending)

    return schedule
