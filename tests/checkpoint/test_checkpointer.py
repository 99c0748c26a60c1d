import os
import pickle

import pytest
import torch
from torch import nn

from segdet.checkpoint import DetectionCheckpointer, PeriodicCheckpointer
from segdet.checkpoint.catalog import MIRROR
from segdet.checkpoint.manifest import MANIFEST
from segdet.errors import CheckpointError


class Counter:
    def __init__(self, value=0):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def names(folder) -> list[str]:
    """What lies in a folder, but for the manifest."""
    return sorted(path.name for path in folder.iterdir() if path.name != MANIFEST)


def test_save_and_load(tmp_path):
    saved, fresh = nn.Linear(2, 3), nn.Linear(2, 3)
    out = tmp_path / "run" / "1"
    DetectionCheckpointer(saved, out, trainer=Counter(5)).save("model_0000009", iteration=9)
    assert names(out) == ["last_checkpoint", "model_0000009.pth"]
    assert (out / "last_checkpoint").read_text() == "model_0000009.pth"
    content = torch.load(out / "model_0000009.pth", weights_only=True)
    assert list(content) == ["model", "trainer", "iteration"]

    counter = Counter()
    checkpointer = DetectionCheckpointer(fresh, out, trainer=counter)
    assert checkpointer.report is None
    rest = checkpointer.load(out / "model_0000009.pth")
    assert rest == {"iteration": 9}
    assert counter.value == 5
    assert same(fresh, saved)
    assert checkpointer.report.problems() == ""


def test_load_only_the_named_checkpointables(tmp_path):
    model = nn.Linear(2, 3)
    DetectionCheckpointer(model, tmp_path, a=Counter(1), b=Counter(2)).save("m")
    a, b = Counter(), Counter()
    checkpointer = DetectionCheckpointer(model, tmp_path, a=a, b=b)
    rest = checkpointer.load(tmp_path / "m.pth", checkpointables=["b"])
    assert (a.value, b.value) == (0, 2)
    assert rest == {"a": {"value": 1}}


def test_data_parallel_wrappers_are_seen_through(tmp_path):
    wrapped = nn.DataParallel(nn.Linear(2, 3))
    DetectionCheckpointer(wrapped, tmp_path).save("m")
    content = torch.load(tmp_path / "m.pth", weights_only=True)
    assert list(content["model"]) == ["weight", "bias"]
    DetectionCheckpointer(wrapped).load(tmp_path / "m.pth", strict=True)


def test_nothing_is_loaded_from_no_path():
    checkpointer = DetectionCheckpointer(nn.Linear(2, 3))
    assert checkpointer.load("") == {}
    assert checkpointer.report is None


@pytest.mark.parametrize("settings", [{"save_dir": ""}, {"save_to_disk": False}])
def test_a_process_that_does_not_write(tmp_path, settings, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"save_dir": tmp_path, **settings}
    checkpointer = DetectionCheckpointer(nn.Linear(2, 3), **settings)
    PeriodicCheckpointer(checkpointer, 1, 1, max_to_keep=1).step(0)
    assert names(tmp_path) == []
    assert not checkpointer.has_checkpoint()
    assert checkpointer.get_checkpoint_file() == ""


def test_resume_or_load(tmp_path):
    pretrained, trained, model = nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(2, 3)
    DetectionCheckpointer(pretrained, tmp_path, trainer=Counter(100)).save("pretrained")
    out = tmp_path / "out"
    counter = Counter()
    checkpointer = DetectionCheckpointer(model, out, trainer=counter)

    # There is nothing to resume from yet: the weights only.
    checkpointer.resume_or_load(tmp_path / "pretrained.pth", resume=True)
    assert same(model, pretrained) and counter.value == 0

    DetectionCheckpointer(trained, out, trainer=Counter(7)).save("model_0000006", iteration=6)
    checkpointer.resume_or_load(tmp_path / "pretrained.pth", resume=False)
    assert same(model, pretrained) and counter.value == 0

    rest = checkpointer.resume_or_load(tmp_path / "pretrained.pth", resume=True)
    assert same(model, trained) and counter.value == 7
    assert rest == {"iteration": 6}


