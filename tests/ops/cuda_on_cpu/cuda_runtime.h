// CUDA kernels as plain C++: enough of the language and its runtime for csrc/*/*.cu.
//
// Blocks run one after the other, and so do the threads of a block, each until it ends or waits in
// __syncthreads. For those that wait a fiber keeps the stack; a kernel that never waits needs one
// fiber. With the environment variable CUDA_ON_CPU_REVERSED set, blocks and threads run from the
// last to the first: what depends on an order that CUDA does not promise then shows.
#pragma once

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <type_traits>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __constant__ static const
#define __shared__ static
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)

#define SEGDET_LAUNCH(kernel, blocks, threads, stream) \
  ::cuda_on_cpu::launch(kernel, blocks, threads, stream)
#define SEGDET_CUDA_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(segdet, CPU, m)

using std::isfinite;
using std::isinf;
using std::isnan;

struct uint3 {
  unsigned int x, y, z;
};

struct dim3 {
  unsigned int x, y, z;
  constexpr dim3(unsigned int x = 1, unsigned int y = 1, unsigned int z = 1) : x(x), y(y), z(z) {}
};

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

// --- The runtime's functions ---------------------------------------------------------------------

using cudaStream_t = void*;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };

namespace cuda_on_cpu {
inline cudaError_t last_error = cudaSuccess;
}

inline cudaError_t cudaGetLastError() {
  const cudaError_t error = cuda_on_cpu::last_error;
  cuda_on_cpu::last_error = cudaSuccess;
  return error;
}

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid configuration argument";
}

inline cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t) {
  memset(target, value, bytes);
  return cudaSuccess;
}

// --- Functions of kernels ------------------------------------------------------------------------

template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}

template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}

inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline float __fdividef(float a, float b) { return a / b; }

template <class T, class Change>
T exchange(T* address, Change change) {
  const T old = *address;
  *address = change(old);
  return old;
}

// Of the types for which CUDA has them; nvcc refuses others.
template <class T>
T atomicAdd(T* address, std::common_type_t<T> value) {
  return exchange(address, [=](T old) { return old + value; });
}

template <class T>
T atomicMax(T* address, std::common_type_t<T> value) {
  return exchange(address, [=](T old) { return old < value ? value : old; });
}

template <class T>
T atomicMin(T* address, std::common_type_t<T> value) {
  return exchange(address, [=](T old) { return value < old ? value : old; });
}

template <class T>
T atomicOr(T* address, std::common_type_t<T> value) {
  return exchange(address, [=](T old) { return old | value; });
}

template <class T>
T atomicExch(T* address, std::common_type_t<T> value) {
  return exchange(address, [=](T) { return value; });
}

template <class T>
T atomicCAS(T* address, std::common_type_t<T> expected, std::common_type_t<T> value) {
  return exchange(address, [=](T old) { return old == expected ? value : old; });
}

// --- Blocks and threads --------------------------------------------------------------------------

namespace cuda_on_cpu {

constexpr size_t kStack = 256 * 1024;

struct Fiber {
  std::unique_ptr<char[]> stack{new char[kStack]};
  ucontext_t context;
  bool ended;
};

inline std::vector<Fiber*> idle;  // kept for the next block
inline ucontext_t scheduler;
inline struct Block* block;

// The threads of one block.
struct Block {
  void (*run_thread)(void*);
  void* kernel;
  unsigned int threads;
  bool reversed;
  unsigned int begun = 0;
  Fiber* running = nullptr;
  std::vector<Fiber*> waiting;  // one for each thread in __syncthreads

  void run() {
    block = this;
    while (begun < threads) {
      if (idle.empty()) idle.push_back(new Fiber);
      Fiber* fiber = idle.back();
      idle.pop_back();
      fiber->ended = false;
      getcontext(&fiber->context);
      fiber->context.uc_stack.ss_sp = fiber->stack.get();
      fiber->context.uc_stack.ss_size = kStack;
      fiber->context.uc_link = &scheduler;
      makecontext(&fiber->context, run_threads, 0);
      resume(fiber);
    }
    while (!waiting.empty()) {
      if (waiting.size() != threads)
        throw std::runtime_error("a thread ended while others of its block wait in __syncthreads");
      std::vector<Fiber*> all;
      all.swap(waiting);
      for (Fiber* fiber : all) resume(fiber);
    }
  }

  // In a fiber: threads that have not begun yet, until one of them waits.
  static void run_threads() {
    Fiber* self = block->running;
    while (block->begun < block->threads) {
      const unsigned int i = block->reversed ? block->threads - 1 - block->begun : block->begun;
      ++block->begun;
      threadIdx = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
      block->run_thread(block->kernel);
    }
    self->ended = true;
  }

  void wait() {
    const uint3 self = threadIdx;
    waiting.push_back(running);
    swapcontext(&running->context, &scheduler);
    threadIdx = self;
  }

  void resume(Fiber* fiber) {
    running = fiber;
    swapcontext(&scheduler, &fiber->context);
    if (fiber->ended) idle.push_back(fiber);
  }
};

template <class Kernel>
void run_grid(dim3 blocks, dim3 threads, Kernel kernel) {
  const uint64_t block_count = uint64_t(blocks.x) * blocks.y * blocks.z;
  const uint64_t thread_count = uint64_t(threads.x) * threads.y * threads.z;
  const bool valid = block_count > 0 && blocks.x < 1u << 31 && blocks.y < 1u << 16 &&
                     blocks.z < 1u << 16 && thread_count > 0 && thread_count <= 1024;
  if (!valid) {
    last_error = cudaErrorInvalidConfiguration;
    return;
  }
  const bool reversed = getenv("CUDA_ON_CPU_REVERSED") != nullptr;
  gridDim = blocks;
  blockDim = threads;
  for (uint64_t n = 0; n < block_count; ++n) {
    const uint64_t i = reversed ? block_count - 1 - n : n;
    blockIdx = {unsigned(i % blocks.x), unsigned(i / blocks.x % blocks.y),
                unsigned(i / blocks.x / blocks.y)};
    Block{[](void* kernel) { (*static_cast<Kernel*>(kernel))(); }, &kernel, unsigned(thread_count),
          reversed}
        .run();
  }
}

// launch(kernel, blocks, threads, stream)(arguments)
template <class... Parameters>
auto launch(void (*kernel)(Parameters...), dim3 blocks, dim3 threads, cudaStream_t) {
  return [=](Parameters... arguments) { run_grid(blocks, threads, [&] { kernel(arguments...); }); };
}

}  // namespace cuda_on_cpu

inline void __syncthreads() { cuda_on_cpu::block->wait(); }
