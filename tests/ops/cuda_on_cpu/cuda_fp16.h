#pragma once

#include <torch/headeronly/util/Half.h>

using __half = torch::headeronly::Half;
using half = __half;

inline float __half2float(__half value) { return value; }
inline __half __float2half(float value) { return value; }
inline __half __float2half_rn(float value) { return value; }
