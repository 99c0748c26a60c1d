// What every op shares: checks with readable messages and calls of torch's own ops, all through
// libtorch's stable ABI. The headers of torch 2.11 suffice to compile this.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

#if defined(__CUDACC__)
#define SEGDET_HOST_DEVICE __host__ __device__ inline
#else
#define SEGDET_HOST_DEVICE inline
#endif

// Raises RuntimeError in Python; the parts of the message are put together only then.
#define SEGDET_CHECK(condition, ...)                               \
  do {                                                             \
    if (!(condition)) ::segdet::fail(::segdet::text(__VA_ARGS__)); \
  } while (false)

namespace segdet {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

[[noreturn]] inline void fail(const std::string& message) { throw std::runtime_error(message); }

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

inline bool is_floating(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
         type == ScalarType::BFloat16;
}

// The type that an op computes in: float64 stays, everything narrower becomes float32.
inline ScalarType compute_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// A contiguous tensor of that type; the tensor itself where it is one already.
inline Tensor as_contiguous(const Tensor& tensor, ScalarType type) {
  return torch::stable::contiguous(tensor.scalar_type() == type ? tensor
                                                                : torch::stable::to(tensor, type));
}

template <std::size_t N>
void call_torch(const char* name, const char* overload, std::array<StableIValue, N>& stack) {
  const auto status = torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION);
  SEGDET_CHECK(status == TORCH_SUCCESS, "segdet: torch refused ", name, ", see its message above");
}

// Indices that sort a tensor along a dimension; equal elements keep their order.
inline Tensor argsort(const Tensor& keys, bool descending, int64_t dim = 0) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(keys), from(std::optional<bool>(true)), from(dim),
                                    from(descending)};
  call_torch("aten::sort", "stable", stack);
  torch::stable::detail::to<Tensor>(stack[0]);  // takes ownership of the values and drops them
  return torch::stable::detail::to<Tensor>(stack[1]);
}

inline Tensor index_select(const Tensor& tensor, const Tensor& index) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(tensor), from(int64_t{0}), from(index)};
  call_torch("aten::index_select", "", stack);
  return torch::stable::detail::to<Tensor>(stack[0]);
}

inline Tensor logical_not(const Tensor& mask) {
  std::array<StableIValue, 1> stack{torch::stable::detail::from(mask)};
  call_torch("aten::logical_not", "", stack);
  return torch::stable::detail::to<Tensor>(stack[0]);
}

inline Tensor masked_select(const Tensor& tensor, const Tensor& mask) {
  using torch::stable::detail::from;
  std::array<StableIValue, 2> stack{from(tensor), from(mask)};
  call_torch("aten::masked_select", "", stack);
  return torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace segdet
