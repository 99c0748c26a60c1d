#!/usr/bin/env python
"""Runs the ops' own tests with their kernels compiled in ways that show mistakes.

tools/check_kernels.py --sanitize            C++ kernels under the address and undefined-behaviour
                                             sanitizers (make sanitize)
tools/check_kernels.py --cuda                CUDA kernels as plain C++, without a GPU: they take the
                                             place of the C++ kernels
tools/check_kernels.py --cuda --reversed     likewise, blocks and threads from the last to the first
tools/check_kernels.py --cuda --sanitize     both; needs g++ like all of these
tools/check_kernels.py --cuda -- -k nms      pytest's options follow

Everything happens in a copy of the package in a temporary folder.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
TORCH = Path(torch.__file__).parent
GXX = [
    "g++",
    "-O1",
    "-g",
    "-std=c++17",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-Wall",
]
GXX += ["-DTORCH_TARGET_VERSION=0x020b000000000000", f"-isystem{TORCH / 'include'}"]
LIBTORCH = [f"-L{TORCH / 'lib'}", "-ltorch_cpu"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
STAND_INS = ROOT / "tests" / "ops" / "cuda_on_cpu"  # for CUDA's headers


def main(argv: list[str]) -> int:
    """Copy, compile, run; the exit status is pytest's."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cuda", action="store_true", help="CUDA kernels, compiled for the CPU")
    parser.add_argument("--reversed", action="store_true", help="the last thread first")
    parser.add_argument("--sanitize", action="store_true", help="stop at the first bad access")
    parser.add_argument("pytest", nargs="*", help="options for pytest, after --")
    args = parser.parse_args(argv)
    if not (args.cuda or args.sanitize):
        parser.error("--cuda, --sanitize or both")
    if shutil.which("g++") is None:
        raise SystemExit("check_kernels needs g++")
    with tempfile.TemporaryDirectory(prefix="check_kernels.") as name:
        folder = Path(name)
        copy_package(folder)
        flags = SANITIZERS if args.sanitize else []
        environment = {**os.environ, "OMP_NUM_THREADS": "2"}
        if args.sanitize:
            build_cpu(folder / "segdet" / "ops" / "libsegdet_ops.so", folder, flags)
            environment |= sanitizer_environment()
        if args.cuda:
            environment["SEGDET_CUDA_ON_CPU"] = str(build_cuda(folder, flags))
        if args.reversed:
            environment["CUDA_ON_CPU_REVERSED"] = "1"
        command = [sys.executable, "-m", "pytest", "tests/ops", "-q", "-p", "no:cacheprovider"]
        command += ["--capture=sys"]  # the sanitizers write past Python
        command += args.pytest or ["-m", "not slow"]
        return subprocess.run(command, cwd=folder, env=environment).returncode


def copy_package(folder: Path) -> None:
    """The package, the ops' tests and their settings."""
    shutil.copytree(ROOT / "segdet", folder / "segdet")
    ops = folder / "tests" / "ops"
    shutil.copytree(ROOT / "tests" / "ops", ops, ignore=shutil.ignore_patterns("test_library.py"))
    shutil.copy(ROOT / "tests" / "conftest.py", folder / "tests")
    shutil.copy(ROOT / "pyproject.toml", folder)


def build_cpu(library: Path, folder: Path, flags: list[str]) -> None:
    """The C++ kernels, as many sources at once as there are cores."""

    def compile_one(source: Path) -> str:
        compiled = folder / f"{source.name}.o"
        call([*GXX, *flags, "-c", str(source), "-o", str(compiled)])
        return str(compiled)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = list(pool.map(compile_one, sorted((ROOT / "csrc").rglob("*.cpp"))))
    library.unlink(missing_ok=True)
    call(["g++", "-shared", *flags, *compiled, "-o", str(library), *LIBTORCH])


def build_cuda(folder: Path, flags: list[str]) -> Path:
    """The CUDA kernels, as one translation unit like in setup.py."""
    every, library = folder / "every_op.cpp", folder / "cuda_on_cpu.so"
    sources = sorted((ROOT / "csrc").rglob("*.cu"))
    every.write_text("".join(f'#include "{source}"\n' for source in sources))
    headers = f"-I{STAND_INS}"
    call([*GXX, *flags, headers, "-shared", str(every), "-o", str(library), *LIBTORCH])
    return library


def sanitizer_environment() -> dict[str, str]:
    """Python is not compiled for them: their runtime has to be there before it starts."""
    names = ("libasan.so", "libstdc++.so")
    found = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True)
        for name in names
    ]
    return {
        "LD_PRELOAD": " ".join(done.stdout.strip() for done in found),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def call(command: list[str]) -> None:
    """Run a compiler; what it says goes to the terminal."""
    if subprocess.run(command).returncode:
        raise SystemExit(f"failed: {' '.join(command)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
