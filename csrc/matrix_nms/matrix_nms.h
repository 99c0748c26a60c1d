// The rule and the checks of matrix NMS, for CPU and CUDA.
#pragma once

#include "../nms/nms.h"

namespace segdet::nms {

using Word = unsigned long long;
constexpr int64_t kWordPixels = 64;

SEGDET_HOST_DEVICE int count_bits(Word word) {
#if defined(__CUDA_ARCH__)
  return __popcll(word);
#else
  return __builtin_popcountll(word);
#endif
}

// 0 for two masks without a pixel.
template <class T>
SEGDET_HOST_DEVICE T mask_iou(int64_t inter, int64_t area_a, int64_t area_b) {
  return inter > 0 ? T(inter) / T(area_a + area_b - inter) : T(0);
}

template <class T>
struct MatrixRule {
  bool gaussian;
  T sigma;

  // How much of a score is left beside a better mask at this IoU, if `most` is the largest that
  // the better mask has itself with one that is still better.
  SEGDET_HOST_DEVICE T decay(T iou, T most) const {
    if (gaussian) return std::exp(sigma * (most * most - iou * iou));
    return most < T(1) ? (1 - iou) / (1 - most) : T(1);  // a copy leaves it to its original
  }
};

inline void check_matrix_nms(const Tensor& masks, const Tensor& scores, const Tensor& classes,
                             double sigma) {
  SEGDET_CHECK(masks.dim() == 3 && masks.scalar_type() == ScalarType::Bool,
               "segdet::matrix_nms: masks must be (N, H, W) bool, has ", masks.dim(),
               " dimensions and is ", torch::headeronly::toString(masks.scalar_type()));
  SEGDET_CHECK(scores.dim() == 1 && scores.size(0) == masks.size(0),
               "segdet::matrix_nms: scores must be (N,) with N = ", masks.size(0), ", has ",
               scores.dim(), " dimensions and ", scores.numel(), " elements");
  SEGDET_CHECK(is_floating(scores.scalar_type()), "segdet::matrix_nms: scores must be floating ",
               "point, is ", torch::headeronly::toString(scores.scalar_type()));
  SEGDET_CHECK(classes.dim() == 1 && classes.size(0) == masks.size(0),
               "segdet::matrix_nms: classes must be (N,) with N = ", masks.size(0), ", has ",
               classes.dim(), " dimensions and ", classes.numel(), " elements");
  SEGDET_CHECK(!is_floating(classes.scalar_type()),
               "segdet::matrix_nms: classes must be whole numbers, is ",
               torch::headeronly::toString(classes.scalar_type()));
  SEGDET_CHECK(sigma > 0, "segdet::matrix_nms: sigma must be > 0, is ", sigma);
}

}  // namespace segdet::nms
