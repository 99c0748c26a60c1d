// Where the samples of RoIAlign lie (Mask R-CNN, arXiv:1703.06870, section 3), for CPU and CUDA.
//
// A region is cut into bins, a bin into samples; a sample at (y, x) is bilinear between cells. All
// of it is a product of a rule for y and the same rule for x, so everything here is about one axis.
#pragma once

#include <cmath>

#include "../stable.h"

namespace segdet {

// One axis of one region, in cells of the feature map.
template <class T>
struct Axis {
  T start;    // of the first bin
  T bin;      // extent of a bin; may be negative where the caller fixed the number of samples
  T samples;  // per bin, a whole number; 0: the region has none
};

// Beyond this a coordinate has no sub-cell part left and a sample count no longer fits.
template <class T>
constexpr T kFarthest = sizeof(T) == 8 ? T(1LL << 48) : T(1LL << 22);

// low, high: the region's two coordinates on this axis, in pixels. sampling_ratio <= 0: as many
// samples per bin as it has cells. Not aligned: no half-cell shift, extent at least one cell.
// A region that is not finite, or farther out than any map, has no samples.
template <class T>
SEGDET_HOST_DEVICE Axis<T> make_axis(T low, T high, T spatial_scale, bool aligned, int64_t bins,
                                     int64_t sampling_ratio) {
  const T shift = aligned ? T(0.5) : T(0);
  const T start = low * spatial_scale - shift;
  T extent = high * spatial_scale - shift - start;
  if (!aligned && extent < T(1)) extent = T(1);
  if (!(fabs(start) < kFarthest<T> && fabs(extent) < kFarthest<T>)) return {T(0), T(0), T(0)};
  const T bin = extent / T(bins);
  const T adaptive = bin > T(0) ? ceil(bin) : T(0);
  return {start, bin, sampling_ratio > 0 ? T(sampling_ratio) : adaptive};
}

// The same for positions in float64. How the bins' extent was rounded decides the number of
// samples, so that is done in the regions' own type, as the originals and the CUDA kernels do.
template <class T>
Axis<double> make_wide_axis(T low, T high, double spatial_scale, bool aligned, int64_t bins,
                            int64_t sampling_ratio) {
  const Axis<T> axis = make_axis<T>(low, high, T(spatial_scale), aligned, bins, sampling_ratio);
  return {axis.start, axis.bin, axis.samples};
}

template <class T>
SEGDET_HOST_DEVICE T sample_position(const Axis<T>& axis, int64_t bin, int64_t sample) {
  return axis.start + T(bin) * axis.bin + (T(sample) + T(0.5)) * axis.bin / axis.samples;
}

// The samples of a bin that can lie within a map of `size` cells: [begin, end). The rest need not
// be looked at, which bounds the work for regions much larger than the map.
struct SampleRange {
  int64_t begin, end;
};

template <class T>
SEGDET_HOST_DEVICE SampleRange samples_within(const Axis<T>& axis, int64_t bin, int64_t size) {
  T begin = T(0), end = axis.samples;
  if (axis.bin > T(0)) {
    const T first = axis.start + T(bin) * axis.bin, per_cell = axis.samples / axis.bin;
    begin = fmax(begin, floor((T(-1) - first) * per_cell) - T(1));  // one more against rounding
    end = fmin(end, ceil((T(size) - first) * per_cell) + T(1));
  }
  return begin < end ? SampleRange{int64_t(begin), int64_t(end)} : SampleRange{0, 0};
}

// The two cells that a sample lies between; it takes `fraction` of `high`, the rest of `low`.
template <class T>
struct Tap {
  int64_t low, high;
  T fraction;
};

// False: the sample lies outside of [-1, size] and counts as zero. Between the centre of an outer
// cell and that limit it has that cell's value.
template <class T>
SEGDET_HOST_DEVICE bool tap_at(T position, int64_t size, Tap<T>& tap) {
  if (!(position >= T(-1) && position <= T(size))) return false;
  if (position < T(0)) position = T(0);
  tap.low = int64_t(position);
  tap.high = tap.low + 1;
  tap.fraction = position - T(tap.low);
  if (tap.high >= size) tap = {size - 1, size - 1, T(0)};
  return true;
}

inline void check_rois(const Tensor& rois, const char* op) {
  SEGDET_CHECK(rois.dim() == 2, "segdet::", op, ": rois must be (R, 5), has ", rois.dim(),
               " dimensions");
  SEGDET_CHECK(rois.size(1) == 5, "segdet::", op, ": rois must be (R, 5), has last size ",
               rois.size(1));
  SEGDET_CHECK(is_floating(rois.scalar_type()), "segdet::", op,
               ": rois must be floating point, is ",
               torch::headeronly::toString(rois.scalar_type()));
}

inline void check_map(const Tensor& map, const char* name, const char* op) {
  SEGDET_CHECK(map.dim() == 4, "segdet::", op, ": ", name, " must be (B, C, H, W), has ", map.dim(),
               " dimensions");
  SEGDET_CHECK(is_floating(map.scalar_type()), "segdet::", op, ": ", name,
               " must be floating point, is ", torch::headeronly::toString(map.scalar_type()));
}

inline void check_cells(int64_t height, int64_t width, const char* op) {
  SEGDET_CHECK(height > 0 && width > 0, "segdet::", op,
               ": input must have at least one cell, has height ", height, " and width ", width);
}

inline void check_roi_align(const Tensor& input, const Tensor& rois, int64_t pooled_height,
                            int64_t pooled_width) {
  check_map(input, "input", "roi_align");
  check_rois(rois, "roi_align");
  check_cells(input.size(2), input.size(3), "roi_align");
  SEGDET_CHECK(pooled_height > 0 && pooled_width > 0,
               "segdet::roi_align: output_size must be positive, is (", pooled_height, ", ",
               pooled_width, ")");
}

inline void check_roi_align_backward(const Tensor& grad, const Tensor& rois, int64_t channels,
                                     int64_t height, int64_t width) {
  check_map(grad, "grad", "roi_align_backward");
  check_rois(rois, "roi_align_backward");
  check_cells(height, width, "roi_align_backward");
  SEGDET_CHECK(grad.size(0) == rois.size(0) && grad.size(1) == channels,
               "segdet::roi_align_backward: grad must be (R, C, h, w) with R = ", rois.size(0),
               " and C = ", channels, ", starts with (", grad.size(0), ", ", grad.size(1), ")");
}

}  // namespace segdet
