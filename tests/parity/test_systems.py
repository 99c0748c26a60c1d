"""Systems and heads against originals outside detectron2: same weights and input, same numbers.

Whose a case is, its sizes, weights and tolerances are read from the case. Cases of an original
that has no entry in `ORIGINALS` are skipped by name, and so counted.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.parity.fcis import FCISParts
from tests.parity.mask_scoring_rcnn import MaskScoringRCNNHead
from tests.parity.yolact import Yolact

# The case's "peer" -> what makes its checks: from the case's numbers, arrays, weights.py and a
# dtype to methods `outputs`, `targets`, `losses` and `gradients`, that give the checks of each.
ORIGINALS: dict[str, Callable] = {
    "msracver/FCIS": FCISParts,
    "dbolya/yolact": Yolact,
    "zjhuang22/maskscoring_rcnn": MaskScoringRCNNHead,
}


def module_of(folder: Path, name: str) -> ModuleType:
    """A module of the folder under test."""
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=["float32", pytest.param("float64", marks=pytest.mark.slow)])
def case(request: pytest.FixtureRequest, system_case: str, parity_dir: Path):
    meta, arrays = module_of(parity_dir, "op_fixture").load("systems", system_case)
    if meta["peer"] not in ORIGINALS:
        pytest.skip(f"{system_case}: not built yet: {meta['peer']}")
    weights, dtype = module_of(parity_dir, "weights"), getattr(torch, request.param)
    return ORIGINALS[meta["peer"]](meta, arrays, weights, dtype)


@pytest.mark.parametrize("part", ["outputs", "targets", "losses", "gradients"])
def test_numbers_are_the_originals(case, part):
    gaps = {check.name: (check.gap(), check.bar) for check in getattr(case, part)()}
    assert gaps
    assert {name: both for name, both in gaps.items() if not both[0] <= both[1]} == {}
