// The windows of position-sensitive ROI pooling, for CPU and CUDA. Both axes follow the same rule.
#pragma once

#include "position_sensitive.h"

namespace segdet::ps_roi_pool {

// One axis of one region in cells of the map. In double, also for float32: where a window ends on a
// cell's border must not hang on rounding.
struct Axis {
  double start, bin;
  int64_t end;  // windows are cut off here
};

// Halves away from zero, like C's round. round_pixels: R-FCN's and FCIS's rule, the corners are
// rounded in the image and belong to the region; else torchvision's, they are rounded in the map,
// and the map's last row and column are never read.
SEGDET_HOST_DEVICE Axis make_axis(double low, double high, double spatial_scale, int64_t bins,
                                  int64_t size, bool round_pixels) {
  const double start = round_pixels ? round(low) * spatial_scale : round(low * spatial_scale);
  const double stop =
      round_pixels ? (round(high) + 1) * spatial_scale : round(high * spatial_scale);
  const double extent = fmax(stop - start, round_pixels ? 0.1 : 1.0);
  if (!(fabs(start) < kFarthest<double> && fabs(stop) < kFarthest<double>)) return {0, 0, 0};
  return {start, extent / double(bins), round_pixels ? size : size - 1};
}

// The cells that a bin averages: [begin, end).
struct Window {
  int64_t begin, end;
};

SEGDET_HOST_DEVICE Window window_of(const Axis& axis, int64_t bin) {
  const double limit = double(axis.end);
  const double begin = floor(axis.start + double(bin) * axis.bin);
  const double end = ceil(axis.start + double(bin + 1) * axis.bin);
  return {int64_t(fmin(fmax(begin, 0.0), limit)), int64_t(fmin(fmax(end, 0.0), limit))};
}

}  // namespace segdet::ps_roi_pool
