// The kernels for x86-64.
#pragma once

#include "../addition.h"
#include "../lowbit_conv.h"
#include "../lowbit_matmul.h"

namespace qil_deploy {

extern const Kernel lookup_avx512_kernel;
extern const Kernel lookup_avx2_kernel;
extern const Kernel narrow_avx2_kernel;
extern const Kernel depthwise_avx2_kernel;
extern const Kernel depthwise_by_channels_avx2_kernel;
extern const Kernel direct_avx2_kernel;
extern const Kernel strided_avx2_kernel;
extern const Kernel winograd_avx2_kernel;

extern const MatMulKernel matmul_avx512_kernel;

extern const AddKernel add_avx512_kernel;
extern const AddKernel add_avx2_kernel;
extern const RescaleKernel rescale_avx512_kernel;
extern const RescaleKernel rescale_avx2_kernel;

}  // namespace qil_deploy
