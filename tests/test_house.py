"""The house's own rules: who imports whom, what files may hold, what belongs to a system or op."""

import ast
import functools
import graphlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from segdet.modeling.meta_arch import SYSTEMS

ROOT = Path(__file__).resolve().parents[1]

# Layer -> the layers that it imports from, besides itself; a module's layer is its longest prefix
# here. Imports go one way: a layer stands below its users.
LAYERS = {
    "segdet": [],
    "segdet.errors": [],
    "segdet.config.arithmetic": ["segdet.errors"],
    "segdet.config.yaml_files": ["segdet.errors", "segdet.config.arithmetic"],
    "segdet.config.compat": ["segdet.errors"],
    "segdet.config.node": ["segdet.errors", "segdet.config.yaml_files", "segdet.config.compat"],
    "segdet.config.configurable": ["segdet.config.node"],
    "segdet.config.ranges": [],
    "segdet.config.reader": ["segdet.errors", "segdet.config.node"],
    "segdet.ops": ["segdet.errors"],
    "segdet.structures": ["segdet.errors", "segdet.ops"],
    "segdet.layers": ["segdet.errors", "segdet.ops", "segdet.structures"],
    "segdet.modeling": [  # parts, backbones
        "segdet.errors",
        "segdet.config.ranges",
        "segdet.structures",
        "segdet.layers",
        "segdet.utils",  # comm: what losses are divided by
    ],
    "segdet.modeling.meta_arch": [
        "segdet.errors",
        "segdet.config.ranges",
        "segdet.structures",
        "segdet.layers",
        "segdet.modeling",
    ],
    "segdet.modeling.registries": [
        "segdet.errors",
        "segdet.config.node",
        "segdet.config.reader",
        "segdet.structures",
        "segdet.layers",
        "segdet.utils.registry",
        "segdet.modeling",
        "segdet.modeling.meta_arch",
    ],
    "segdet.modeling.from_config": [
        "segdet.errors",
        "segdet.config.configurable",
        "segdet.config.node",
        "segdet.config.reader",
        "segdet.layers",
        "segdet.modeling",
        "segdet.modeling.build",
        "segdet.modeling.meta_arch",
    ],
    "segdet.modeling.compiling": [  # which lists the parts
        "segdet.errors",
        "segdet.modeling",
        "segdet.modeling.meta_arch",
    ],
    "segdet.modeling.build": [
        "segdet.errors",
        "segdet.modeling.compiling",
        "segdet.data",  # the frequencies of classes, for the federated loss
        "segdet.layers",
        "segdet.config.node",
        "segdet.config.reader",
        "segdet.modeling",
        "segdet.modeling.meta_arch",
        "segdet.utils",  # mixed precision
    ],
    "segdet.modeling.__init__": [
        "segdet.layers",
        "segdet.modeling",
        "segdet.modeling.build",
        "segdet.modeling.compiling",
        "segdet.modeling.from_config",
        "segdet.modeling.meta_arch",
        "segdet.modeling.registries",
        "segdet.modeling.test_time_augmentation",
    ],
    "segdet.modeling.test_time_augmentation": [  # the only part that transforms images
        "segdet.errors",
        "segdet.config.node",
        "segdet.data",
        "segdet.structures",
        "segdet.layers",
        "segdet.modeling",
        "segdet.modeling.meta_arch",
    ],
    "segdet.utils": ["segdet.errors"],
    "segdet.utils.registry": ["segdet.errors"],
    "segdet.utils.collect_env": ["segdet", "segdet.ops"],
    "segdet.utils.file_io": ["segdet.errors", "segdet.checkpoint"],  # finds weights' files
    "segdet.data": [
        "segdet.errors",
        "segdet.config.configurable",
        "segdet.config.node",
        "segdet.config.ranges",
        "segdet.config.reader",
        "segdet.ops",
        "segdet.structures",
        "segdet.checkpoint",  # whose reader of pickles runs nothing: for files of proposals
        "segdet.modeling",
        "segdet.modeling.meta_arch",  # what a system needs of the data
        "segdet.utils",
    ],
    "segdet.utils.generic_mask": ["segdet.structures", "segdet.data"],
    "segdet.utils.visualizer": [
        "segdet.structures",
        "segdet.data",
        "segdet.utils",
        "segdet.utils.generic_mask",
    ],
    "segdet.utils.sheets": ["segdet.structures", "segdet.data", "segdet.utils.visualizer"],
    "segdet.evaluation": [
        "segdet.errors",
        "segdet.config.node",
        "segdet.config.ranges",
        "segdet.config.reader",
        "segdet.structures",
        "segdet.data",
        "segdet.utils",
    ],
    "segdet.solver": [
        "segdet.errors",
        "segdet.config.node",
        "segdet.config.ranges",
        "segdet.config.reader",
        "segdet.utils",  # mixed precision
    ],
    "segdet.checkpoint": ["segdet.errors", "segdet.config.node", "segdet.utils"],
    "segdet.config": [  # get_cfg, which gathers the sections
        "segdet.errors",
        "segdet.config.compat",
        "segdet.config.configurable",
        "segdet.config.node",
        "segdet.config.ranges",
        "segdet.config.reader",
        "segdet.config.yaml_files",
        "segdet.modeling.compiling",
        "segdet.modeling.meta_arch",
        "segdet.data",
        "segdet.solver",
        "segdet.evaluation",
    ],
    "segdet.projects": [
        "segdet.errors",
        "segdet.config",
        "segdet.modeling",
        "segdet.modeling.meta_arch",
        "segdet.solver",
    ],
    "segdet.model_zoo": [
        "segdet.errors",
        "segdet.config",
        "segdet.config.node",
        "segdet.modeling",
        "segdet.modeling.__init__",
        "segdet.checkpoint",
    ],
}
# These import everything below them.
for top in ("segdet.engine", "segdet.migrate", "segdet.report", "segdet.cli"):
    LAYERS[top] = [*LAYERS]
