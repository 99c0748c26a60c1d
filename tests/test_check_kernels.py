"""CUDA kernels run without a GPU, as plain C++ (tests/ops/cuda_on_cpu, tools/check_kernels.py)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STAND_INS = ROOT / "tests" / "ops" / "cuda_on_cpu"
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

# Each of 2 blocks sums its threads' numbers by halves, and adds the sum to the total.
PROGRAM = """
#include <cuda_runtime.h>
#include <cstdio>

__global__ void sum_kernel(const float* values, float* total) {
  __shared__ float sums[8];
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  sums[threadIdx.x] = values[i];
  __syncthreads();
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) atomicAdd(total, sums[0]);
}

__global__ void divergent_kernel() {
  if (threadIdx.x > 0) __syncthreads();
}

int main() {
  float values[16], total = 0;
  for (int i = 0; i < 16; ++i) values[i] = i;
  SEGDET_LAUNCH(sum_kernel, 2, 8, nullptr)(values, &total);
  printf("%g %s\\n", total, cudaGetErrorString(cudaGetLastError()));
  SEGDET_LAUNCH(sum_kernel, 0, 8, nullptr)(values, &total);
  printf("%s\\n", cudaGetErrorString(cudaGetLastError()));
  try {
    SEGDET_LAUNCH(divergent_kernel, 1, 8, nullptr)();
  } catch (const std::exception& error) {
    printf("%s\\n", error.what());
  }
}
"""


@pytest.mark.parametrize("environment", [{}, {"CUDA_ON_CPU_REVERSED": "1"}])
def test_blocks_threads_barriers_and_errors(tmp_path, environment):
    (tmp_path / "sum.cpp").write_text(PROGRAM)
    program = tmp_path / "sum"
    command = ["g++", "-std=c++17", f"-I{STAND_INS}", tmp_path / "sum.cpp", "-o", program]
    subprocess.run(command, check=True)
    done = subprocess.run(
        [program], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "120 no error",
        "invalid configuration argument",
        "a thread ended while others of its block wait in __syncthreads",
    ]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("order", [[], ["--reversed"]])
def test_cuda_kernels_pass_the_tests_of_their_ops(order):
    command = [sys.executable, ROOT / "tools" / "check_kernels.py", "--cuda", *order]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
