import pickle
import re
from pathlib import Path

from segdet.data.defects import KINDS, Defect, Drop, located
from segdet.errors import DataError

SOURCES = Path(__file__).parents[2] / "segdet" / "data"


def test_every_kind_is_named_by_a_rule_and_no_other_is():
    text = "".join(file.read_text() for file in SOURCES.rglob("*.py") if file.stem != "defects")
    named = re.findall(r'(?:Defect|Drop|defect|add)\(\s*"([a-z-]+)"', text)
    assert set(named) <= set(KINDS)
    assert [kind for kind in KINDS if f'"{kind}"' not in text] == []


def test_a_defect_comes_whole_out_of_another_process():
    drop = pickle.loads(pickle.dumps(Drop("box-empty", "no area", "bbox")))
    assert type(drop) is Drop
    assert (drop.kind, str(drop), drop.field) == ("box-empty", "no area", "bbox")


def test_what_is_known_of_an_error_stays_when_its_place_is_added():
    error = located("a.json", Defect("box-empty", "no area", "bbox"))
    assert isinstance(error, Defect) and error.kind == "box-empty"
    assert str(error) == "a.json: no area"
    assert type(located("a.json", DataError("odd"))) is DataError