@pytest.mark.parametrize(
    "text, said",
    [("model_0000001.pth", "'model_0000001.pth': no such file"), ("\n", "it is empty")],
)
def test_a_lost_last_checkpoint_is_named(tmp_path, text, said):
    checkpointer = DetectionCheckpointer(nn.Linear(2, 3), tmp_path)
    checkpointer.tag_last_checkpoint(text)
    with pytest.raises(CheckpointError, match=rf"last_checkpoint must name .*{said}; write"):
        checkpointer.resume_or_load("", resume=True)


def test_a_lost_last_checkpoint_is_replaced_by_the_one_before(tmp_path, caplog):
    model = nn.Linear(2, 3)
    checkpointer = DetectionCheckpointer(model, tmp_path)
    for number in (1, 3, 5):
        checkpointer.save(f"model_{number:07d}", iteration=number)
    (tmp_path / "model_0000003.pth").unlink()
    for text in ("model_0000003.pth", "model_0000005.pth"):
        checkpointer.tag_last_checkpoint(text)
        (tmp_path / "model_0000005.pth").write_bytes(b"")
        assert checkpointer.resume_or_load("") == {"iteration": 1}
        assert checkpointer.resumed_from == str(tmp_path / "model_0000001.pth")
        assert "going on from model_0000001.pth" in caplog.text
        caplog.clear()


def test_the_last_checkpoint_may_lie_in_a_folder_of_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    other = DetectionCheckpointer(nn.Linear(2, 3), tmp_path / "other")
    other.save("model")
    checkpointer = DetectionCheckpointer(nn.Linear(2, 3), tmp_path)
    for name in ("other/model.pth", other.get_checkpoint_file()):
        checkpointer.tag_last_checkpoint(name)
        assert checkpointer.get_checkpoint_file() == str(tmp_path / "other" / "model.pth")
    relative = DetectionCheckpointer(nn.Linear(2, 3), tmp_path.name)
    assert os.path.samefile(relative.get_checkpoint_file(), tmp_path / "other" / "model.pth")


@pytest.mark.parametrize("name", ["../other/model.pth", "{folder}/other/model.pth"])
def test_the_last_checkpoint_is_one_of_this_run(tmp_path, name):
    DetectionCheckpointer(nn.Linear(2, 3), tmp_path / "other").save("model")
    checkpointer = DetectionCheckpointer(nn.Linear(2, 3), tmp_path / "run")
    checkpointer.save("model")
    checkpointer.tag_last_checkpoint(name.format(folder=tmp_path))
    with pytest.raises(CheckpointError, match=r"model\.pth' lies in another folder"):
        checkpointer.resume_or_load("")


def test_a_run_can_be_moved(tmp_path):
    DetectionCheckpointer(nn.Linear(2, 3), tmp_path / "run").save("model", iteration=3)
    (tmp_path / "run").rename(tmp_path / "moved")
    checkpointer = DetectionCheckpointer(nn.Linear(2, 3), tmp_path / "moved")
    assert checkpointer.resume_or_load("") == {"iteration": 3}


def test_a_checkpoint_can_be_saved_beside_the_last_one(tmp_path):
    checkpointer = DetectionCheckpointer(nn.Linear(2, 3), tmp_path)
    checkpointer.save("last")
    checkpointer.save("best", tag=False, iteration=1)
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "last.pth")
    assert set(torch.load(tmp_path / "best.pth", weights_only=True)) == {"model", "iteration"}


