// Mask pasting on the CPU.
//
// Bilinear sampling is one axis after the other: a row of the mask is stretched over the columns of
// its box once, and every row of the image is a blend of two such rows, a loop without gathers.
// Only what a box covers is computed, and nothing else is written: the image is made of the
// system's zero pages, most of which no box touches.
#include "paste_masks.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif
#include <torch/csrc/stable/device.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "../simd.h"

namespace segdet::paste_masks {
namespace {

// The pixels of an axis that a mask can reach, and a few beside them: [begin, end).
struct Span {
  int64_t begin, end;
};

template <class T>
Span span_of(T low, T high, int64_t side, int64_t size) {
  if (!(make_axis(low, high, side).cells_per_pixel > T(0))) return {0, 0};
  const double reach = (double(high) - double(low)) / (2 * double(side)) + 1;
  const double begin = std::clamp(std::floor(double(low) - reach), 0.0, double(size));
  const double end = std::clamp(std::ceil(double(high) + reach), 0.0, double(size));
  return {int64_t(begin), int64_t(end)};
}

struct Window {
  Span rows, columns;
  int64_t width() const { return columns.end - columns.begin; }
};

// target_clones needs plain functions, hence one per type.
// cells (M + 2,) with a 0 at either end; cell[x] counts from the first of them.
#define SEGDET_PASTE_KERNELS(T)                                                                   \
  SEGDET_SIMD void stretch(const T* cells, const int32_t* cell, const T* fraction, int64_t width, \
                           T* out) {                                                              \
    for (int64_t x = 0; x < width; ++x)                                                           \
      out[x] = between(cells[cell[x]], cells[cell[x] + 1], fraction[x]);                          \
  }                                                                                               \
  SEGDET_SIMD void blend(const T* above, const T* below, T fraction, int64_t width, T threshold,  \
                         uint8_t* out) {                                                          \
    for (int64_t x = 0; x < width; ++x)                                                           \
      out[x] = between(above[x], below[x], fraction) >= threshold;                                \
  }                                                                                               \
  SEGDET_SIMD void blend_to_bytes(const T* above, const T* below, T fraction, int64_t width,      \
                                  uint8_t* out) {                                                 \
    for (int64_t x = 0; x < width; ++x) out[x] = as_byte(between(above[x], below[x], fraction));  \
  }
SEGDET_PASTE_KERNELS(float)
SEGDET_PASTE_KERNELS(double)
#undef SEGDET_PASTE_KERNELS

// The rows of one mask, stretched over its columns in the image when they are first asked for. Two
// neighbours are kept.
template <class T>
class StretchedRows {
 public:
  StretchedRows(int64_t side, int64_t max_width)
      : side_(side), cells_(side + 2), cell_(max_width), fraction_(max_width) {
    for (auto& row : rows_) row.resize(max_width);
  }

  void start(const T* mask, const Axis<T>& axis, const Span& columns) {
    mask_ = mask;
    width_ = columns.end - columns.begin;
    held_[0] = held_[1] = kNone;
    for (int64_t x = 0; x < width_; ++x) {
      Place<T> place{-1, T(0)};  // not reached: all of it the 0 beside the mask
      place_of(columns.begin + x, axis, side_, place);
      cell_[x] = place.cell + 1;
      fraction_[x] = place.fraction;
    }
  }

  // row in [-1, M]; the other parity's row stays valid.
  const T* at(int64_t row) {
    const int slot = row & 1;
    if (held_[slot] != row) {
      held_[slot] = row;
      if (row < 0 || row >= side_) {
        std::fill_n(rows_[slot].begin(), width_, T(0));
      } else {
        std::copy_n(mask_ + row * side_, side_, cells_.begin() + 1);
        stretch(cells_.data(), cell_.data(), fraction_.data(), width_, rows_[slot].data());
      }
    }
    return rows_[slot].data();
  }

