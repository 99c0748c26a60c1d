import pytest

from segdet.config import get_cfg
from segdet.config.arithmetic import evaluate
from segdet.errors import ConfigError

RETINANET = "[[x, x * 2**(1.0/3), x * 2**(2.0/3) ] for x in [32, 64, 128, 256, 512 ]]"


def test_anchor_sizes_are_those_that_python_computes():
    sizes = [32, 64, 128, 256, 512]
    assert evaluate(RETINANET) == [[x, x * 2 ** (1.0 / 3), x * 2 ** (2.0 / 3)] for x in sizes]


@pytest.mark.parametrize(
    "text", ["-3 + 4 * 2", "7 // 2 % 2", "[1.5, [2], []]", "[[a + b for a in [1, 2]] for b in [3]]"]
)
def test_arithmetic_is_pythons(text):
    assert evaluate(text) == eval(text)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("__import__('os').system('touch owned')", "holds .*only numbers"),
        ("[x for x in ().__class__.__bases__]", "holds '.*__bases__'"),
        ("[x.real for x in [1]]", r"holds 'x.real'"),
        ("(lambda: 1)()", "holds"),
        ("'a' * 9", "holds \"'a'\""),
        ("[0] * 999999999", r"calculates with \[0\], which is no number"),
        ("y", "holds 'y'"),
        ("True", "holds 'True'"),
        ("[x for x in [1] if x]", "holds"),
        ("[x for x, y in [1]]", "holds"),
        ("[x for x in 3]", "runs over 3, which is no list"),
        ("{1: 2}", "holds"),
        ("(x := 3)", "holds"),
        ("9 ** 9 ** 9", "takes a power beyond"),
        ("(-1) ** 0.5", "reaches"),
        ("1 / 0", "cannot be worked out"),
        ("1e300 * 1e300", "reaches 1e"),
        ("[" * 500 + "]" * 500, "is no Python expression|takes more"),
        ("1" * 2000, "is 2000 characters long"),
        ("for", "is no Python expression"),
        ("[[[[[0 for a in [1,2,3,4,5,6,7,8]] for a in [1,2,3,4,5,6,7,8]] for a in "
         "[1,2,3,4,5,6,7,8]] for a in [1,2,3,4,5,6,7,8]] for a in [1,2,3,4,5,6,7,8]]",
         "takes more than 10000 steps"),
        ("[[a, a] for a in " * 30 + "[1]" + "]" * 30, "takes more than 10000 steps"),
    ],
)  # fmt: skip
def test_anything_else_is_refused(text, reason):
    with pytest.raises(ConfigError, match=reason):
        evaluate(text)


def test_the_official_tag_is_read_in_a_file(tmp_path):
    file = tmp_path / "retinanet.yaml"
    tag = "!!python/object/apply:eval"
    file.write_text(f'MODEL:\n  ANCHOR_GENERATOR:\n    SIZES: {tag} ["{RETINANET}"]\n')
    cfg = get_cfg()
    cfg.merge_from_file(file)
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES[1] == [64, 64 * 2 ** (1 / 3), 64 * 2 ** (2 / 3)]


@pytest.mark.parametrize(
    "value, reason",
    [
        ('[\'open("owned", "w")\']', "of 'open.* holds"),
        ("['1', '2']", "takes one text"),
        ("{args: ['1']}", "takes one text"),
    ],
)
def test_a_refusal_names_the_file_and_runs_nothing(tmp_path, monkeypatch, value, reason):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "a.yaml"
    file.write_text(f"MODEL:\n  ANCHOR_GENERATOR:\n    SIZES: !!python/object/apply:eval {value}\n")
    with pytest.raises(
        ConfigError, match=f"a.yaml, line 3: the tag python/object/apply:eval {reason}"
    ):
        get_cfg().merge_from_file(file)
    assert not (tmp_path / "owned").exists()
