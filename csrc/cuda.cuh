// What the CUDA sources share: the current stream, launch sizes and checks.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>

#include "stable.h"

// A launch and a registration that tests/ops/cuda_on_cpu turns into plain C++.
// SEGDET_LAUNCH((kernel<float>), blocks, threads, stream)(arguments)
#ifndef SEGDET_LAUNCH
#define SEGDET_LAUNCH(kernel, blocks, threads, stream) kernel<<<(blocks), (threads), 0, (stream)>>>
#define SEGDET_CUDA_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(segdet, CUDA, m)
#endif

namespace segdet {

constexpr int kThreads = 256;

inline unsigned int blocks_for(int64_t total) {
  return static_cast<unsigned int>(std::min<int64_t>((total + kThreads - 1) / kThreads, 65535));
}

__device__ inline int64_t thread_index() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }

__device__ inline int64_t thread_count() { return int64_t(gridDim.x) * blockDim.x; }

inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  const auto status = aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream);
  SEGDET_CHECK(status == TORCH_SUCCESS, "segdet: torch gives no CUDA stream");
  return static_cast<cudaStream_t>(stream);
}

inline void check_launch(const char* op) {
  const cudaError_t error = cudaGetLastError();
  SEGDET_CHECK(error == cudaSuccess, "segdet::", op, ": ", cudaGetErrorString(error));
}

// A kernel here was chosen because one of them is on a GPU.
inline void check_same_device(const Tensor& a, const Tensor& b, const char* op) {
  const bool same = a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index();
  SEGDET_CHECK(same, "segdet::", op, ": all tensors must be on the same device");
}

}  // namespace segdet
