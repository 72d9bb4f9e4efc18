// A node LowBitMatMul: reads it, checks for inputs that ONNX Runtime would round, runs the kernel of its set.
#include <memory>
#include <string>
#include <vector>

#include "lowbit_matmul.h"
#include "node.h"
#include "scratch.h"

namespace qil_deploy {

namespace {

enum Index { a_input, weights_input, scales_input, zero_points_input, input_count };
constexpr int64_t exact_level = 4;             // accuracy_level of blocks in int8
constexpr int64_t sum_limit = int64_t{1} << 24;  // float32 holds all integers up to it
constexpr int64_t largest_size = 1 << 24;
constexpr int64_t wanted_items = 32;  // enough for many threads to share them evenly

int size_attribute(const abi::KernelInfo* info, const char* name) {
  const int64_t size = integer(info, name, 0);
  if (size < 1 || size > largest_size) refuse(std::string(name) + " must lie in 1..2**24, and is " + std::to_string(size));
  return int(size);
}

MatMul read_matmul(const abi::KernelInfo* info) {
  MatMul matmul;
  matmul.outputs = size_attribute(info, "N");
  matmul.columns = size_attribute(info, "K");
  matmul.block = size_attribute(info, "block_size");
  const int64_t bits = integer(info, "bits", 4), level = integer(info, "accuracy_level", 0);
  if (bits != 2 && bits != 4) refuse("bits must be 2 or 4, and is " + std::to_string(bits));
  if (level != exact_level) refuse("accuracy_level must be 4, and is " + std::to_string(level));
  matmul.bits = int(bits);
  if (matmul.columns % matmul.block != 0 || matmul.block % 16 != 0) {
    refuse("block_size must divide K and be a multiple of 16, and is " + std::to_string(matmul.block));
  }
  return matmul;
}

void check_weights(const MatMul& matmul, const Tensor<uint8_t>& weights) {
  if (weights.shape != std::vector<int64_t>{matmul.outputs, matmul.columns / matmul.block, matmul.block * matmul.bits / 8}) {
    refuse("B must have the shape that N, K, bits and block_size say");
  }
}

void check_scales(const MatMul& matmul, const Tensor<float>& scales) {
  bool good = scales.count() == size_t(matmul.outputs) * (matmul.columns / matmul.block);
  for (size_t i = 0; good && i < scales.count(); i++) good = scales.data[i] == 1;
  if (!good) refuse("scales must be 1 for each output and block");
}

void check_zero_points(const MatMul& matmul, const Tensor<uint8_t>& zero_points) {
  const uint8_t filled = matmul.bits == 2 ? 0xaa : 0x88;
  const int64_t row_bytes = (int64_t{matmul.columns / matmul.block} * matmul.bits + 7) / 8;
  bool good = zero_points.count() == size_t(matmul.outputs * row_bytes);
  for (size_t i = 0; good && i < zero_points.count(); i++) good = zero_points.data[i] == filled;
  if (!good) refuse("zero_points must be 2**(bits - 1) for each output and block");
}

// Constants are checked when the session is created, other inputs in each run: those that nodes of the file compute while
// ONNX Runtime's optimizer is off.
class MatMulNode final : public Node {
 public:
  MatMulNode(const abi::KernelInfo* info, const KernelSet& set, OperatorType type)
      : matmul_(read_matmul(info)), kernel_(*set.operators[type].matmul) {
    for (int index = weights_input; index < input_count; index++) {
      const abi::Value* value = constant_or_null(info, size_t(index));
      if (value == nullptr) {
        made_in_runs_.push_back(Index(index));
      } else {
        check_input(Index(index), value);
      }
    }
  }

  std::string describe() const override {
    return std::string(operator_names[low_bit_matmul]) + " " + std::to_string(matmul_.columns) + "->" +
           std::to_string(matmul_.outputs) + ", weights of " + std::to_string(matmul_.bits) + " bits: " + kernel_.name +
           ", 0 bytes of weights beside those of the file";
  }

  void compute(abi::KernelContext* context) override {
    for (Index index : made_in_runs_) check_input(index, input_of(context, index));
    const abi::Value* input = input_of(context, a_input);
    std::vector<int64_t> shape = shape_of(input);
    if (shape.empty() || shape.back() != matmul_.columns) {
      refuse("A must have " + std::to_string(matmul_.columns) + " columns");
    }
    size_t rows = 1;
    for (size_t axis = 0; axis + 1 < shape.size(); axis++) rows *= size_t(shape[axis]);
    shape.back() = matmul_.outputs;
    float* y = make_output<float>(context, shape);
    if (rows == 0) return;
    const float* a = data_of<const float>(input);
    const uint8_t* weights = data_of<const uint8_t>(input_of(context, weights_input));
    const size_t row_bytes = kernel_.row_bytes(matmul_);
    const Scratch scratch(rows * row_bytes);
    int8_t* arranged = reinterpret_cast<int8_t*>(scratch.data());
    std::vector<RowSums> sums(rows);
    for (size_t row = 0; row < rows; row++) {
      sums[row] = kernel_.arrange(matmul_, a + row * matmul_.columns, arranged + row * row_bytes);
      if (!sums[row].exact) refuse("A must hold integers that reach 127 in every block, and no more");
      if (sums[row].magnitudes * ((1 << matmul_.bits) - 1) >= sum_limit) refuse("sums may pass 2**24, and be rounded");
    }
    const int64_t items = matmul_.outputs < wanted_items ? matmul_.outputs : wanted_items;
    parallel_for(context, size_t(items), [&](size_t item) {
      const int first = int(matmul_.outputs * int64_t(item) / items);
      const int last = int(matmul_.outputs * int64_t(item + 1) / items);
      kernel_.multiply(matmul_, weights, arranged, sums.data(), rows, first, last, y);
    });
  }

 private:
  void check_input(Index index, const abi::Value* value) const {
    if (index == weights_input) check_weights(matmul_, tensor_of<uint8_t>(value));
    if (index == scales_input) check_scales(matmul_, tensor_of<float>(value));
    if (index == zero_points_input) check_zero_points(matmul_, tensor_of<uint8_t>(value));
  }

  const MatMul matmul_;
  const MatMulKernel& kernel_;
  std::vector<Index> made_in_runs_;
};

}  // namespace

Signature matmul_signature() {
  return {{abi::float32, abi::uint8, abi::float32, abi::uint8},
          abi::float32,
          [](const abi::KernelInfo* info, const KernelSet& set, OperatorType type) -> std::unique_ptr<Node> {
            return std::make_unique<MatMulNode>(info, set, type);
          }};
}

}  // namespace qil_deploy
