import copy
import logging
import pickle

import pytest
import yaml

from segdet.config import CfgNode
from segdet.errors import ConfigError


@pytest.fixture
def cfg() -> CfgNode:
    return CfgNode(
        {
            "VERSION": 2,
            "MODEL": {"WEIGHTS": "", "MASK_ON": False, "RPN": {"SIZES": [[32]], "IOU": (0.3, 0.7)}},
            "SOLVER": {"BASE_LR": 0.001, "MAX_ITER": 10, "DECAY_BIAS": None},
        }
    )


@pytest.fixture
def write(tmp_path):
    def write(name: str, text: str) -> str:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return str(file)

    return write


def merged(cfg: CfgNode, key: str, value: object) -> object:
    """What becomes of a value that a YAML file gives for a key."""
    cfg.merge_from_list([key, value])
    node = cfg
    for name in key.split("."):
        node = node[name]
    return node


def test_reads_and_writes_by_attribute_and_by_key(cfg):
    cfg.MODEL.MASK_ON = True
    assert cfg["MODEL"]["MASK_ON"] is True
    cfg.MODEL.NEW = {"A": 1}
    assert cfg.MODEL.NEW.A == 1
    del cfg.MODEL.NEW
    assert not hasattr(cfg.MODEL, "NEW")
    assert cfg.get("NOTHING") is None


def test_an_absent_attribute_names_the_nearest(cfg):
    with pytest.raises(AttributeError, match=r"no MASKON here; did you mean MASK_ON\?"):
        _ = cfg.MODEL.MASKON


@pytest.mark.parametrize(
    "key, given, kept",
    [
        ("SOLVER.BASE_LR", 1, 1.0),
        ("SOLVER.BASE_LR", "1e-3", 0.001),
        ("SOLVER.BASE_LR", None, None),
        ("SOLVER.DECAY_BIAS", 0.5, 0.5),
        ("SOLVER.MAX_ITER", "20", 20),
        ("MODEL.MASK_ON", "True", True),
        ("MODEL.RPN.IOU", "(0.4, 0.5)", (0.4, 0.5)),
        ("MODEL.RPN.IOU", [0.4, 0.5], (0.4, 0.5)),
        ("MODEL.RPN.SIZES", ((8,), (16,)), [(8,), (16,)]),
        ("MODEL.WEIGHTS", "r50.pkl", "r50.pkl"),
        ("MODEL.WEIGHTS", "'r50.pkl'", "r50.pkl"),
        ("MODEL.WEIGHTS", "2024", "2024"),
        ("MODEL.WEIGHTS", "None", None),
    ],
)
def test_accepts(cfg, key, given, kept):
    value = merged(cfg, key, given)
    assert value == kept and type(value) is type(kept)


@pytest.mark.parametrize(
    "key, given, expected, got",
    [
        ("SOLVER.MAX_ITER", 1.5, "int", "float 1.5"),
        ("SOLVER.MAX_ITER", True, "int", "bool True"),
        ("SOLVER.BASE_LR", True, "float", "bool True"),
        ("SOLVER.BASE_LR", "fast", "float", "str 'fast'"),
        ("MODEL.MASK_ON", 1, "bool", "int 1"),
        ("MODEL.WEIGHTS", 7, "str", "int 7"),
        ("MODEL.RPN.IOU", 0.5, "tuple", "float 0.5"),
    ],
)
def test_a_wrong_type_is_named(cfg, key, given, expected, got):
    with pytest.raises(ConfigError, match=rf"command line: {key} must be {expected} .*, is {got}$"):
        cfg.merge_from_list([key, given])


@pytest.mark.parametrize("value", [3, None, [1]])
def test_a_section_is_not_replaced_by_a_value(cfg, write, value):
    file = write("a.yaml", yaml.safe_dump({"MODEL": {"RPN": value}}))
    with pytest.raises(ConfigError, match=r"a.yaml: MODEL.RPN is a section"):
        cfg.merge_from_file(file)


def test_a_value_is_not_replaced_by_a_section(cfg, write):
    with pytest.raises(ConfigError, match=r"a.yaml: SOLVER.BASE_LR is a value \(0.001\)"):
        cfg.merge_from_file(write("a.yaml", "SOLVER: {BASE_LR: {A: 1}}"))


