"""Files that try to run code: refused by file and name."""

import pickle
import re

import pytest
import torch
from torch import nn

from segdet.checkpoint import DetectionCheckpointer
from segdet.checkpoint.reading import read_checkpoint
from segdet.config import get_cfg
from segdet.engine import DefaultTrainer
from segdet.errors import CheckpointError
from tests.checkpoint.opcodes import (
    CONTAINERS,
    FLOAT,
    OBJECT,
    ORDERED,
    args,
    array_of,
    call,
    name,
    tensor,
    text,
    write,
)


def gadgets(marker: str, evil: str) -> dict[str, tuple[bytes, str]]:
    """Name -> pickle opcodes that leave an object on the stack, and what the message must name."""
    command, code = text(f"touch {marker}"), text(f"open({marker!r}, 'w')")
    run = call("os", "system", command)
    inner = b"\x80\x02" + run + b"."
    data = b"C" + bytes([len(inner)]) + inner if len(inner) < 256 else b"N"
    os_module = call("importlib", "import_module", text("os"))
    return {
        "os.system": (run, "os.system"),
        "posix.system": (call("posix", "system", command), "posix.system"),
        "subprocess": (
            call("subprocess", "Popen", b"]" + text("touch") + b"a" + text(marker) + b"a"),
            "subprocess.Popen",
        ),
        "eval": (call("builtins", "eval", code), "builtins.eval"),
        "exec": (call("__builtin__", "exec", code), "__builtin__.exec"),
        "getattr": (call("builtins", "getattr", os_module, text("system")), "builtins.getattr"),
        "import": (call("builtins", "__import__", text("os")), "builtins.__import__"),
        "import by name": (call("evil_module", "anything"), "evil_module.anything"),
        "dotted name": (
            b"\x80\x04" + text("collections") + text("OrderedDict.fromkeys.__class__") + b"\x93",
            "collections.OrderedDict.fromkeys",
        ),
        "torch.load": (call("torch", "load", text(evil)), "torch.load"),
        "nested torch file": (
            call("torch.storage", "_load_from_bytes", data),
            "torch.storage._load_from_bytes",
        ),
        "pickle.loads": (call("pickle", "loads", data), "pickle.loads"),
        "numpy.load": (
            call("numpy", "load", text(evil), b"N", b"\x88"),
            "numpy.load",
        ),
        "numpy runs text": (
            call("numpy.testing._private.utils", "runstring", code, b"}"),
            "numpy.testing._private.utils.runstring",
        ),
        "numpy, new path": (call("numpy._core.os", "system", command), "numpy._core.os.system"),
        "array of objects": (array_of(OBJECT, b"]" + run + b"a"), "numpy.dtype"),
        "array without bytes": (array_of(FLOAT, b"]"), "numpy.ndarray of list"),
        "dtype with fields": (
            FLOAT
            + args(b"K\3", text("<"), b"N", args(text("a")), b"}", b"K\4", b"K\4", b"K\0")
            + b"b",
            "numpy.dtype with fields",
        ),
        "partial": (
            call("functools", "partial", name("os", "system"), command) + b")R",
            "functools.partial",
        ),
        "methodcaller": (
            call("operator", "methodcaller", text("system"), command),
            "operator.methodcaller",
        ),
        "attrgetter": (call("operator", "attrgetter", text("system")), "operator.attrgetter"),
        "defaultdict": (
            call("collections", "defaultdict", name("os", "system")),
            "collections.defaultdict",
        ),
        "namedtuple": (
            call("collections", "namedtuple", text("a"), text("b")),
            "collections.namedtuple",
        ),
        "codecs": (call("codecs", "decode", data, text("zip")), "codecs.decode"),
        "runpy": (call("runpy", "run_path", text(evil)), "runpy.run_path"),
        "importlib": (os_module, "importlib.import_module"),
        "_reconstructor": (
            call("copyreg", "_reconstructor", name("os", "system"), b"N", b"N"),
            "copyreg._reconstructor",
        ),
        "extension": (b"\x82\x01", "copyreg extension 1"),
        "INST": (b"(" + command + b"ios\nsystem\n", "os.system"),
        "INST of a known name": (b"(icollections\nOrderedDict\n", "collections.OrderedDict"),
        "OBJ": (b"(" + name("os", "system") + command + b"o", "os.system"),
        "OBJ of a known name": (
            b"(" + name("collections", "OrderedDict") + b"o",
            "collections.OrderedDict",
        ),
        "NEWOBJ": (name("collections", "OrderedDict") + b")\x81", "collections.OrderedDict"),
        "NEWOBJ_EX": (name("collections", "OrderedDict") + b")}\x92", "collections.OrderedDict"),
        "call of text": (text("os.system") + args(command) + b"R", "call of str"),
        "attribute of a dict": (
            ORDERED + b"}" + text("get") + text("x") + b"sb",
            "collections.OrderedDict.get",
        ),
        "versions that are none": (
            ORDERED + b"}" + text("_metadata") + text("x") + b"sb",
            "collections.OrderedDict._metadata",
        ),
        "state of a list": (b"]}b", "list.__setstate__"),
        "module": (call("torch.nn", "Linear", b"K\2", b"K\3"), "torch.nn.Linear"),
        "persistent id": (text("os.system") + b"Q", "persistent id"),
        "persistent module": (args(text("module"), name("os", "system")) + b"Q", "os.system"),
        "persistent id as text": (b"Pevil\n", "persistent id"),
    }


