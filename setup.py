"""Builds the compiled ops: a C++ library, and a CUDA library beside it where nvcc is found.

Neither knows Python: they use libtorch's stable ABI alone and are loaded with
`torch.ops.load_library`, so one build serves every Python and every torch from 2.11 on. Where
nothing can be compiled the package still installs, and `segdet.ops` falls back to slower code.

Environment:
    SEGDET_CUDA: 0 builds no CUDA library; 1 makes its failure an error.
    CUDA_HOME: the CUDA toolkit; else the one whose nvcc is on PATH.
    CXX: the C++ compiler; c++ by default.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

LIBRARY = "segdet.ops.libsegdet_ops"
CUDA_LIBRARY = "segdet.ops.libsegdet_ops_cuda"
TORCH_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # 2.11
# PTX for compute capability 7.5, which any later GPU compiles when it first runs, and made from it
# the machine code of the A100 and H100 classes. A PTX of their own would parse torch's headers once
# more for each, 2 s, to convert bfloat16 in one instruction instead of a few.
GPUS = "arch=compute_75,code=[compute_75,sm_80,sm_90]"
CXX_FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall"]
# No fused multiply-add where boxes meet a threshold: they are judged alike on every machine. CUDA
# kernels for which it pays call fma().
EXACT_OPS = {"box_iou_rotated", "fast_nms", "nms", "nms_rotated", "soft_nms"}
NVCC_FLAGS = ["-O3", "-std=c++17", "-Xcompiler=-fPIC,-fvisibility=hidden", "--fmad=false"]


def find_nvcc() -> str | None:
    """The CUDA compiler of CUDA_HOME, else of PATH."""
    home = os.environ.get("CUDA_HOME")
    if home and (nvcc := Path(home, "bin", "nvcc")).exists():
        return str(nvcc)
    return shutil.which("nvcc")


def libraries() -> list[Extension]:
    """What to build: always the C++ library, the CUDA library as SEGDET_CUDA and nvcc say."""

    def files(suffix: str) -> list[str]:
        return sorted(str(path) for path in Path("csrc").rglob(f"*{suffix}"))

    shared = [*files(".h"), "setup.py"]
    found = [Extension(LIBRARY, files(".cpp"), depends=shared, optional=True)]
    wanted = os.environ.get("SEGDET_CUDA", "")
    if wanted not in {"", "0", "1"}:
        raise SystemExit(f"SEGDET_CUDA must be 0 or 1, is {wanted!r}")
    if wanted == "1" or (wanted == "" and find_nvcc()):
        depends = [*shared, *files(".cuh")]
        found.append(Extension(CUDA_LIBRARY, files(".cu"), depends=depends, optional=wanted != "1"))
    return found


class BuildOps(build_ext):
    """Compiles and links both libraries at once, with plain compiler calls."""

    def run(self) -> None:
        """Build, and say where there is nothing to build for the GPU."""
        if all(ext.name != CUDA_LIBRARY for ext in self.extensions):
            print("segdet: no nvcc, or SEGDET_CUDA=0: ops for the CPU only", file=sys.stderr)
        self.parallel = len(self.extensions)
        super().run()

    def get_ext_filename(self, fullname: str) -> str:
        """A name without the Python version."""
        return f"{fullname.replace('.', '/')}.so"

    def build_extension(self, ext: Extension) -> None:
        """Build one library unless it is newer than all it is made of."""
        target = Path(self.get_ext_fullpath(ext.name))
        inputs = [Path(name) for name in (*ext.sources, *ext.depends)]
        newest = max(path.stat().st_mtime for path in inputs)
        if not self.force and target.exists() and target.stat().st_mtime > newest:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            make = self._make_cuda if ext.name == CUDA_LIBRARY else self._make_cpp
            make(ext, target)
        except (CompileError, OSError) as error:
            kind = "CUDA ops" if ext.name == CUDA_LIBRARY else "compiled ops"
            print(f"segdet: no {kind} were built, slower code stands in: {error}", file=sys.stderr)
            raise CompileError(str(error)) from error

    def _make_cpp(self, ext: Extension, target: Path) -> None:
        """Compile several sources at once, of them those alone that changed."""
        objects, torch_flags, libtorch = self._surroundings(ext)
        cxx = os.environ.get("CXX", "c++")
        shared = max(Path(name).stat().st_mtime for name in ext.depends)

        def compile_one(source: str) -> str:
            path = objects / f"{Path(source).name}.o"
            newest = max(shared, Path(source).stat().st_mtime)
            if self.force or not path.exists() or path.stat().st_mtime < newest:
                exact = ["-ffp-contract=off"] if Path(source).parent.name in EXACT_OPS else []
                call(cxx, *CXX_FLAGS, *torch_flags, *exact, "-c", source, "-o", str(path))
            return str(path)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            compiled = list(pool.map(compile_one, ext.sources))
        call(cxx, "-shared", *compiled, *libtorch, "-o", str(target))

    def _make_cuda(self, ext: Extension, target: Path) -> None:
        """Compile all sources as one: torch's headers cost 4 s each time, an op about 1 s."""
        objects, torch_flags, libtorch = self._surroundings(ext)
        nvcc = find_nvcc()
        if nvcc is None:
            raise CompileError("no nvcc, neither in CUDA_HOME nor on PATH")
        every = objects / "every_op.cu"
        every.write_text("".join(f'#include "{source}"\n' for source in ext.sources))
        compiled = f"{every}.o"
        gpus = f"-gencode={GPUS}"
        flags = [*NVCC_FLAGS, gpus, "--threads=2", "-DUSE_CUDA", "-I.", *torch_flags]
        call(nvcc, *flags, "-c", str(every), "-o", compiled)
        # Named as needed without being there: torch's CPU builds do not carry it.
        stub = objects / "libtorch_cuda.so"
        call(os.environ.get("CXX", "c++"), "-shared", f"-Wl,-soname,{stub.name}", "-o", str(stub))
        libtorch += [f"-L{objects}", "-Xlinker=--no-as-needed", "-ltorch_cuda"]
        call(nvcc, "-shared", "-cudart=static", compiled, *libtorch, "-o", str(target))

    def _surroundings(self, ext: Extension) -> tuple[Path, list[str], list[str]]:
        """The folder for objects, torch's flags for the compiler and those for the linker."""
        torch = importlib.util.find_spec("torch")
        if torch is None or torch.origin is None:
            raise CompileError("torch is not installed here (try --no-build-isolation)")
        torch_folder = Path(torch.origin).parent
        objects = Path(self.build_temp, ext.name)
        objects.mkdir(parents=True, exist_ok=True)
        headers = ["-isystem", str(torch_folder / "include")]
        return objects, [TORCH_ABI, *headers], [f"-L{torch_folder / 'lib'}", "-ltorch_cpu"]


def call(*command: str) -> None:
    """Run a compiler quietly; its output becomes the error where it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise CompileError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


class AnyPythonWheel(bdist_wheel):
    """The libraries depend on the platform but on no Python version."""

    def get_tag(self) -> tuple[str, str, str]:
        """Keep the platform, leave the Python and its ABI open."""
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=libraries(),
    cmdclass={"build_ext": BuildOps, "bdist_wheel": AnyPythonWheel},
)
