// Resizing of 8-bit pictures on the CPU: Pillow's bilinear filter, to the bit.
//
// Columns first, rounded to 8 bits, then rows; weights are fixed-point numbers of 22 bits. Between
// the two, channels come apart, so that rows are blended in loops without gathers. Pictures whose
// height shrinks are left to Pillow: which axis it takes first there depends on its version.
#include <torch/csrc/stable/device.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "../simd.h"
#include "../stable.h"

namespace segdet::resize_image {
namespace {

constexpr int kChannels = 3;
constexpr int kBits = 22;
constexpr int32_t kHalf = 1 << (kBits - 1);

// Output i is the sum of `count` inputs from first[i] on, by weights[i * count ...].
struct Taps {
  int64_t count;
  std::vector<int64_t> first;
  std::vector<int32_t> weights;
};

// A tent around the centre of each output, one input wide or, where the picture shrinks, one
// output. Where it does not shrink, rounding leaves at most two inputs with a weight.
Taps make_taps(int64_t inputs, int64_t outputs) {
  const double scale = double(inputs) / double(outputs), reach = std::max(scale, 1.0);
  Taps taps{1, std::vector<int64_t>(outputs), {}};
  std::vector<std::vector<int32_t>> tents(outputs);
  for (int64_t i = 0; i < outputs; ++i) {
    const double centre = (double(i) + 0.5) * scale;
    const int64_t begin = std::max(int64_t(centre - reach + 0.5), int64_t{0});
    const int64_t end = std::min(int64_t(centre + reach + 0.5), inputs);
    const auto height = [&](int64_t j) {
      return std::max(1 - std::abs((double(j) - centre + 0.5) * (1 / reach)), 0.0);
    };
    double sum = 0;
    for (int64_t j = begin; j < end; ++j) sum += height(j);
    taps.first[i] = begin;
    for (int64_t j = begin; j < end; ++j) {
      const auto weight = int32_t(0.5 + height(j) / sum * (1 << kBits));
      if (weight == 0 && tents[i].empty())
        taps.first[i] = j + 1;
      else
        tents[i].push_back(weight);
    }
    while (tents[i].back() == 0) tents[i].pop_back();
    taps.count = std::max(taps.count, int64_t(tents[i].size()));
  }
  // All of one length: at the far border a tent is moved back, behind weights of 0.
  taps.weights.assign(outputs * taps.count, 0);
  for (int64_t i = 0; i < outputs; ++i) {
    const int64_t back = std::max(taps.first[i] + taps.count - inputs, int64_t{0});
    taps.first[i] -= back;
    std::copy(tents[i].begin(), tents[i].end(), &taps.weights[i * taps.count + back]);
  }
  return taps;
}

typedef int32_t Lanes __attribute__((vector_size(16)));
typedef uint8_t Bytes __attribute__((vector_size(4)));

// taps: its number where it is known when this is compiled, else 0.
template <int64_t taps>
SEGDET_INLINE void stretch_by(const uint8_t* row, const int64_t* first, const int32_t* weights,
                              int64_t count, int64_t width, uint8_t* red, uint8_t* green,
                              uint8_t* blue) {
  const int64_t n = taps ? taps : count;
  for (int64_t x = 0; x < width; ++x) {
    Lanes sum = {kHalf, kHalf, kHalf, 0};
    for (int64_t j = 0; j < n; ++j) {
      Bytes pixel;
      std::memcpy(&pixel, row + kChannels * (first[x] + j), sizeof(pixel));
      sum += __builtin_convertvector(pixel, Lanes) * weights[x * n + j];
    }
    sum >>= kBits;
    red[x] = uint8_t(sum[0]);
    green[x] = uint8_t(sum[1]);
    blue[x] = uint8_t(sum[2]);
  }
}

// One row of pixels, stretched; row has a byte behind its last pixel. Results: a row of each plane.
SEGDET_SIMD void stretch(const uint8_t* row, const int64_t* first, const int32_t* weights,
                         int64_t count, int64_t width, uint8_t* red, uint8_t* green,
                         uint8_t* blue) {
  if (count == 2)
    stretch_by<2>(row, first, weights, count, width, red, green, blue);
  else
    stretch_by<0>(row, first, weights, count, width, red, green, blue);
}

SEGDET_SIMD void blend(const uint8_t* above, const uint8_t* below, int32_t first, int32_t second,
                       int64_t width, uint8_t* out) {
  for (int64_t x = 0; x < width; ++x)
    out[x] = uint8_t((kHalf + first * above[x] + second * below[x]) >> kBits);
}

// image (rows, columns, 3) -> planes (3, rows, width).
void stretch_columns(const uint8_t* image, int64_t rows, int64_t columns, int64_t width,
                     uint8_t* planes) {
  const Taps taps = make_taps(columns, width);
  const int64_t bytes = columns * kChannels;
  std::vector<uint8_t> row(bytes + 1);
  for (int64_t y = 0; y < rows; ++y) {
    std::memcpy(row.data(), image + y * bytes, bytes);
    uint8_t* out = planes + y * width;
    stretch(row.data(), taps.first.data(), taps.weights.data(), taps.count, width, out,
            out + rows * width, out + 2 * rows * width);
  }
}

// plane (rows, width) -> out (height, width), height >= rows: no output sees more than two rows.
void stretch_rows(const uint8_t* plane, const Taps& taps, int64_t width, uint8_t* out) {
  const int64_t height = taps.first.size(), last = taps.count - 1;
  for (int64_t y = 0; y < height; ++y) {
    const uint8_t* row = plane + taps.first[y] * width;
    const int32_t* weights = &taps.weights[y * taps.count];
    blend(row, row + last * width, weights[0], last ? weights[1] : 0, width, out + y * width);
  }
}

Tensor resize_image(const Tensor& image, int64_t height, int64_t width) {
  SEGDET_CHECK(
      image.dim() == 3 && image.size(2) == kChannels && image.size(0) > 0 && image.size(1) > 0,
      "segdet::resize_image: image must be (H, W, 3) and not empty, has ", image.dim(),
      " dimensions, last size ", image.dim() ? image.size(image.dim() - 1) : 0);
  SEGDET_CHECK(image.scalar_type() == ScalarType::Byte,
               "segdet::resize_image: image must be uint8");
  SEGDET_CHECK(height >= image.size(0) && width > 0,
               "segdet::resize_image: size must be at least (", image.size(0), ", 1), is (", height,
               ", ", width, ")");
  const Tensor pixels = torch::stable::contiguous(image);
  const int64_t rows = image.size(0), columns = image.size(1);
  Tensor out = torch::stable::new_empty(image, {kChannels, height, width});
  uint8_t* planes = out.mutable_data_ptr<uint8_t>();
  if (rows == height) {
    stretch_columns(pixels.const_data_ptr<uint8_t>(), rows, columns, width, planes);
    return out;
  }
  const std::unique_ptr<uint8_t[]> stretched(new uint8_t[kChannels * rows * width]);
  stretch_columns(pixels.const_data_ptr<uint8_t>(), rows, columns, width, stretched.get());
  const Taps taps = make_taps(rows, height);
  for (int64_t c = 0; c < kChannels; ++c)
    stretch_rows(stretched.get() + c * rows * width, taps, width, planes + c * height * width);
  return out;
}

}  // namespace
}  // namespace segdet::resize_image

STABLE_TORCH_LIBRARY_FRAGMENT(segdet, m) {
  m.def("resize_image(Tensor image, int height, int width) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(segdet, CPU, m) {
  m.impl("resize_image", TORCH_BOX(&segdet::resize_image::resize_image));
}