def torch_gadgets(marker: str) -> dict[str, tuple[bytes, str]]:
    """As `gadgets`, of the names that only files of torch may use."""
    rebuild = "torch._utils._rebuild_tensor_v2"
    size = args(b"K\4"), args(b"K\1")
    return {
        "storage of another type": (
            args(text("storage"), name("collections", "OrderedDict"), text("0"), b"N", b"K\1")
            + b"Q",
            "persistent id",
        ),
        "rebuild by another function": (
            call(
                "torch._tensor",
                "_rebuild_from_type_v2",
                name("collections", "OrderedDict"),
                name("torch", "Tensor"),
                args(),
                b"}",
            ),
            "torch._tensor._rebuild_from_type_v2",
        ),
        "rebuild by os.system": (
            call(
                "torch._tensor", "_rebuild_from_type_v2", name("os", "system"), b"N", args(), b"}"
            ),
            "os.system",
        ),
        "wrapper class": (
            call("torch._utils", "_rebuild_wrapper_subclass", name("os", "system")),
            "torch._utils._rebuild_wrapper_subclass",
        ),
        "no storage": (
            call("torch._utils", "_rebuild_tensor_v2", text("a"), b"K\0", *size),
            rebuild,
        ),
        "too long": (tensor(5, 1, 0), rebuild),
        "offset behind the end": (tensor(4, 1, 1 << 40), rebuild),
        "offset before the beginning": (tensor(4, 1, -1), rebuild),
        "negative size": (tensor(-4, 1, 0), rebuild),
        "negative stride": (tensor(4, -1, 0), rebuild),
        "parameter of text": (
            call("torch._utils", "_rebuild_parameter", text("a"), b"\x89", ORDERED),
            "torch._utils._rebuild_parameter",
        ),
        "state of a tensor": (tensor(4, 1, 0) + b"}b", "Tensor.__setstate__"),
    }


GADGETS, TORCH_GADGETS = list(gadgets("", "")), list(torch_gadgets(""))


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """Gives the file that payloads touch, and one with code; fails if a payload ran."""
    marker, evil = tmp_path / "ran", tmp_path / "evil_module.py"
    evil.write_text(f"open({str(marker)!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield str(marker), str(evil)
    assert not marker.exists(), "a payload was executed"


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("gadget", GADGETS)
def test_every_gadget_is_refused_by_name(tmp_path, trap, gadget, container):
    body, named = gadgets(*trap)[gadget]
    path = tmp_path / container
    for place in ("model", "trainer", "optimizer"):
        write(path, body, place=place)
        with pytest.raises(CheckpointError) as error:
            read_checkpoint(path)
        assert str(path) in str(error.value) and named in str(error.value)


@pytest.mark.parametrize("container", CONTAINERS[1:])
@pytest.mark.parametrize("gadget", TORCH_GADGETS)
def test_every_gadget_of_torch_is_refused_by_name(tmp_path, trap, gadget, container):
    body, named = torch_gadgets(trap[0])[gadget]
    path = tmp_path / container
    write(path, body)
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value) and named in str(error.value)


