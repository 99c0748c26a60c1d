// Feature maps (B, C, H, W) in any memory format and any floating type.
#pragma once

#include <torch/headeronly/core/MemoryFormat.h>

#include <array>
#include <optional>

#include "stable.h"

namespace segdet {

// An array of four dimensions; strides in elements.
template <class T>
struct FeatureMap {
  T* data;
  int64_t image, channel, row, column;

  SEGDET_HOST_DEVICE int64_t offset(int64_t b, int64_t c, int64_t y, int64_t x) const {
    return b * image + c * channel + y * row + x * column;
  }
  SEGDET_HOST_DEVICE T& at(int64_t b, int64_t c, int64_t y, int64_t x) const {
    return data[offset(b, c, y, x)];
  }
};

template <class T>
FeatureMap<const T> read_map(const Tensor& map) {
  return {static_cast<const T*>(map.const_data_ptr()), map.stride(0), map.stride(1), map.stride(2),
          map.stride(3)};
}

template <class T>
FeatureMap<T> write_map(Tensor& map) {
  return {static_cast<T*>(map.mutable_data_ptr()), map.stride(0), map.stride(1), map.stride(2),
          map.stride(3)};
}

// Whether the channels of each cell lie next to each other; then they do in the result as well.
inline bool has_channels_last(const Tensor& map) {
  return map.size(1) > 1 && map.stride(1) == 1 && !map.is_contiguous();
}

// Of the type, device and memory format of `like`.
inline Tensor empty_map_like(const Tensor& like, std::array<int64_t, 4> sizes) {
  using torch::headeronly::MemoryFormat;
  return torch::stable::empty(
      sizes, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
      has_channels_last(like) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

}  // namespace segdet
