// Products of rows of codes and packed weights, and the interface of their kernels.
//
// The operator LowBitMatMul is ONNX Runtime's MatMulNBits on integers. Weights stay as stored in the file, 2 or 4 bits
// each, low bits first, with an offset: W = stored - 2**(bits - 1). One row of the input at a time is multiplied by every
// row of weights,
//
//   y[n] = sum over k of a[k] * W[n, k] = sum a[k] * stored[n, k] - 2**(bits - 1) * sum a[k]
//
// ONNX Runtime rounds the floats `a` of a block to int8 by a scale of its own, max|a| / 127. The exporter puts the
// constant 127 into every block of codes, so that this scale is 1 and nothing is rounded, and proves that all sums stay
// below 2**24, where float32 holds every integer. For any other row the run is refused: its result would depend on the
// rounding of the implementation.
//
// For one image a linear layer reads every weight once, and is bound by memory. Nothing is repacked: only the bytes of the
// file are in memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qil_deploy {

struct MatMul {
  int outputs = 0, columns = 0;  // N, K
  int bits = 2;                  // 2 or 4
  int block = 128;               // columns of one block; divides `columns`

  int per_byte() const { return 8 / bits; }
  size_t weight_bytes() const { return size_t(columns) / per_byte(); }  // of one output
};

// Properties of a row of the input.
struct RowSums {
  bool exact;          // integers, in every block up to 127 and no further
  int64_t sum;         // of all
  int64_t magnitudes;  // of their magnitudes
};

struct MatMulKernel {
  const char* name;
  size_t (*row_bytes)(const MatMul& matmul);  // of an arranged row; a multiple of 64
  // Converts a row of floats to bytes, in the kernel's own order. If they are not exact, the output is meaningless.
  RowSums (*arrange)(const MatMul& matmul, const float* a, int8_t* arranged);
  // Fills in outputs [first, last) of every row: y[row * outputs + n]. sums: of each row.
  void (*multiply)(const MatMul& matmul, const uint8_t* weights, const int8_t* arranged, const RowSums* sums, size_t rows,
                   int first, int last, float* y);
};

extern const MatMulKernel scalar_matmul_kernel;

}  // namespace qil_deploy