@pytest.mark.parametrize("container", CONTAINERS[1:])
def test_an_honest_file_made_this_way_is_read(tmp_path, container):
    """So that the refusals above are not of the files' making."""
    write(tmp_path / container, tensor(2, 1, 1))
    assert read_checkpoint(tmp_path / container)["model"]["a"].tolist() == [1, 2]


def test_the_gadgets_are_what_they_seem(tmp_path, trap):
    """With Python's own unpickler the payload runs."""
    marker, evil = trap
    body, _ = gadgets(marker, evil)["os.system"]
    pickle.loads(b"\x80\x02" + body + b".")
    assert (tmp_path / "ran").exists()
    (tmp_path / "ran").unlink()


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("place", ["model", "optimizer", "trainer"])
def test_no_path_to_a_model_runs_a_payload(tmp_path, trap, container, place):
    model = nn.Linear(2, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    checkpointer = DetectionCheckpointer(model, tmp_path, optimizer=optimizer)
    path = tmp_path / container
    (tmp_path / "last_checkpoint").write_text(container)
    for body, named in gadgets(*trap).values():
        write(path, body, place=place)
        for load in (
            lambda: checkpointer.load(path),
            lambda: checkpointer.load(path, checkpointables=[]),
            lambda: checkpointer.resume_or_load("", resume=True),
            lambda: checkpointer.resume_or_load(path, resume=False),
        ):
            with pytest.raises(CheckpointError, match=re.escape(named)):
                load()


@pytest.mark.parametrize("container", CONTAINERS)
def test_resuming_a_run_executes_nothing(tmp_path, trap, container):
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.MODEL.DEVICE = str(tmp_path), "cpu"
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS.NAME = "GeneralizedRCNN", "Res5ROIHeads"
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 16, 8
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4
    trainer = DefaultTrainer(cfg)
    (tmp_path / "last_checkpoint").write_text(container)
    for body, named in gadgets(*trap).values():
        write(tmp_path / container, body, place="trainer")
        with pytest.raises(CheckpointError, match=re.escape(named)):
            trainer.resume_or_load(resume=True)


@pytest.mark.parametrize(
    "content",
    [
        b"../a.pth",
        b"/dev/zero",
        b"/dev/stdin",
        b"https://example.org/a.pth",
        b"detectron2://a.pth",
        b"a\0b.pth",
        b"a\nb.pth",
        b"\xff\xfe.pth",
        b".",
        b"..",
        b"x" * 100_000,
        b"\x1b[2J.pth",
    ],
)
def test_tricks_of_last_checkpoint(tmp_path, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last_checkpoint").write_bytes(content)
    checkpointer = DetectionCheckpointer(nn.Linear(2, 3), tmp_path / "run")
    with pytest.raises(CheckpointError, match="last_checkpoint must name the checkpoint") as error:
        checkpointer.resume_or_load("", resume=True)
    assert len(str(error.value)) < 2000 and "\x1b" not in str(error.value)


def test_a_state_that_does_not_fit_is_named(tmp_path):
    model = nn.Linear(2, 3)
    for state in ({}, {"state": 3, "param_groups": 4}, {"state": {}, "param_groups": []}, [1]):
        torch.save({"model": model.state_dict(), "optimizer": state}, tmp_path / "a.pth")
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        checkpointer = DetectionCheckpointer(model, optimizer=optimizer)
        with pytest.raises(CheckpointError, match=r"a\.pth: its 'optimizer' does not fit this run"):
            checkpointer.load(tmp_path / "a.pth")
