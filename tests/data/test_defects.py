import pickle

from segdet.data.defects import Defect, Drop, located
from segdet.errors import DataError


def test_a_defect_comes_whole_out_of_another_process():
    drop = pickle.loads(pickle.dumps(Drop("box-empty", "no area", "bbox")))
    assert type(drop) is Drop
    assert (drop.kind, str(drop), drop.field) == ("box-empty", "no area", "bbox")


def test_what_is_known_of_an_error_stays_when_its_place_is_added():
    error = located("a.json", Defect("box-empty", "no area", "bbox"))
    assert isinstance(error, Defect) and error.kind == "box-empty"
    assert str(error) == "a.json: no area"
    assert type(located("a.json", DataError("odd"))) is DataError