@pytest.mark.parametrize(
    "text, message",
    [
        ("SOLVER: {MAX_ITERS: 3}", r"unknown key SOLVER.MAX_ITERS; did you mean SOLVER.MAX_ITER\?"),
        ("MODEL: {RPM: {IOU: 3}}", r"unknown key MODEL.RPM.IOU; did you mean MODEL.RPN.IOU\?"),
        ("WEIGHTS: a", r"unknown key WEIGHTS; did you mean MODEL.WEIGHTS\?"),
        ("ZZZ: 1", r"unknown key ZZZ; known: "),
    ],
)
def test_an_unknown_key_names_file_and_nearest(cfg, write, text, message):
    with pytest.raises(ConfigError, match=r"/a.yaml: " + message):
        cfg.merge_from_file(write("a.yaml", text))


def test_an_unknown_key_on_the_command_line(cfg):
    with pytest.raises(ConfigError, match=r"^command line: unknown key MODEL.MASK; did you mean"):
        cfg.merge_from_list(["MODEL.MASK", "True"])


def test_options_come_in_pairs(cfg):
    with pytest.raises(ConfigError, match=r"pairs of KEY VALUE; 'MODEL.MASK_ON' stands alone"):
        cfg.merge_from_list(["MODEL.WEIGHTS", "a", "MODEL.MASK_ON"])


def test_a_section_given_as_a_literal_is_merged_key_by_key(cfg):
    cfg.merge_from_list(["SOLVER", "{'MAX_ITER': 7}"])
    assert cfg.SOLVER.MAX_ITER == 7 and cfg.SOLVER.BASE_LR == 0.001


def test_bases_are_merged_in_order_and_found_beside_the_file(cfg, write):
    write("bases/one.yaml", "MODEL: {WEIGHTS: one, MASK_ON: true}\nSOLVER: {MAX_ITER: 1}")
    write("bases/two.yaml", "_BASE_: one.yaml\nMODEL: {WEIGHTS: two}")
    other = write("other.yaml", "SOLVER: {MAX_ITER: 3}")
    file = write("sub/a.yaml", f"_BASE_: [../bases/two.yaml, {other}]\nSOLVER: {{BASE_LR: 1}}")
    cfg.merge_from_file(file)
    assert (cfg.MODEL.WEIGHTS, cfg.MODEL.MASK_ON) == ("two", True)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR) == (3, 1.0)


