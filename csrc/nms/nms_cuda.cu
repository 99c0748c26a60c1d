// Greedy non-maximum suppression on CUDA: one block of threads per class.
//
// Boxes are sorted by class, then by score. A block walks down its class; each box that is still
// there removes the ones after it that it overlaps, all threads at once. No memory beyond one flag
// per box, and classes cost each other nothing.
#include <cuda_runtime.h>

#include "../cuda.cuh"
#include "nms.h"

namespace segdet {
namespace {

constexpr int kSuppressThreads = 1024;

// boxes (N, 4) and classes (N,) in that order, or classes null: all are one class.
// removed (N,) starts as zeros. One block per box; those that do not begin a class leave at once.
template <class T>
__global__ void suppress_kernel(const T* boxes, const int64_t* classes, int64_t n,
                                double iou_threshold, bool* removed) {
  const int64_t begin = blockIdx.x;
  if (classes != nullptr && begin > 0 && classes[begin] == classes[begin - 1]) return;
  int64_t end = n;
  if (classes != nullptr) {  // the first box of a later class, by bisection
    int64_t low = begin;
    while (low + 1 < end) {
      const int64_t middle = (low + end) / 2;
      (classes[middle] == classes[begin] ? low : end) = middle;
    }
  }
  for (int64_t i = begin; i < end; ++i) {
    if (!removed[i]) {  // the same for all threads: nobody writes to box i any more
      const Box<T> box = make_box(boxes + 4 * i);
      for (int64_t j = i + 1 + threadIdx.x; j < end; j += blockDim.x)
        if (!removed[j] && overlap(box, make_box(boxes + 4 * j), iou_threshold)) removed[j] = true;
    }
    __syncthreads();
  }
}

// order (N,): boxes by class, then score.
Tensor removed_boxes(const Tensor& boxes, const Tensor& order, const int64_t* classes,
                     double iou_threshold) {
  const int64_t n = boxes.size(0);
  const ScalarType type = compute_type(boxes.scalar_type());
  const Tensor sorted = index_select(as_contiguous(boxes, type), order);
  Tensor removed = torch::stable::new_zeros(order, {n}, ScalarType::Bool);
  const unsigned int blocks = classes == nullptr ? 1 : static_cast<unsigned int>(n);
  const cudaStream_t stream = current_stream(boxes);
  if (type == ScalarType::Double) {
    SEGDET_LAUNCH((suppress_kernel<double>), blocks, kSuppressThreads, stream)
    (sorted.const_data_ptr<double>(), classes, n, iou_threshold, removed.mutable_data_ptr<bool>());
  } else {
    SEGDET_LAUNCH((suppress_kernel<float>), blocks, kSuppressThreads, stream)
    (sorted.const_data_ptr<float>(), classes, n, iou_threshold, removed.mutable_data_ptr<bool>());
  }
  check_launch("nms");
  return removed;
}

}  // namespace

Tensor nms_cuda(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  check_boxes(boxes, scores, "nms");
  check_same_device(boxes, scores, "nms");
  const torch::stable::accelerator::DeviceGuard guard(boxes.get_device_index());
  const Tensor order = argsort(scores, /*descending=*/true);
  if (boxes.size(0) == 0) return order;
  const Tensor removed = removed_boxes(boxes, order, nullptr, iou_threshold);
  return masked_select(order, logical_not(removed));
}

Tensor batched_nms_cuda(const Tensor& boxes, const Tensor& scores, const Tensor& idxs,
                        double iou_threshold) {
  check_boxes(boxes, scores, "batched_nms");
  check_classes(boxes, idxs);
  check_same_device(boxes, scores, "batched_nms");
  check_same_device(boxes, idxs, "batched_nms");
  const torch::stable::accelerator::DeviceGuard guard(boxes.get_device_index());
  const Tensor by_score = argsort(scores, /*descending=*/true);
  if (boxes.size(0) == 0) return by_score;
  const Tensor classes = index_select(as_contiguous(idxs, ScalarType::Long), by_score);
  const Tensor place = argsort(classes, /*descending=*/false);  // ranks by class, then score
  const Tensor sorted_classes = index_select(classes, place);
  const Tensor removed = removed_boxes(boxes, index_select(by_score, place),
                                       sorted_classes.const_data_ptr<int64_t>(), iou_threshold);
  // place is a permutation: sorting it gives its inverse, so this is `removed` by rank.
  const Tensor removed_by_rank = index_select(removed, argsort(place, /*descending=*/false));
  return masked_select(by_score, logical_not(removed_by_rank));
}

}  // namespace segdet

SEGDET_CUDA_IMPL(m) {
  m.impl("nms", TORCH_BOX(&segdet::nms_cuda));
  m.impl("batched_nms", TORCH_BOX(&segdet::batched_nms_cuda));
}
