// How a backward adds into a map on CUDA, where many threads may meet in one cell: in the order in
// which they come, or so that the order does not matter.
//
//   template <class Sum> __global__ void my_kernel(..., Sum sum) { ... sum.add(cell, value); }
//
//   scatter_into<float>(out, grad, deterministic, [&](auto sum) {
//     SEGDET_LAUNCH((my_kernel<decltype(sum)>), blocks, kThreads, stream)(..., sum);
//   });
#pragma once

#include <cmath>

#include "cuda.cuh"

namespace segdet {

// Fast; the order, hence the last bits, varies between runs.
template <class T>
struct AtomicSum {
  T* cells;
  __device__ void add(int64_t cell, T value) const { atomicAdd(cells + cell, value); }
};

// Whole multiples of 1 / *scale, whose sum is the same in any order. Two's complement: unsigned
// additions, the only ones there are of 64 bits, give the signed sum.
template <class T>
struct FixedPointSum {
  unsigned long long* cells;
  const double* scale;  // a power of two, or NaN
  __device__ void add(int64_t cell, T value) const {
    atomicAdd(cells + cell, static_cast<unsigned long long>(llrint(double(value) * *scale)));
  }
};

// A tensor of one element; NaN where there is one among the values.
inline Tensor largest_magnitude(const Tensor& values) {
  std::array<StableIValue, 1> stack{torch::stable::detail::from(values)};
  call_torch("aten::abs", "", stack);
  const std::array<int64_t, 0> all_dimensions{};
  return torch::stable::amax(torch::stable::detail::to<Tensor>(stack[0]), all_dimensions);
}

// The finest power of two with which no sum of `count` values passes 2^62. NaN where the largest is
// not finite.
template <class T>
__global__ void fixed_point_scale_kernel(const T* largest, int64_t count, double* scale) {
  if (thread_index() > 0) return;
  int value_bits = 0, count_bits = 0;
  frexp(double(*largest), &value_bits);
  frexp(double(count), &count_bits);
  const int bits = 62 - value_bits - count_bits;
  *scale = isfinite(*largest) ? ldexp(1.0, bits < 1000 ? bits : 1000) : double(nanf(""));
}

template <class T>
__global__ void fixed_point_to_kernel(const int64_t* sums, const double* scale, int64_t total,
                                      T* out) {
  for (int64_t i = thread_index(); i < total; i += thread_count())
    out[i] = T(double(sums[i]) / *scale);
}

// Fills `out` with what the kernel adds; a cell is counted in memory from out's first one, so `out`
// must be dense, in any order of dimensions.
//
// launch(sum): starts the kernel with an AtomicSum<T> or a FixedPointSum<T>. `values` set the scale
// of the latter: what one cell gets must not pass their number times the largest of them, all taken
// as magnitudes. Values that are not finite give NaN: where they land, or in all of `out` where
// deterministic.
template <class T, class Launch>
void scatter_into(Tensor& out, const Tensor& values, bool deterministic, const Launch& launch) {
  if (out.numel() == 0) return;
  if (!deterministic || values.numel() == 0) {
    torch::stable::zero_(out);
    if (values.numel() > 0) launch(AtomicSum<T>{out.mutable_data_ptr<T>()});
    return;
  }
  const cudaStream_t stream = current_stream(out);
  const Tensor largest = as_contiguous(largest_magnitude(values), out.scalar_type());
  Tensor scale = torch::stable::new_empty(out, {1}, ScalarType::Double);
  SEGDET_LAUNCH((fixed_point_scale_kernel<T>), 1, 1, stream)
  (largest.const_data_ptr<T>(), values.numel(), scale.mutable_data_ptr<double>());
  Tensor sums = torch::stable::new_zeros(out, {out.numel()}, ScalarType::Long);
  launch(FixedPointSum<T>{reinterpret_cast<unsigned long long*>(sums.mutable_data_ptr<int64_t>()),
                          scale.const_data_ptr<double>()});
  SEGDET_LAUNCH((fixed_point_to_kernel<T>), blocks_for(out.numel()), kThreads, stream)
  (sums.const_data_ptr<int64_t>(), scale.const_data_ptr<double>(), out.numel(),
   out.mutable_data_ptr<T>());
}

}  // namespace segdet
