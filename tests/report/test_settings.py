from pathlib import Path

from segdet.report.run import Run
from segdet.report.settings import settings_of


def rows_of(*configs):
    runs = [Run(folder=Path("."), name="", config=config) for config in configs]
    return {row["key"]: row for row in settings_of(runs)}


def test_tells_what_differs_from_the_defaults():
    rows = rows_of({"SOLVER.BASE_LR": 0.001, "SOLVER.STEPS": [30000], "SEED": 3, "MINE": None})
    assert rows["SOLVER.BASE_LR"] == {
        "key": "SOLVER.BASE_LR",
        "values": ["0.001"],
        "default": "0.001",
        "changed": False,
        "differs": False,
    }
    assert not rows["SOLVER.STEPS"]["changed"]  # the default is a tuple
    assert rows["SEED"]["changed"] and rows["SEED"]["default"] == "-1"
    assert rows["MINE"]["changed"] and rows["MINE"]["default"] is None
    assert rows["MINE"]["values"] == ["null"]


def test_tells_what_differs_between_runs():
    rows = rows_of({"SEED": 3, "VIS_PERIOD": 0}, {"SEED": 4})
    assert rows["SEED"]["differs"] and rows["SEED"]["values"] == ["3", "4"]
    assert not rows["VIS_PERIOD"]["differs"]  # the default, where a run does not know the key
    assert rows["VIS_PERIOD"]["values"] == ["0", None]
