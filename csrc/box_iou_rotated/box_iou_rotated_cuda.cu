// Intersection over union of every pair of rotated boxes on CUDA, one thread for each.
#include "../cuda.cuh"
#include "box_iou_rotated.h"

namespace segdet::nms {
namespace {

template <class T>
__global__ void rotate_kernel(const T* boxes, int64_t n, RotatedBox<T>* out) {
  for (int64_t i = thread_index(); i < n; i += thread_count())
    out[i] = make_rotated_box(boxes + 5 * i);
}

template <class T>
__global__ void rotated_pairs_kernel(const RotatedBox<T>* a, const RotatedBox<T>* b, int64_t m,
                                     int64_t pairs, T* ious) {
  for (int64_t i = thread_index(); i < pairs; i += thread_count())
    ious[i] = iou(a[i / m], b[i % m]);
}

template <class T>
Tensor rotated_boxes_on_device(const Tensor& boxes, cudaStream_t stream) {
  const int64_t n = boxes.size(0);
  Tensor out =
      torch::stable::new_empty(boxes, {n * int64_t(sizeof(RotatedBox<T>))}, ScalarType::Byte);
  SEGDET_LAUNCH((rotate_kernel<T>), blocks_for(n), kThreads, stream)
  (boxes.const_data_ptr<T>(), n, reinterpret_cast<RotatedBox<T>*>(out.mutable_data_ptr<uint8_t>()));
  return out;
}

template <class T>
void fill_pairs_on_device(const Tensor& boxes1, const Tensor& boxes2, Tensor& out) {
  const cudaStream_t stream = current_stream(out);
  const Tensor a = rotated_boxes_on_device<T>(boxes1, stream);
  const Tensor b = rotated_boxes_on_device<T>(boxes2, stream);
  SEGDET_LAUNCH((rotated_pairs_kernel<T>), blocks_for(out.numel()), kThreads, stream)
  (reinterpret_cast<const RotatedBox<T>*>(a.const_data_ptr<uint8_t>()),
   reinterpret_cast<const RotatedBox<T>*>(b.const_data_ptr<uint8_t>()), boxes2.size(0), out.numel(),
   out.mutable_data_ptr<T>());
}

}  // namespace

Tensor box_iou_rotated_cuda(const Tensor& boxes1, const Tensor& boxes2) {
  check_rotated_pair(boxes1, boxes2);
  check_same_device(boxes1, boxes2, "box_iou_rotated");
  const torch::stable::accelerator::DeviceGuard guard(boxes1.get_device_index());
  const ScalarType type = compute_type(boxes1.scalar_type());
  const Tensor a = as_contiguous(boxes1, type), b = as_contiguous(boxes2, type);
  Tensor out = torch::stable::new_empty(a, {a.size(0), b.size(0)});
  if (out.numel() > 0) {
    if (type == ScalarType::Double)
      fill_pairs_on_device<double>(a, b, out);
    else
      fill_pairs_on_device<float>(a, b, out);
    check_launch("box_iou_rotated");
  }
  return as_contiguous(out, boxes1.scalar_type());
}

}  // namespace segdet::nms

SEGDET_CUDA_IMPL(m) { m.impl("box_iou_rotated", TORCH_BOX(&segdet::nms::box_iou_rotated_cuda)); }
