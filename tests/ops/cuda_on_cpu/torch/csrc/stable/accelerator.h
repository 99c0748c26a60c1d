// Torch's header of that name, but there is one device to guard, and it has one stream.
#pragma once

#define DeviceGuard DeviceGuardOfTorch
#include_next <torch/csrc/stable/accelerator.h>
#undef DeviceGuard

namespace torch::stable::accelerator {

struct DeviceGuard {
  explicit DeviceGuard(DeviceIndex) {}
  ~DeviceGuard() {}
};

}  // namespace torch::stable::accelerator

inline AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return TORCH_SUCCESS;
}
