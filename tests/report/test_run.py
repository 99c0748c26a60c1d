import pytest

from segdet.errors import ConfigError
from segdet.report.run import group_of, metric_of, read_run


def test_reads_config_curves_and_results(run_folder):
    run = read_run(run_folder)
    assert run.name == "run" and run.missing == []
    assert run.config["DATASETS.TRAIN"] == [] and run.tested == run.names("DATASETS.TEST")[0]
    assert run.curves["total_loss"][:2] == [(0, 2.0), (20, 2 / 21)]
    assert run.curves["total_loss"][-1] == (100, None)  # which was NaN
    assert run.results_of("bbox") == {"AP": [(100, 50.0)]} and run.results_of("segm") == {}
    assert run.iterations == 101


def test_results_are_those_of_the_last_of_several_data_sets(tmp_path):
    (tmp_path / "config.yaml").write_text("DATASETS: {TEST: [a/x, b]}")
    line = '{"iteration": 9, "a/x/bbox/AP": 1.0, "b/bbox/AP": 2.0, "b/bbox/AP-c/d": 3.0}\n'
    (tmp_path / "metrics.json").write_text(line)
    assert read_run(tmp_path).results_of("bbox") == {"AP": [(9, 2.0)], "AP-c/d": [(9, 3.0)]}


def test_curves_of_results_need_two_evaluations_and_leave_out_classes(tmp_path):
    lines = [f'{{"iteration": {i}, "segm/AP": {i}, "segm/AP-cat": 1}}\n' for i in (9, 19)]
    (tmp_path / "metrics.json").write_text("".join(lines))
    run = read_run(tmp_path)
    assert run.shown_curves() == {"segm/AP": [(9, 9), (19, 19)]}
    run.results["segm/AP"].pop()
    assert run.shown_curves() == {}


def test_says_what_it_lacks_and_why(tmp_path):
    text = '{"iteration": 1, "lr": 0.1}\nnonsense\n[]\n{"lr": 2}\n'
    (tmp_path / "metrics.json").write_text(text)
    run = read_run(tmp_path)
    told = {one.what: one.why for one in run.missing}
    assert f"no {tmp_path / 'config.yaml'}" in told["the configuration"]
    assert "has 3 lines that are no JSON objects" in told["some of the curves"]
    assert "no line" in told["results in metrics.json"]
    assert run.curves == {"lr": [(1, 0.1)]}
    (tmp_path / "config.yaml").write_text("A: [")
    assert "config.yaml" in read_run(tmp_path).missing[0].why


@pytest.mark.parametrize("name, message", [("absent", "is no folder"), ("", "has no config.yaml")])
def test_refuses_what_is_no_run(tmp_path, name, message):
    with pytest.raises(ConfigError, match=f"{message}.*OUTPUT_DIR of a run"):
        read_run(tmp_path / name)


def test_names_of_scalars():
    assert metric_of("segm/AP50") == metric_of("coco_val/segm/AP50") == "AP50"
    assert metric_of("bbox_TTA/AP") == "AP" and metric_of("sem_seg/IoU-a/b") == "IoU-a/b"
    assert metric_of("fast_rcnn/cls_accuracy") == metric_of("bboxes/x") == ""
    names = {"bbox/AP": "results", "lr": "losses", "loss_cls": "losses", "time": "speed"}
    assert {name: group_of(name) for name in names} == names
    assert group_of("rpn/num_pos_anchors") == "inside"
