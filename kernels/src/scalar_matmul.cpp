// The product by its definition, on every processor: the reference for the other kernels.
#include "lowbit_matmul.h"

namespace qil_deploy {

const MatMulKernel scalar_matmul_kernel = {
    "scalar",
    [](const MatMul& matmul) { return (size_t(matmul.columns) + 63) / 64 * 64; },
    [](const MatMul& matmul, const float* a, int8_t* arranged) {
      RowSums found{true, 0, 0};
      for (int start = 0; start < matmul.columns; start += matmul.block) {
        int largest = 0;
        for (int k = start; k < start + matmul.block; k++) {
          if (!(a[k] >= -127 && a[k] <= 127)) return RowSums{false, 0, 0};  // or is no number
          const int code = int(a[k]);
          if (float(code) != a[k]) return RowSums{false, 0, 0};
          const int magnitude = code < 0 ? -code : code;
          largest = magnitude > largest ? magnitude : largest;
          found.sum += code;
          found.magnitudes += magnitude;
          arranged[k] = int8_t(code);
        }
        found.exact = found.exact && largest == 127;
      }
      return found;
    },
    [](const MatMul& matmul, const uint8_t* weights, const int8_t* arranged, const RowSums* sums, size_t rows, int first,
       int last, float* y) {
      const int per_byte = matmul.per_byte(), mask = (1 << matmul.bits) - 1, offset = 1 << (matmul.bits - 1);
      const size_t row_bytes = scalar_matmul_kernel.row_bytes(matmul);
      for (size_t row = 0; row < rows; row++, arranged += row_bytes) {
        for (int n = first; n < last; n++) {
          const uint8_t* packed = weights + size_t(n) * matmul.weight_bytes();
          int64_t total = -offset * sums[row].sum;
          for (int k = 0; k < matmul.columns; k++) {
            total += int{arranged[k]} * (packed[k / per_byte] >> matmul.bits * (k % per_byte) & mask);
          }
          y[row * matmul.outputs + n] = float(total);
        }
      }
    },
};

}  // namespace qil_deploy
