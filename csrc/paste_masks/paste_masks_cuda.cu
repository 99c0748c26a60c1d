// Mask pasting on CUDA: one thread per four neighbouring pixels, which it writes as one word.
#include <cuda_runtime.h>

#include "../cuda.cuh"
#include "paste_masks.h"

namespace segdet::paste_masks {
namespace {

constexpr int64_t kPixels = 4;

// What the masks of a call have in common.
template <class T>
struct Pasting {
  const T *masks, *boxes;
  int64_t side, height, width;
  T threshold;  // below 0: bytes
};

template <class T>
__device__ uint8_t pixel_at(const Pasting<T>& in, int64_t i, int64_t y, int64_t x) {
  const T* box = in.boxes + 4 * i;
  Place<T> row, column;
  if (!place_of(y, make_axis(box[1], box[3], in.side), in.side, row)) return 0;
  if (!place_of(x, make_axis(box[0], box[2], in.side), in.side, column)) return 0;
  T blended[2];
  for (int k = 0; k < 2; ++k) {
    const int64_t r = row.cell + k, left = column.cell, right = column.cell + 1;
    const T* cells = in.masks + (i * in.side + r) * in.side;
    const bool inside = r >= 0 && r < in.side;
    blended[k] = between(inside && left >= 0 ? cells[left] : T(0),
                         inside && right < in.side ? cells[right] : T(0), column.fraction);
  }
  const T value = between(blended[0], blended[1], row.fraction);
  return in.threshold < T(0) ? as_byte(value) : uint8_t(value >= in.threshold);
}

template <class T>
__global__ void paste_masks_kernel(Pasting<T> in, int64_t total, uint8_t* image) {
  const int64_t groups = (total + kPixels - 1) / kPixels;
  for (int64_t group = thread_index(); group < groups; group += thread_count()) {
    const int64_t first = group * kPixels;
    int64_t x = first % in.width, y = first / in.width % in.height;
    int64_t i = first / in.width / in.height;
    const int64_t count = total - first < kPixels ? total - first : kPixels;
    uint32_t word = 0;
    for (int64_t k = 0; k < count; ++k) {
      word |= uint32_t(pixel_at(in, i, y, x)) << (8 * k);
      if (++x == in.width) {
        x = 0;
        if (++y == in.height) y = 0, ++i;
      }
    }
    if (count == kPixels) {
      reinterpret_cast<uint32_t*>(image)[group] = word;
    } else {
      for (int64_t k = 0; k < count; ++k) image[first + k] = uint8_t(word >> (8 * k));
    }
  }
}

template <class T>
void launch(const Tensor& masks, const Tensor& boxes, double threshold, Tensor& image) {
  const Pasting<T> in{masks.const_data_ptr<T>(),
                      boxes.const_data_ptr<T>(),
                      masks.size(1),
                      image.size(1),
                      image.size(2),
                      threshold >= 0 ? lowest_drawn<T>(threshold) : T(-1)};
  const int64_t total = image.numel(), groups = (total + kPixels - 1) / kPixels;
  SEGDET_LAUNCH((paste_masks_kernel<T>), blocks_for(groups), kThreads, current_stream(masks))
  (in, total, static_cast<uint8_t*>(image.mutable_data_ptr()));
  check_launch("paste_masks");
}

}  // namespace

Tensor paste_masks_cuda(const Tensor& masks, const Tensor& boxes, int64_t height, int64_t width,
                        double threshold) {
  check_paste_masks(masks, boxes, height, width);
  check_same_device(masks, boxes, "paste_masks");
  const torch::stable::accelerator::DeviceGuard guard(masks.get_device_index());
  const ScalarType type = common_type(masks, boxes);
  const Tensor cells = as_contiguous(masks, type), corners = as_contiguous(boxes, type);
  Tensor image = torch::stable::new_empty(cells, {masks.size(0), height, width},
                                          threshold >= 0 ? ScalarType::Bool : ScalarType::Byte);
  if (image.numel() == 0) return image;
  if (type == ScalarType::Double)
    launch<double>(cells, corners, threshold, image);
  else
    launch<float>(cells, corners, threshold, image);
  return image;
}

}  // namespace segdet::paste_masks

SEGDET_CUDA_IMPL(m) { m.impl("paste_masks", TORCH_BOX(&segdet::paste_masks::paste_masks_cuda)); }