def test_a_base_in_the_home_folder(cfg, write, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    write("one.yaml", "SOLVER: {MAX_ITER: 5}")
    cfg.merge_from_file(write("sub/a.yaml", "_BASE_: ~/one.yaml"))
    assert cfg.SOLVER.MAX_ITER == 5


def test_a_circle_of_bases_is_shown(cfg, write):
    write("a.yaml", "_BASE_: b.yaml")
    file = write("b.yaml", "_BASE_: a.yaml")
    with pytest.raises(ConfigError, match=r"circle: .*b.yaml -> .*a.yaml -> .*b.yaml"):
        cfg.merge_from_file(file)


def test_one_base_may_be_reached_twice(cfg, write):
    write("root.yaml", "SOLVER: {MAX_ITER: 5}")
    write("a.yaml", "_BASE_: root.yaml")
    write("b.yaml", "_BASE_: root.yaml")
    cfg.merge_from_file(write("c.yaml", "_BASE_: [a.yaml, b.yaml]"))
    assert cfg.SOLVER.MAX_ITER == 5


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "_BASE_: https://host/a.yaml",
            r"https://host/a.yaml: .*local files only.*named by .*a.yaml",
        ),
        ("_BASE_: gone.yaml", r"gone.yaml: cannot be read \(named by _BASE_ in .*a.yaml\)"),
        ("_BASE_: [3]", r"a.yaml: _BASE_ must be a path or a list of paths"),
        ("_BASE_: 3", r"a.yaml: _BASE_ must be a path or a list of paths"),
        ("MODEL: {\n  WEIGHTS: [1\n", r"a.yaml, line 3, column 1: not YAML: "),
        ("MODEL: \x01", r"a.yaml: not YAML: "),
        ("- a\n- b", r"a.yaml: a config is a mapping of keys to values; found a list"),
        ("", r"a.yaml: a config is a mapping of keys to values; found nothing"),
        ("MODEL: {1: 2}", r"a.yaml: keys are words, found 1"),
        ("MODEL.WEIGHTS: a", r"a.yaml: MODEL.WEIGHTS must be nested"),
        ("X: 1\nMODEL: !!python/tuple [1]", r"a.yaml, line 2: .*python/tuple.*never build Python"),
        (
            "X: !!python/object/apply:os.system ['touch owned']",
            r"a.yaml, line 1: .*python/object/apply:os.system",
        ),
        ("X: 1\nMODEL: !!bool maybe", r"a.yaml, line 2: 'maybe' is no bool"),
        ("X: !!int ''", r"a.yaml, line 1: '' is no int"),
        ("X: 2026-99-99", r"a.yaml, line 1: '2026-99-99' is no timestamp"),
    ],
)
def test_a_bad_file_is_refused(cfg, write, monkeypatch, tmp_path, text, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        cfg.merge_from_file(write("a.yaml", text))
    assert not (tmp_path / "owned").exists()


def test_a_missing_file_is_named(cfg, tmp_path):
    with pytest.raises(ConfigError, match=r"gone.yaml: cannot be read: .*No such file"):
        cfg.merge_from_file(str(tmp_path / "gone.yaml"))


def test_base_is_no_option(cfg):
    with pytest.raises(ConfigError, match="_BASE_ belongs into a config file"):
        cfg.merge_from_list(["_BASE_", "a.yaml"])


def test_sources_survive_merging_cloning_and_pickling(cfg, write, monkeypatch, tmp_path):
    fresh = cfg.clone()
    monkeypatch.chdir(tmp_path)
    write("one.yaml", "MODEL: {MASK_ON: true, WEIGHTS: one}")
    write("sub/a.yaml", "_BASE_: ../one.yaml\nMODEL: {WEIGHTS: two}")
    cfg.merge_from_file("sub/a.yaml")
    cfg.merge_from_list(["SOLVER.MAX_ITER", "5"])
    cfg.SOLVER.BASE_LR = 0.1
    cfg.merge_from_other_cfg(CfgNode({"SOLVER": {"DECAY_BIAS": 9, "MAX_ITER": 5}}))
    fresh.merge_from_other_cfg(cfg)
    for copied in (fresh, cfg.clone(), copy.deepcopy(cfg), pickle.loads(pickle.dumps(cfg))):
        assert copied == cfg
        assert copied.source_of("MODEL.MASK_ON") == "one.yaml"
        assert copied.source_of("MODEL.WEIGHTS") == "sub/a.yaml"
        assert copied.source_of("SOLVER.MAX_ITER") == "command line"
        assert copied.source_of("SOLVER.BASE_LR") == "code"
        assert copied.source_of("SOLVER.DECAY_BIAS") == "code"
        assert copied.source_of("MODEL.RPN.IOU") == "default"


def test_source_of_refuses_sections_and_unknown_keys(cfg):
    with pytest.raises(ConfigError, match="MODEL is a section"):
        cfg.source_of("MODEL")
    with pytest.raises(ConfigError, match=r"unknown key MODEL.MASK"):
        cfg.source_of("MODEL.MASK")


@pytest.mark.parametrize(
    "write_something",
    [
        lambda cfg: setattr(cfg.MODEL, "MASK_ON", True),
        lambda cfg: setattr(cfg.MODEL, "NEW", 1),
        lambda cfg: cfg.MODEL.update(MASK_ON=True),
        lambda cfg: cfg.MODEL.pop("MASK_ON"),
        lambda cfg: cfg.MODEL.setdefault("NEW", 1),
        lambda cfg: cfg.clear(),
        lambda cfg: delattr(cfg.MODEL, "MASK_ON"),
        lambda cfg: cfg.merge_from_list(["MODEL.MASK_ON", "True"]),
    ],
)
def test_a_frozen_tree_refuses_writing(cfg, write_something):
    before = cfg.clone()
    cfg.freeze()
    assert cfg.is_frozen() and cfg.MODEL.RPN.is_frozen() and cfg.clone().is_frozen()
    with pytest.raises(AttributeError, match="frozen"):
        write_something(cfg)
    assert cfg == before
    cfg.defrost()
    write_something(cfg)
    assert cfg != before


def test_a_clone_is_independent(cfg):
    other = cfg.clone()
    other.MODEL.RPN.SIZES.append([64])
    other.MODEL.RPN.IOU = ()
    assert cfg.MODEL.RPN.SIZES == [[32]] and cfg.MODEL.RPN.IOU == (0.3, 0.7)


def test_merged_lists_are_not_shared(cfg):
    sizes = [[1]]
    cfg.merge_from_list(["MODEL.RPN.SIZES", sizes])
    sizes[0].append(2)
    assert cfg.MODEL.RPN.SIZES == [[1]]


def test_a_dump_is_read_back(cfg, write):
    cfg.MODEL.WEIGHTS = "(1, 2)"
    cfg.SOLVER.BASE_LR = 1e-05
    fresh = cfg.clone()
    fresh.MODEL.WEIGHTS, fresh.SOLVER.BASE_LR = "", 0.0
    fresh.merge_from_file(write("dumped.yaml", cfg.dump()))
    assert fresh == cfg
    assert str(cfg) == cfg.dump()


def test_a_dump_with_sources_is_the_same_yaml(cfg):
    cfg.MODEL.WEIGHTS = "a, b: {c} # d"
    cfg.merge_from_list(["MODEL.RPN.IOU", "(0.4,)"])
    dumped = cfg.dump_with_sources()
    assert yaml.safe_load(dumped) == yaml.safe_load(cfg.dump())
    assert "\n    IOU: [0.4]  # command line\n" in dumped and "\n    SIZES: [[32]]\n" in dumped


def test_what_yaml_cannot_write_is_named(cfg):
    cfg.MODEL.WEIGHTS = object()
    with pytest.raises(ConfigError, match=r"MODEL.WEIGHTS holds a object"):
        cfg.dump()


def test_old_names_are_read_only_in_old_files(cfg, write, caplog):
    with caplog.at_level(logging.WARNING):
        cfg.merge_from_file(write("old.yaml", "MODEL: {WEIGHT: a.pkl}"))
    assert cfg.MODEL.WEIGHTS == "a.pkl" and cfg.VERSION == 2
    assert "version 1" in caplog.text
    assert cfg.source_of("MODEL.WEIGHTS").endswith("old.yaml")
    with pytest.raises(ConfigError, match=r"unknown key MODEL.WEIGHT"):
        cfg.merge_from_file(write("new.yaml", "VERSION: 2\nMODEL: {WEIGHT: a.pkl}"))
    with pytest.raises(ConfigError, match=r"VERSION is 3; this segdet reads up to 2"):
        cfg.merge_from_file(write("future.yaml", "VERSION: 3"))


def test_a_section_open_to_new_keys_takes_them_from_files_and_trees(cfg, write):
    cfg.EXTRA = CfgNode({"A": 1}, None, new_allowed=True)
    cfg.merge_from_file(write("a.yaml", "EXTRA: {A: 2, B: {C: [1]}}"))
    assert cfg.EXTRA == {"A": 2, "B": {"C": [1]}} and cfg.EXTRA.B.is_new_allowed()
    assert cfg.source_of("EXTRA.B.C").endswith("a.yaml")
    cfg.clone().merge_from_other_cfg(CfgNode({"EXTRA": {"D": "x"}}))
    with pytest.raises(ConfigError, match=r"unknown key SOLVER.NEW"):
        cfg.merge_from_file(write("b.yaml", "SOLVER: {NEW: 1}"))
    with pytest.raises(ConfigError, match=r"command line: unknown key EXTRA.E"):
        cfg.merge_from_list(["EXTRA.E", 1])


def test_a_whole_tree_can_be_opened_and_closed(cfg, write):
    cfg.set_new_allowed(True)
    cfg.merge_from_file(write("a.yaml", "SOLVER: {NEW: 1}\nTOP: 2"))
    assert (cfg.SOLVER.NEW, cfg.TOP) == (1, 2)
    cfg.set_new_allowed(False)
    with pytest.raises(ConfigError, match="unknown key NEXT"):
        cfg.merge_from_file(write("b.yaml", "NEXT: 1"))


def test_unsafe_yaml_is_refused(cfg, write):
    file = write("a.yaml", "SOLVER: {BASE_LR: 0.5}")
    cfg.merge_from_file(file, allow_unsafe=False)
    with pytest.raises(ConfigError, match=r"a.yaml: allow_unsafe would run code"):
        cfg.merge_from_file(file, allow_unsafe=True)
