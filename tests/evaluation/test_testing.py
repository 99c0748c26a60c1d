import pytest

from segdet.config.node import CfgNode
from segdet.config.reader import defaults_of, read_section
from segdet.errors import ConfigError
from segdet.evaluation import print_csv_format, testing, verify_results
from segdet.evaluation.testing import flatten_results_dict

RESULTS = {"bbox": {"AP": 38.5, "AP50": float("nan"), "AP-cat": 12.0}}


def config(expected):
    cfg = CfgNode({"TEST": defaults_of(testing.TestConfig)})
    cfg.TEST.EXPECTED_RESULTS = expected
    return cfg


def test_the_section_reads_back():
    section = read_section(testing.TestConfig, config([["bbox", "AP", 38, 0.2]]), "TEST")
    assert section.expected_results == (("bbox", "AP", 38.0, 0.2),)
    assert section.aug.min_sizes[0] == 400 and section.precise_bn.num_iter == 200


@pytest.mark.parametrize("row", [["bbox", "AP", 38.5], ["bbox", "AP", "38.5", 0.1], [1, 2, 3, 4]])
def test_rows_of_another_form_are_refused(row):
    with pytest.raises(ConfigError, match="EXPECTED_RESULTS"):
        read_section(testing.TestConfig, config([row]), "TEST")


def test_results_within_tolerance_pass():
    assert verify_results(config([["bbox", "AP", 38.4, 0.2]]), RESULTS)
    assert verify_results(config([]), {})


@pytest.mark.parametrize(
    "row, said",
    [
        (["bbox", "AP", 39.0, 0.2], "bbox/AP is 38.5, expected 39.0"),
        (["bbox", "AP50", 60.0, 100.0], "bbox/AP50 is nan"),
        (["segm", "AP", 30.0, 100.0], "segm/AP is None"),
        (["count", "AP", 5.0, 1.0], "count/AP is None"),
    ],
)
def test_other_results_end_with_exit_code_1(row, said, caplog):
    with pytest.raises(SystemExit) as exit_info:
        verify_results(config([row]), {**RESULTS, "count": 5})
    assert exit_info.value.code == 1
    assert said in caplog.text


def test_copied_lines_leave_single_classes_out(caplog):
    caplog.set_level("INFO")
    print_csv_format({**RESULTS, "count": 5})
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "copypaste: Task: bbox",
        "copypaste: AP,AP50",
        "copypaste: 38.5000,nan",
        "copypaste: count=5",
    ]


def test_flat_names_join_the_levels():
    assert flatten_results_dict({"a": {"b": {"c": 1}}, "d": 2}) == {"a/b/c": 1, "d": 2}
