#!/usr/bin/env python
"""Shows that one wheel serves every torch: installs it beside two of them and runs the ops' tests.

1. Builds the wheel with this interpreter's torch and lists what its libraries ask of others:
   nothing of Python, of libtorch only the C functions of the stable ABI.
2. For the oldest torch that is supported and the newest that pip finds: a fresh virtual environment
   without any compiler, the wheel in it, the tests of the ops on the installed package.
3. In the same environments, with compilers: the libraries are compiled from source.

An environment takes about 6 GB and three minutes; it is deleted before the next one is made. Ends
with a table, and with status 1 if anything failed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST, NEWEST = "torch==2.11.*", "torch"
GIGABYTES = 8  # free, for one environment and what pip unpacks on the way
LIBRARIES = r"linux-vdso|libtorch_cpu|libtorch_cuda|libstdc\+\+|libm|libgcc_s|libc|ld-linux-.*"
STABLE_ABI = r"aoti_torch_\w+|torch_\w+"
PROBE = """
import platform, torch, segdet, segdet.ops as ops
print(torch.__version__, platform.python_version(), "+".join(sorted(ops.BINARY_DEVICES)), sep=", ")
print(segdet.__file__)
"""


def main(argv: list[str]) -> int:
    """Wheel, libraries, environments, table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--torch",
        nargs="+",
        default=[OLDEST, NEWEST],
        metavar="REQUIREMENT",
        help=f"for pip (default: {OLDEST} and {NEWEST}, which is the newest)",
    )
    args = parser.parse_args(argv)
    results: list[tuple[str, str, bool]] = []  # subject, what was found, whether that is right
    with tempfile.TemporaryDirectory(prefix="check_wheel.") as name:
        folder = Path(name)
        wheel = build_wheel(folder)
        results += check_libraries(wheel, folder / "unpacked")
        for requirement in args.torch:
            free = shutil.disk_usage(folder).free / 1e9
            if free < GIGABYTES:
                raise SystemExit(f"{folder}: {free:.0f} GB free, {GIGABYTES} are needed")
            environment = folder / "environment"
            results += check_environment(requirement, wheel, environment, folder)
            shutil.rmtree(environment)
    for subject, found, right in results:
        print(f"{'ok' if right else 'FAILED':<7} {subject:<24} {found}")
    return 0 if all(right for *_, right in results) else 1


def build_wheel(folder: Path) -> Path:
    """With this interpreter's torch and compilers."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run([*command, "--wheel-dir", str(folder), "."], cwd=ROOT)
    (wheel,) = folder.glob("segdet-*.whl")
    return wheel


def check_libraries(wheel: Path, folder: Path) -> list[tuple[str, str, bool]]:
    """What the libraries in the wheel need of other libraries."""
    zipfile.ZipFile(wheel).extractall(folder)
    results = [("wheel", wheel.name, "-py3-none-" in wheel.name)]
    libraries = sorted(folder.rglob("*.so"))
    results += [("wheel", f"{len(libraries)} libraries", len(libraries) > 0)]
    for library in libraries:
        foreign = foreign_libraries(run(["ldd", str(library)]))
        results.append((library.name, f"other libraries: {listed(foreign)}", not foreign))
        symbols = run(["nm", "-D", "--undefined-only", str(library)])
        foreign = foreign_symbols(symbols)
        results.append((library.name, f"symbols beyond the ABI: {listed(foreign)}", not foreign))
        results.append((library.name, f"needs {newest_versions(symbols)}", True))
    return results


def foreign_libraries(ldd: str) -> list[str]:
    """Names in ldd's output beyond libtorch, the C and the C++ library."""
    names = [Path(line.split()[0]).name for line in ldd.splitlines()]
    return [name for name in names if not re.fullmatch(rf"({LIBRARIES})\.so[.\d]*", name)]


def foreign_symbols(nm: str) -> list[str]:
    """Undefined symbols that neither the C and C++ libraries (a version each) nor the ABI have."""
    required = [line.split()[-1] for line in nm.splitlines() if line.split()[-2] == "U"]
    return [one for one in required if "@" not in one and not re.fullmatch(STABLE_ABI, one)]


def newest_versions(nm: str) -> str:
    """The oldest C and C++ library with which the symbols are found."""
    newest: dict[str, tuple[int, ...]] = {}
    for library, version in re.findall(r"@(GLIBC|GLIBCXX)_([\d.]+)", nm):
        newest[library] = max(newest.get(library, ()), tuple(map(int, version.split("."))))
    return ", ".join(f"{name} {'.'.join(map(str, newest[name]))}" for name in sorted(newest))


def check_environment(
    requirement: str, wheel: Path, folder: Path, work: Path
) -> list[tuple[str, str, bool]]:
    """Installs torch and the wheel, runs the tests, compiles from source."""
    print(f"{requirement}: a new environment", file=sys.stderr)
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    bare = {"PATH": str(folder / "bin"), "CXX": "no-such-compiler", "HOME": str(work)}
    without_compiler = {**os.environ, **bare}
    without_compiler.pop("PYTHONPATH", None)
    install = [python, "-m", "pip", "install", "--quiet", "--no-cache-dir"]
    packages = [requirement, "torchvision", f"{wheel}[test]"]
    run([*install, *packages], env=without_compiler)

    tests = work / "tests"
    if not tests.exists():
        copy_tests(work)
    found, place = run([python, "-c", PROBE], cwd=work, env=without_compiler).splitlines()
    results = [(requirement, found, Path(place).is_relative_to(folder) and "cpu" in found)]
    command = [python, "-m", "pytest", "tests/ops", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=work, env=without_compiler, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout, done.stderr, file=sys.stderr)
    results.append((requirement, done.stdout.splitlines()[-1], done.returncode == 0))

    run([*install, "setuptools>=77"])
    build = [python, "setup.py", "-q", "build_ext", "--build-lib", str(work / "lib")]
    done = subprocess.run(
        [*build, "--build-temp", str(work / "temp"), "--force"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    expected = 1 + (shutil.which("nvcc") is not None)  # beside the C++ ops those for CUDA
    built = sorted(path.name for path in (work / "lib").rglob("*.so"))
    shutil.rmtree(work / "lib", ignore_errors=True)
    print(done.stderr, file=sys.stderr, end="")
    right = done.returncode == 0 and len(built) == expected
    results.append((requirement, f"from source: {listed(built)}", right))
    return results


def copy_tests(folder: Path) -> None:
    """The ops' tests, without those that build the checkout."""
    ignored = shutil.ignore_patterns("test_library.py", "__pycache__")
    shutil.copytree(ROOT / "tests" / "ops", folder / "tests" / "ops", ignore=ignored)
    shutil.copy(ROOT / "tests" / "conftest.py", folder / "tests")
    shutil.copy(ROOT / "pyproject.toml", folder)


def listed(names: list[str]) -> str:
    """Names in a row; "none" for no names."""
    return ", ".join(names) or "none"


def run(command: list[str], cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """What a command printed; its failure ends the check."""
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"failed: {' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
