import numpy as np
import pytest

from segdet.evaluation import evaluate_results
from segdet.report.analysis import OUTCOMES, analyses_of, task_of
from segdet.report.run import read_run
from segdet.report.tested import RESULTS_FILE, read_tested
from tests.report.runs import EVIL, write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory, demo):
    folder = tmp_path_factory.mktemp("runs")
    return [read_run(write_run(folder / str(shift), demo, shift=shift)) for shift in (0, 6)]


@pytest.fixture(scope="module")
def tested(runs):
    return [read_tested(run) for run in runs]


@pytest.fixture(scope="module")
def task(tested):
    (analyses,) = analyses_of(tested).values()
    return task_of("bbox", analyses, None)


def test_numbers_are_those_of_the_evaluation(task, runs, tested):
    for k, (run, one) in enumerate(zip(runs, tested, strict=True)):
        expected = evaluate_results(one.truth.source, run.inference / RESULTS_FILE)["bbox"]
        for row in task["metrics"] + task["classes"]:
            name = row["name"] if "meaning" in row else f"AP-{row['name']}"
            value = row["runs"][k]["value"]
            assert (np.nan if value is None else value) == pytest.approx(
                expected[name], nan_ok=True
            )
    assert any(row["name"] == EVIL for row in task["classes"])


def test_the_better_run_is_clearly_better(task):
    row = task["metrics"][0]
    first, second = row["runs"]
    assert row["difference"]["value"] == pytest.approx(first["value"] - second["value"])
    assert row["difference"]["significant"] and row["difference"]["low"] > 0
    assert first["low"] <= first["value"] <= first["high"]


def test_one_run_alone_is_compared_with_nothing(tested):
    (analyses,) = analyses_of(tested[:1]).values()
    alone = task_of("bbox", analyses, None)
    assert all(row["difference"] is None for row in alone["metrics"] + alone["classes"])


def test_a_run_without_predictions_has_the_numbers_that_it_wrote(tested):
    (analyses,) = analyses_of([tested[0], None]).values()
    written = {
        "metrics": [{"name": "AP", "runs": [None, {"value": 12.0}]}],
        "classes": [{"name": "star", "runs": [None, {"value": 7.0}]}],
    }
    task = task_of("bbox", analyses, written)
    assert task["metrics"][0]["runs"][1] == {"value": 12.0}
    assert next(row for row in task["classes"] if row["name"] == "star")["runs"][1]["value"] == 7
    assert "no significance" in task["notes"][0]
    assert task["errors"]["kinds"][0]["runs"][1] is None


def test_errors_are_those_that_were_planted(task):
    kinds = {kind["key"]: kind["runs"][0] for kind in task["errors"]["kinds"]}
    assert set(kinds) < set(OUTCOMES)
    assert kinds["duplicate"]["count"] > 0 and kinds["classification"]["count"] > 0
    assert kinds["missed"] == {"count": 0, "gain": pytest.approx(0)}


def test_tables_fit_together(task):
    size = len(task["confusion"]["names"])
    assert task["confusion"]["names"][-1] == "background" and size == len(task["classes"]) + 1
    assert all(len(row) == size for rows in task["confusion"]["runs"] for row in rows)
    for one in task["calibration"]["runs"]:
        assert sum(bin["share"] for bin in one["bins"]) == pytest.approx(1)
    curve = task["precision"]["curves"][0]
    assert curve["name"] == "all classes" and len(curve["ious"][0]["runs"][0]) == 101


def test_says_why_nothing_can_be_analysed(run_folder, monkeypatch):
    run = read_run(run_folder)
    run.config["DATASETS.TEST"] = ["coco_2017_val"]
    monkeypatch.setenv("SEGDET_DATASETS", "/nowhere")
    assert read_tested(run) is None and "SEGDET_DATASETS names" in run.missing[-1].why
    run.config["DATASETS.TEST"] = ["balloon_val"]
    assert read_tested(run) is None and "registered in code" in run.missing[-1].why
    run.config["DATASETS.TEST"] = []
    assert read_tested(run) is None and "no DATASETS.TEST" in run.missing[-1].why
    (run.inference / RESULTS_FILE).unlink()
    assert read_tested(run) is None and RESULTS_FILE in run.missing[-1].why
    assert analyses_of([None]) == {}


def test_takes_the_json_that_the_evaluation_made_of_data_registered_in_code(run_folder, demo):
    run = read_run(run_folder)
    run.config["DATASETS.TEST"] = ["balloon_val"]
    text = (demo / "annotations/instances_val.json").read_text()
    (run.inference / "balloon_val_coco_format.json").write_text(text)
    tested = read_tested(run)
    assert tested is not None and len(tested.found) > len(tested.truth)