OPTIONAL = {
    *("albumentations", "cv2", "fsspec", "hotcoco", "pycocotools", "shapely", "submitit"),
    *("tensorboard", "torch", "torchvision"),
}


def name_of(file: Path) -> str:
    """Dotted module name; a package's own module is `package.__init__`."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


PROJECTS = sorted((ROOT / "projects").glob("*/__init__.py"))
MODULES = {name_of(file): file for file in sorted((ROOT / "segdet").rglob("*.py"))}


def imports(node: ast.AST, package: str, inside: bool = False) -> Iterator[tuple[str, bool]]:
    """(module, whether inside a function) of every import but those for type checkers only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from ((one.name, inside) for one in child.names)
        elif isinstance(child, ast.ImportFrom):
            source = resolve_name("." * child.level + (child.module or ""), package)
            for one in child.names:
                as_module = f"{source}.{one.name}"
                yield as_module if is_module(as_module) else source, inside
        else:
            is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from imports(child, package, inside or is_function)


def is_module(name: str) -> bool:
    return name in MODULES or f"{name}.__init__" in MODULES


@functools.cache
def imports_of(module: str) -> list[tuple[str, bool]]:
    """As `imports`, with packages of ours under the name of their own module."""
    found = imports(ast.parse(MODULES[module].read_text()), module.rpartition(".")[0])
    return [
        (f"{name}.__init__" if f"{name}.__init__" in MODULES else name, inside)
        for name, inside in found
    ]


def layer_of(module: str) -> str:
    """The longest prefix in LAYERS."""
    parts = module.split(".")
    prefixes = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next(one for one in prefixes if one in LAYERS)


def test_imports_go_down_the_layers():
    wrong = [
        f"{module} imports {name}"
        for module in MODULES
        for name, _ in imports_of(module)
        if name in MODULES and layer_of(name) not in [layer_of(module), *LAYERS[layer_of(module)]]
    ]
    assert wrong == []


def test_there_are_no_import_cycles():
    graph = {
        module: {name for name, inside in imports_of(module) if name in MODULES and not inside}
        for module in MODULES
    }
    list(graphlib.TopologicalSorter(graph).static_order())  # CycleError shows the cycle


