// Matrix NMS on CUDA. A mask becomes one bit for each pixel, word by word beside those of the other
// masks, so that neighbouring threads, which have neighbouring masks, read neighbouring words.
#include "../cuda.cuh"
#include "matrix_nms.h"

namespace segdet::nms {
namespace {

// masks (n, pixels) bytes of 0 and 1; order (n,): from the best down; bits (words, n) in that
// order.
__global__ void pack_masks_kernel(const bool* masks, const int64_t* order, int64_t n,
                                  int64_t pixels, int64_t words, Word* bits) {
  for (int64_t t = thread_index(); t < n * words; t += thread_count()) {
    const int64_t k = t / words, w = t % words;
    const bool* mask = masks + order[k] * pixels;
    const int64_t begin = w * kWordPixels;
    const int count = int(pixels - begin < kWordPixels ? pixels - begin : kWordPixels);
    Word word = 0;
    for (int bit = 0; bit < count; ++bit) word |= Word(mask[begin + bit]) << bit;
    bits[w * n + k] = word;
  }
}

__global__ void mask_areas_kernel(const Word* bits, int64_t n, int64_t words, int64_t* areas) {
  for (int64_t k = thread_index(); k < n; k += thread_count()) {
    int64_t area = 0;
    for (int64_t w = 0; w < words; ++w) area += count_bits(bits[w * n + k]);
    areas[k] = area;
  }
}

// ious (n, n): at (j, i) that of mask j with the better mask i < j of its class; else 0.
template <class T>
__global__ void mask_ious_kernel(const Word* bits, const int64_t* areas, const int64_t* classes,
                                 int64_t n, int64_t words, T* ious) {
  for (int64_t t = thread_index(); t < n * n; t += thread_count()) {
    const int64_t j = t / n, i = t % n;
    int64_t common = 0;
    if (i < j && classes[i] == classes[j])
      for (int64_t w = 0; w < words; ++w) common += count_bits(bits[w * n + i] & bits[w * n + j]);
    ious[t] = mask_iou<T>(common, areas[i], areas[j]);
  }
}

template <class T>
__global__ void most_overlap_kernel(const T* ious, int64_t n, T* most) {
  for (int64_t j = thread_index(); j < n; j += thread_count()) {
    T largest = 0;
    for (int64_t i = 0; i < j; ++i) largest = ious[j * n + i] > largest ? ious[j * n + i] : largest;
    most[j] = largest;
  }
}

// scores (n,) by index.
template <class T>
__global__ void decay_scores_kernel(const T* ious, const T* most, const int64_t* order, int64_t n,
                                    MatrixRule<T> rule, T* scores) {
  for (int64_t j = thread_index(); j < n; j += thread_count()) {
    T left = 1;
    for (int64_t i = 0; i < j; ++i) {
      const T iou = ious[j * n + i];
      if (!(iou > T(0))) continue;
      const T decay = rule.decay(iou, most[i]);
      left = decay < left ? decay : left;
    }
    scores[order[j]] *= left;
  }
}

// masks contiguous; scores contiguous, of type T: lowered in place.
template <class T>
void lower_scores(const Tensor& masks, const Tensor& classes, const Tensor& order,
                  const MatrixRule<T>& rule, Tensor& scores) {
  const int64_t n = masks.size(0), pixels = masks.numel() / n;
  const int64_t words = (pixels + kWordPixels - 1) / kWordPixels;
  const Tensor sorted = index_select(classes, order);
  Tensor packed = torch::stable::new_empty(order, {words * n});
  Tensor areas = torch::stable::new_empty(order, {n});
  Tensor ious = torch::stable::new_empty(scores, {n, n}),
         most = torch::stable::new_empty(scores, {n});
  Word* bits = reinterpret_cast<Word*>(packed.mutable_data_ptr<int64_t>());
  int64_t* area = areas.mutable_data_ptr<int64_t>();
  const int64_t* by_score = order.const_data_ptr<int64_t>();
  const cudaStream_t stream = current_stream(masks);
  SEGDET_LAUNCH((pack_masks_kernel), blocks_for(words * n + 1), kThreads, stream)
  (masks.const_data_ptr<bool>(), by_score, n, pixels, words, bits);
  SEGDET_LAUNCH((mask_areas_kernel), blocks_for(n), kThreads, stream)(bits, n, words, area);
  SEGDET_LAUNCH((mask_ious_kernel<T>), blocks_for(n * n), kThreads, stream)
  (bits, area, sorted.const_data_ptr<int64_t>(), n, words, ious.mutable_data_ptr<T>());
  SEGDET_LAUNCH((most_overlap_kernel<T>), blocks_for(n), kThreads, stream)
  (ious.const_data_ptr<T>(), n, most.mutable_data_ptr<T>());
  SEGDET_LAUNCH((decay_scores_kernel<T>), blocks_for(n), kThreads, stream)
  (ious.const_data_ptr<T>(), most.const_data_ptr<T>(), by_score, n, rule,
   scores.mutable_data_ptr<T>());
  check_launch("matrix_nms");
}

}  // namespace

Tensor matrix_nms_cuda(const Tensor& masks, const Tensor& scores, const Tensor& classes,
                       bool gaussian, double sigma) {
  check_matrix_nms(masks, scores, classes, sigma);
  check_same_device(masks, scores, "matrix_nms");
  check_same_device(masks, classes, "matrix_nms");
  const torch::stable::accelerator::DeviceGuard guard(masks.get_device_index());
  const ScalarType type = compute_type(scores.scalar_type());
  Tensor lowered = torch::stable::clone(as_contiguous(scores, type));
  if (masks.size(0) > 0) {
    const Tensor pixels = torch::stable::contiguous(masks);
    const Tensor class_of = as_contiguous(classes, ScalarType::Long);
    const Tensor order = argsort(scores, /*descending=*/true);
    if (type == ScalarType::Double)
      lower_scores(pixels, class_of, order, MatrixRule<double>{gaussian, sigma}, lowered);
    else
      lower_scores(pixels, class_of, order, MatrixRule<float>{gaussian, float(sigma)}, lowered);
  }
  return as_contiguous(lowered, scores.scalar_type());
}

}  // namespace segdet::nms

SEGDET_CUDA_IMPL(m) { m.impl("matrix_nms", TORCH_BOX(&segdet::nms::matrix_nms_cuda)); }
