// Boxes from the best score down, on the CPU.
#pragma once

#include <array>
#include <cmath>
#include <cstring>
#include <vector>

#include "../stable.h"

namespace segdet::nms {

struct ScoreKey {
  uint32_t key, index;
};

// Ascending keys are descending scores; NaN comes first, -0 is 0.
inline uint32_t descending_key(float score) {
  if (std::isnan(score)) return 0;
  score += 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &score, sizeof bits);
  return bits >> 31 ? bits : ~bits & 0x7fffffff;
}

// Stable, by 11 bits at a time.
inline void radix_sort(std::vector<ScoreKey>& keys) {
  std::vector<ScoreKey> sorted(keys.size());
  for (int shift = 0; shift < 32; shift += 11) {
    std::array<std::size_t, 2049> begin{};
    for (const ScoreKey& one : keys) ++begin[(one.key >> shift & 2047) + 1];
    for (int digit = 0; digit < 2048; ++digit) begin[digit + 1] += begin[digit];
    for (const ScoreKey& one : keys) sorted[begin[one.key >> shift & 2047]++] = one;
    keys.swap(sorted);
  }
}

// scores (N,) -> (N,) int64 in the order of torch's stable sort, which took a third of the time of
// batched NMS of 20 000 boxes.
inline Tensor best_first(const Tensor& scores) {
  const int64_t n = scores.size(0);
  const bool narrow =
      is_floating(scores.scalar_type()) && compute_type(scores.scalar_type()) == ScalarType::Float;
  if (!narrow || n < 4096 || n >= int64_t(1) << 32) return argsort(scores, /*descending=*/true);
  const Tensor numbers = as_contiguous(scores, ScalarType::Float);
  const float* score = numbers.const_data_ptr<float>();
  std::vector<ScoreKey> keys(n);
  for (int64_t i = 0; i < n; ++i) keys[i] = {descending_key(score[i]), uint32_t(i)};
  radix_sort(keys);
  Tensor order = torch::stable::new_empty(scores, {n}, ScalarType::Long);
  int64_t* index = order.mutable_data_ptr<int64_t>();
  for (int64_t k = 0; k < n; ++k) index[k] = keys[k].index;
  return order;
}

}  // namespace segdet::nms