def test_functions_import_only_optional_packages():
    wrong = [
        f"{module} imports {name} in a function"
        for module in MODULES
        for name, inside in imports_of(module)
        if inside and name.split(".")[0] not in OPTIONAL
    ]
    # get_cfg stands above the modules that import this package.
    assert wrong == ["segdet.config.__init__ imports segdet.config.defaults in a function"]


def test_the_package_knows_no_project():
    names = {"projects", *(file.parent.name for file in PROJECTS)}
    assert [m for m in MODULES for name, _ in imports_of(m) if name.split(".")[0] in names] == []


@pytest.mark.parametrize("file", PROJECTS, ids=lambda file: file.parent.name)
def test_a_project_has_its_readme_configs_and_tests(file):
    folder = file.parent
    assert (folder / "README.md").is_file()
    assert list(folder.glob("configs/**/*.yaml")) and list(folder.glob("tests/test_*.py"))
    others = {"projects", "tests", *(one.parent.name for one in PROJECTS if one != file)}
    for module in folder.glob("*.py"):
        for name, inside in imports(ast.parse(module.read_text()), folder.name):
            assert name.split(".")[0] not in others and not inside, f"{module.name}: {name}"


def test_torchvision_is_only_a_fallback_of_ops():
    users = {
        layer_of(module)
        for module in set(MODULES) - {"segdet.data.transforms.adapters"}  # of users' transforms
        for name, _ in imports_of(module)
        if name.split(".")[0] == "torchvision"
    }
    assert users <= {"segdet.ops"}


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(run.stdout.split())


def test_importing_segdet_loads_nothing_else():
    loaded = loaded_by("import segdet")
    assert {name for name in loaded if name.startswith("segdet")} == {"segdet"}
    assert not loaded & {"torch", "numpy"}


def test_importing_every_module_loads_no_optional_package():
    every = ", ".join(name.removesuffix(".__init__") for name in MODULES)
    heavy = {"torchvision", "matplotlib", "cv2", "tensorboard", "hotcoco", "pycocotools.coco"}
    assert not loaded_by(f"import {every}") & heavy


@functools.cache
def tracked() -> list[Path]:
    run = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        pytest.skip("needs a git checkout, to know the project's own files")
    files = [ROOT / name for name in run.stdout.splitlines()]
    return [file for file in files if file.is_file()]


def test_files_stay_small():
    code = [file for file in tracked() if file.suffix in {".py", ".cpp", ".cu", ".cuh", ".h"}]
    lines = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in code}
    assert {name: count for name, count in lines.items() if count > 500} == {}


def test_files_name_no_machine():
    """Neither a path of the machine that they were written on nor its package index."""
    hosts = [urlsplit(url).hostname for url in os.environ.get("PIP_INDEX_URL", "").split()]
    words = [re.escape(f"{ROOT.parent}/")] + [re.escape(host) for host in hosts if host]
    pattern = re.compile("|".join([*words, r"/home/\w+/", r"/root/", r"/Users/\w+/"]))
    found = [
        f"{file.relative_to(ROOT)}: {match.group()}"
        for file in tracked()
        if file != Path(__file__)
        and (match := pattern.search(file.read_text(encoding="utf-8", errors="ignore")))
    ]
    assert found == []


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_has_its_tests_and_page(system):
    tests = (ROOT / "tests/modeling/meta_arch").glob("test_*.py")
    assert any(f'"{system}"' in file.read_text() for file in tests)
    link = f"(../../{SYSTEMS[system].__module__.replace('.', '/')}.py)"
    pages = (ROOT / "docs/systems").glob("*.md")
    assert any(link in page.read_text() for page in pages), f"no page in docs/systems has {link}"


@pytest.mark.parametrize("op", [path.name for path in (ROOT / "csrc").glob("*") if path.is_dir()])
def test_an_op_has_its_face_tests_benchmark_and_page(op):
    assert (ROOT / f"csrc/{op}/{op}.cpp").is_file()
    assert (ROOT / f"segdet/ops/{op}.py").is_file()
    assert (ROOT / f"tests/ops/test_{op}.py").is_file()
    assert (ROOT / f"benchmarks/ops/{op}.py").is_file()
    assert re.search(rf"`{op}\w*\(", (ROOT / "docs/ops.md").read_text())