def test_a_failing_save_leaves_the_old_checkpoint(tmp_path):
    model = nn.Linear(2, 3)
    checkpointer = DetectionCheckpointer(model, tmp_path)
    checkpointer.save("model")
    old = (tmp_path / "model.pth").read_bytes()
    with pytest.raises((AttributeError, pickle.PicklingError)):
        checkpointer.save("model", hook=lambda: None)  # cannot be pickled
    with pytest.raises((AttributeError, pickle.PicklingError)):
        checkpointer.save("other", hook=lambda: None)
    assert (tmp_path / "model.pth").read_bytes() == old
    assert names(tmp_path) == ["last_checkpoint", "model.pth"]
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model.pth")


def test_the_file_or_the_path_may_ask_for_suffix_matching(tmp_path):
    model, weights = nn.Sequential(nn.Linear(2, 3)), nn.Linear(2, 3)
    torch.save(weights.state_dict(), tmp_path / "plain.pth")
    arrays = {name: value.numpy() for name, value in weights.state_dict().items()}
    content = {"model": arrays, "matching_heuristics": True, "__author__": "torchvision"}
    (tmp_path / "told.pkl").write_bytes(pickle.dumps(content))

    for path in ("told.pkl", "plain.pth?matching_heuristics=True"):
        nn.init.zeros_(model[0].weight)
        checkpointer = DetectionCheckpointer(model)
        rest = checkpointer.load(f"{tmp_path}/{path}")
        assert "matching_heuristics" not in rest
        assert same(model, weights)
        assert checkpointer.report.renamed == {"0.weight": "weight", "0.bias": "bias"}
    with pytest.raises(CheckpointError, match="none of its 2 tensors fits"):
        DetectionCheckpointer(model).load(tmp_path / "plain.pth")


def test_zoo_addresses_come_from_the_mirror(tmp_path, monkeypatch):
    monkeypatch.setenv(MIRROR, str(tmp_path))
    weights, model = nn.Linear(2, 3), nn.Linear(2, 3)
    (tmp_path / "x").mkdir()
    torch.save({"model": weights.state_dict()}, tmp_path / "x" / "model_final.pth")
    DetectionCheckpointer(model).load("detectron2://x/model_final.pth")
    assert same(model, weights)


def test_periodic_names_and_contents(tmp_path):
    periodic = PeriodicCheckpointer(
        DetectionCheckpointer(nn.Linear(2, 3), tmp_path), 4, max_iter=10
    )
    for iteration in range(10):
        periodic.step(iteration, note="n")
    saved = ["last_checkpoint", "model_0000003.pth", "model_0000007.pth", "model_final.pth"]
    assert names(tmp_path) == saved
    content = torch.load(tmp_path / "model_0000007.pth", weights_only=True)
    assert (content["iteration"], content["note"]) == (7, "n")
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_max_to_keep_deletes_the_oldest_also_of_the_run_that_is_resumed(tmp_path):
    checkpointer = DetectionCheckpointer(nn.Linear(2, 3), tmp_path)
    for name in ("model_final", "model_best", "model_0000001", "model_0000003", "model_0000099"):
        checkpointer.save(name)
    (tmp_path / "model_0000000.txt").touch()
    periodic = PeriodicCheckpointer(checkpointer, 2, max_to_keep=2)
    periodic.step(4)  # not the time
    periodic.step(5)
    assert names(tmp_path) == [
        "last_checkpoint",
        "model_0000000.txt",
        "model_0000003.pth",
        "model_0000005.pth",
        "model_0000099.pth",  # of a longer run that used the folder before
        "model_best.pth",
        "model_final.pth",
    ]
    periodic.step(7)
    assert not (tmp_path / "model_0000003.pth").exists()


@pytest.mark.parametrize("period, max_to_keep", [(0, None), (1, 0)])
def test_refuses_unusable_settings(period, max_to_keep):
    checkpointer = DetectionCheckpointer(nn.Linear(2, 3))
    with pytest.raises(ValueError, match=r"(period|max_to_keep) must be >= 1"):
        PeriodicCheckpointer(checkpointer, period, max_to_keep=max_to_keep)
