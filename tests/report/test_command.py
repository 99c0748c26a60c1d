import shutil

import pytest

from segdet.errors import ConfigError
from segdet.report.command import main


def test_writes_a_page_into_the_run(run_folder, capsys):
    main([str(run_folder), "--pictures", "2"])
    text = (run_folder / "report.html").read_text()
    assert text.count("data:image/jpeg;base64,") == 2
    assert f"{run_folder / 'report.html'}: " in capsys.readouterr().out


def test_a_run_of_curves_alone_gives_a_page_that_says_what_is_missing(tmp_path, capsys):
    (tmp_path / "metrics.json").write_text('{"iteration": 1, "lr": 0.1}\n')
    main([str(tmp_path), "--output", str(tmp_path / "page.html")])
    assert "coco_instances_results.json" in (tmp_path / "page.html").read_text()
    assert "without the configuration" in capsys.readouterr().out


def test_runs_of_one_name_are_told_apart(run_folder, tmp_path, capsys):
    other = tmp_path / "before/run"
    shutil.copytree(run_folder, other)
    main([str(run_folder), "--against", str(other), "--pictures", "0"])
    text = (run_folder / "report.html").read_text()
    assert f"<title>{tmp_path.name}/run against before/run</title>" in text


def test_refuses_what_it_cannot_do(run_folder, tmp_path):
    with pytest.raises(ConfigError, match="--pictures must be >= 0"):
        main([str(run_folder), "--pictures", "-1"])
    with pytest.raises(ConfigError, match=r"nowhere.*cannot be written"):
        main([str(run_folder), "--pictures", "0", "--output", str(tmp_path / "nowhere/page.html")])
    with pytest.raises(ConfigError, match="is no folder"):
        main([str(run_folder), "--against", str(tmp_path / "nowhere")])