 private:
  static constexpr int64_t kNone = -2;
  int64_t side_, width_ = 0;
  const T* mask_ = nullptr;
  int64_t held_[2] = {kNone, kNone};
  std::vector<T> cells_, rows_[2];
  std::vector<int32_t> cell_;
  std::vector<T> fraction_;
};

constexpr int64_t kGrain = 1 << 15;  // pixels that are worth a thread

// masks (N, M, M), boxes (N, 4) -> image (N, height, width), which is all zeros.
template <class T>
void paste(const Tensor& masks, const Tensor& boxes, int64_t height, int64_t width,
           double threshold, uint8_t* image) {
  const int64_t n = masks.size(0), side = masks.size(1);
  const T *mask = masks.const_data_ptr<T>(), *box = boxes.const_data_ptr<T>();
  std::vector<Window> windows(n);
  std::vector<int64_t> first_pixel(n + 1);  // of each window, were they all put in one line
  for (int64_t i = 0; i < n; ++i) {
    windows[i] = {span_of(box[4 * i + 1], box[4 * i + 3], side, height),
                  span_of(box[4 * i], box[4 * i + 2], side, width)};
    const Span rows = windows[i].rows;
    first_pixel[i + 1] = first_pixel[i] + (rows.end - rows.begin) * windows[i].width();
  }
  // A thread takes the rows that start in its part of that line.
  torch::stable::parallel_for(0, first_pixel[n], kGrain, [&](int64_t begin, int64_t end) {
    StretchedRows<T> rows(side, width);
    int64_t i =
        std::upper_bound(first_pixel.begin(), first_pixel.end(), begin) - first_pixel.begin() - 1;
    for (; i < n && first_pixel[i] < end; ++i) {
      const Window& window = windows[i];
      const int64_t wide = window.width();
      if (first_pixel[i + 1] == first_pixel[i]) continue;
      const auto row_from = [&](int64_t pixel) {
        const int64_t row = (std::max<int64_t>(pixel - first_pixel[i], 0) + wide - 1) / wide;
        return std::min(window.rows.begin + row, window.rows.end);
      };
      const T* corners = box + 4 * i;
      const Axis<T> y_axis = make_axis(corners[1], corners[3], side);
      rows.start(mask + i * side * side, make_axis(corners[0], corners[2], side), window.columns);
      for (int64_t y = row_from(begin); y < row_from(end); ++y) {
        Place<T> place;
        if (!place_of(y, y_axis, side, place)) continue;
        const T *above = rows.at(place.cell), *below = rows.at(place.cell + 1);
        uint8_t* out = image + (i * height + y) * width + window.columns.begin;
        if (threshold >= 0)
          blend(above, below, place.fraction, wide, lowest_drawn<T>(threshold), out);
        else
          blend_to_bytes(above, below, place.fraction, wide, out);
      }
    }
  });
}

// Zero pages of the system, large ones where it has them: fewer of them to fetch, for us and for
// whoever reads the image. torch's zeros are written one by one, which takes longer than pasting.
Tensor zero_pages(int64_t n, int64_t height, int64_t width, ScalarType type) {
  const std::size_t bytes = std::size_t(std::max<int64_t>(n * height * width, 1));
  void* memory = std::calloc(bytes, 1);
  SEGDET_CHECK(memory != nullptr, "segdet::paste_masks: no memory for ", n, " masks of ", height,
               " x ", width, " pixels");
#ifdef MADV_HUGEPAGE
  constexpr std::size_t kPage = 4096, kWorthAsking = 4 << 20;
  const std::size_t before = -std::size_t(memory) % kPage;  // advice is for whole pages
  if (bytes >= kWorthAsking)
    madvise(static_cast<char*>(memory) + before, (bytes - before) / kPage * kPage, MADV_HUGEPAGE);
#endif
  return torch::stable::from_blob(memory, {n, height, width}, {height * width, width, 1},
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU), type,
                                  &std::free);
}

}  // namespace

// masks (N, M, M), boxes (N, 4) XYXY in pixels -> (N, height, width) bool where a mask is at least
// `threshold`; uint8, 255 times the mask, where that is negative.
Tensor paste_masks_cpu(const Tensor& masks, const Tensor& boxes, int64_t height, int64_t width,
                       double threshold) {
  check_paste_masks(masks, boxes, height, width);
  const ScalarType type = common_type(masks, boxes);
  const Tensor cells = as_contiguous(masks, type), corners = as_contiguous(boxes, type);
  Tensor image = zero_pages(masks.size(0), height, width,
                            threshold >= 0 ? ScalarType::Bool : ScalarType::Byte);
  uint8_t* pixels = static_cast<uint8_t*>(image.mutable_data_ptr());
  if (type == ScalarType::Double)
    paste<double>(cells, corners, height, width, threshold, pixels);
  else
    paste<float>(cells, corners, height, width, threshold, pixels);
  return image;
}

}  // namespace segdet::paste_masks

STABLE_TORCH_LIBRARY_FRAGMENT(segdet, m) {
  m.def(
      "paste_masks(Tensor masks, Tensor boxes, SymInt height, SymInt width, float threshold) -> "
      "Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(segdet, CPU, m) {
  m.impl("paste_masks", TORCH_BOX(&segdet::paste_masks::paste_masks_cpu));
}
