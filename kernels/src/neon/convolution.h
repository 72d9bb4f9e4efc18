// The kernels of this folder, for 64-bit ARM without dot-product instructions (Cortex-A53, Cortex-A72).
#pragma once

#include "../lowbit_conv.h"

namespace qil_deploy::neon {

extern const Kernel depthwise_kernel;
extern const Kernel lookup_kernel;
extern const Kernel narrow_kernel;

// Whether the processor has dot-product instructions, with which ONNX Runtime's own kernels are as fast.
bool has_dot_product();

}  // namespace qil_deploy::neon
