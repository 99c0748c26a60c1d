from pathlib import Path

import pytest

from tests.faults.runs import ITERATIONS, in_process, metrics


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    in_process(folder)
    assert len(metrics(folder)) == ITERATIONS + 1  # and the last evaluation
    return folder
