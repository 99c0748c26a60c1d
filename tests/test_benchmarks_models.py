"""The benchmark of whole systems, without running one: its rows' names, its clock, its page."""

import json
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from benchmarks.models import page, rows, systems
from benchmarks.models.stages import REST, StageClock


def test_every_row_has_a_name_of_its_own():
    cases = [*rows.speed_cases(), *rows.scaling_cases(threads=2)]
    assert len({case.name for case in cases}) == len(cases)
    assert {case.system for case in rows.speed_cases()} == set(systems.SYSTEMS)
    # A filter for a row of speed does not choose those of scaling too.
    speed = [case.name for case in cases if not case.scaling]
    assert not [c.name for c in cases if c.scaling and any(name in c.name for name in speed)]


class Part(nn.Module):
    def __init__(self, spend, inner: nn.Module | None = None):
        super().__init__()
        self.spend, self.inner = spend, inner

    def forward(self, x):
        self.spend(1)
        return x if self.inner is None else self.inner(x)


class Model(nn.Module):
    def __init__(self, spend):
        super().__init__()
        self.spend = spend
        self.backbone = Part(spend)
        self.roi_heads = Part(spend, inner=Part(lambda _: spend(5)))

    def postprocess(self, x):
        return x

    def forward(self, x):
        self.spend(3)
        return self.postprocess(self.roi_heads(self.backbone(x)))


def test_a_part_counts_without_the_parts_within_it(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("benchmarks.models.stages.time.perf_counter", lambda: now[0])

    def spend(seconds):
        now[0] += seconds

    model = Model(spend)
    found = StageClock(model, "cpu").run(lambda: model(torch.zeros(1)))
    expected = {"backbone": 1, "roi_heads": 1, "roi_heads.inner": 5, "postprocess": 0, REST: 3}
    assert found == expected


def row(name, **fields):
    return {"name": name, "ours_s": 1.25, "peer": "", "peer_s": None, "ratio": None, **fields}


@pytest.fixture
def file(tmp_path):
    first, *_, last = systems.SYSTEMS
    work = {"system": first, "work": "inference", "width": 640, "height": 480, "batch": 1}
    work |= {"objects": 7, "threads": 2, "images_per_s": 0.8}
    peer = {"peer": "torchvision <9>", "peer_s": 2.5, "ratio": 2.0}
    scaling = [
        row(f"scaling {n}", **work | {"batch": n}, scaling="batch", peer_s=None) for n in (1, 2)
    ]
    memory = {"ours_mib": 900.4, "ours_imports_mib": 5, "peer_mib": 1000, "peer_imports_mib": 6}
    told = [
        row("another", **work | {"system": last}) | peer,
        row("speed", **work) | peer,
        *scaling,
        row("stage", system=first, work="inference", stage="box & mask"),
        row("memory of X", system=first, work="training step", **memory),
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(told))
    return path


def test_the_page_tells_all_rows_and_its_pictures_can_be_read(file, tmp_path, monkeypatch):
    written = tmp_path / "docs" / "benchmarks.md"
    written.parent.mkdir()
    monkeypatch.setattr("sys.argv", ["page", str(file), "--page", str(written)])
    page.main()
    text = written.read_text()
    assert "| speed | 1.250 | 2.500 (torchvision <9>) | 2.00 | 0.80 |" in text
    assert text.index("| speed |") < text.index("| another |")
    assert "| X | 900 (5) | 1000 (6) |" in text and "1: 1.25 s, 2: 1.25 s" in text
    pictures = sorted(written.parent.glob("benchmarks/*.svg"))
    assert [p.stem for p in pictures] == [
        "inference_by_system",
        "scaling_with_batch",
        "stages_of_inference",
    ]
    for picture in pictures:
        assert picture.name in text
        ElementTree.fromstring(picture.read_text())
