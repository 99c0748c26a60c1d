// Where the samples of RoIAlign lie in a rotated region, for CPU and CUDA.
//
// The bins and samples are those of an upright region around (0, 0), which is then turned and moved
// to its centre.
#pragma once

#include "../feature_map.h"
#include "../roi_align/roi_align.h"

namespace segdet::roi_align_rotated {

template <class T>
struct Span {
  T low, high;
};

// In cells of the feature map. Axes y and x are the region's own, from its centre.
template <class T>
struct Region {
  Axis<T> y, x;
  T centre_y, centre_x, sine, cosine;
  Span<T> map_y, map_x;  // the part of either axis beside which the map lies
};

template <class T>
SEGDET_HOST_DEVICE Axis<T> centred_axis(T extent, int64_t bins, int64_t sampling_ratio) {
  const T bin = extent / T(bins), adaptive = bin > T(0) ? ceil(bin) : T(0);
  return {-extent / T(2), bin, sampling_ratio > 0 ? T(sampling_ratio) : adaptive};
}

// From the least to the largest y * along_y + x * along_x in the rectangle of ys and xs.
template <class T>
SEGDET_HOST_DEVICE Span<T> shadow(const Span<T>& ys, const Span<T>& xs, T along_y, T along_x) {
  return {fmin(ys.low * along_y, ys.high * along_y) + fmin(xs.low * along_x, xs.high * along_x),
          fmax(ys.low * along_y, ys.high * along_y) + fmax(xs.low * along_x, xs.high * along_x)};
}

// roi: image, centre x, centre y, width, height in pixels, degrees counter-clockwise. A region that
// is not finite, or has a number beyond `farthest`, has no samples.
template <class T>
SEGDET_HOST_DEVICE Region<T> make_region(const T* roi, T farthest, T spatial_scale,
                                         int64_t sampling_ratio, int64_t pooled_height,
                                         int64_t pooled_width, int64_t height, int64_t width) {
  const T x = roi[1] * spatial_scale - T(0.5), y = roi[2] * spatial_scale - T(0.5);
  const T w = roi[3] * spatial_scale, h = roi[4] * spatial_scale;
  if (!(fabs(x) < farthest && fabs(y) < farthest && fabs(w) < farthest && fabs(h) < farthest &&
        fabs(roi[5]) < farthest))
    return {{0, 0, 0}, {0, 0, 0}, 0, 0, 0, 1, {0, 0}, {0, 0}};
  const T angle = roi[5] * T(3.14159265358979323846 / 180);
  const T sine = sin(angle), cosine = cos(angle);
  // Samples on the map lie in [-1, size]; one cell more against rounding.
  const Span<T> rows{T(-2) - y, T(height + 1) - y}, columns{T(-2) - x, T(width + 1) - x};
  return {centred_axis(h, pooled_height, sampling_ratio),
          centred_axis(w, pooled_width, sampling_ratio),
          y,
          x,
          sine,
          cosine,
          shadow(rows, columns, cosine, sine),
          shadow(rows, columns, -sine, cosine)};
}

// The samples of a bin beside the map: [begin, end). Bounds the work for regions that are much
// larger than the map, wherever their centre lies.
template <class T>
SEGDET_HOST_DEVICE SampleRange samples_beside(const Span<T>& map, const Axis<T>& axis,
                                              int64_t bin) {
  T begin = T(0), end = axis.samples;
  if (axis.bin > T(0)) {
    const T first = axis.start + T(bin) * axis.bin, per_cell = axis.samples / axis.bin;
    begin = fmax(begin, floor((map.low - first) * per_cell) - T(1));  // one more against rounding
    end = fmin(end, ceil((map.high - first) * per_cell) + T(1));
  }
  return begin < end ? SampleRange{int64_t(begin), int64_t(end)} : SampleRange{0, 0};
}

// y, x: of a sample on the region's axes. False: it lies off the map.
template <class T>
SEGDET_HOST_DEVICE bool taps_at(const Region<T>& region, T y, T x, int64_t height, int64_t width,
                                Tap<T>& row, Tap<T>& column) {
  return tap_at(y * region.cosine - x * region.sine + region.centre_y, height, row) &&
         tap_at(y * region.sine + x * region.cosine + region.centre_x, width, column);
}

template <class T>
SEGDET_HOST_DEVICE T sample_count(const Region<T>& region) {
  return fmax(region.y.samples * region.x.samples, T(1));
}

inline void check_rotated_rois(const Tensor& rois, const char* op) {
  SEGDET_CHECK(rois.dim() == 2 && rois.size(1) == 6, "segdet::", op, ": rois must be (R, 6), has ",
               rois.dim(), " dimensions, the last of size ", rois.dim() > 0 ? rois.size(-1) : 0);
  SEGDET_CHECK(is_floating(rois.scalar_type()), "segdet::", op,
               ": rois must be floating point, is ",
               torch::headeronly::toString(rois.scalar_type()));
}

inline void check_forward(const Tensor& input, const Tensor& rois, int64_t pooled_height,
                          int64_t pooled_width) {
  check_map(input, "input", "roi_align_rotated");
  check_rotated_rois(rois, "roi_align_rotated");
  check_cells(input.size(2), input.size(3), "roi_align_rotated");
  SEGDET_CHECK(pooled_height > 0 && pooled_width > 0,
               "segdet::roi_align_rotated: output_size must be positive, is (", pooled_height, ", ",
               pooled_width, ")");
}

inline void check_backward(const Tensor& grad, const Tensor& rois, int64_t channels, int64_t height,
                           int64_t width) {
  check_map(grad, "grad", "roi_align_rotated_backward");
  check_rotated_rois(rois, "roi_align_rotated_backward");
  check_cells(height, width, "roi_align_rotated_backward");
  SEGDET_CHECK(
      grad.size(0) == rois.size(0) && grad.size(1) == channels,
      "segdet::roi_align_rotated_backward: grad must be (R, C, h, w) with R = ", rois.size(0),
      " and C = ", channels, ", starts with (", grad.size(0), ", ", grad.size(1), ")");
}

}  // namespace segdet::roi_align_rotated
