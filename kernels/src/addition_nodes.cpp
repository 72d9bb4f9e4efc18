// Nodes ResidualAdd and LowBitRescale: read the node, share the codes among threads, run the kernel of its set.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "addition.h"
#include "node.h"

namespace qil_deploy {

namespace {

enum Index { a_input, a_scale, a_zero, b_input, b_scale, b_zero, y_scale, y_zero, low_input, high_input };

constexpr size_t codes_per_item = 1 << 15;  // some microseconds of work, more than handing them to a thread takes
constexpr size_t most_items = 64;

Grid grid(const abi::KernelInfo* info, InputName scale, InputName zero_point) {
  return {scalar<float>(info, scale), scalar<uint8_t>(info, zero_point)};
}

Addition read_addition(const abi::KernelInfo* info) {
  return addition_of(grid(info, {a_scale, "A_scale"}, {a_zero, "A_zero_point"}),
                     grid(info, {b_scale, "B_scale"}, {b_zero, "B_zero_point"}),
                     grid(info, {y_scale, "C_scale"}, {y_zero, "C_zero_point"}));
}

// Calls body(first, count) for parts of `count` codes, on the session's threads.
template <typename Body>
void for_parts(const abi::KernelContext* context, size_t count, const Body& body) {
  const size_t items = std::min(count / codes_per_item, most_items);
  if (items <= 1) return body(size_t{0}, count);
  const size_t part = (count / items + 63) / 64 * 64;  // whole cache lines, if tensors begin at one
  parallel_for(context, items, [&](size_t item) {
    const size_t first = std::min(count, item * part), last = item + 1 == items ? count : std::min(count, first + part);
    if (first < last) body(first, last - first);
  });
}

class ResidualAddNode final : public Node {
 public:
  ResidualAddNode(const abi::KernelInfo* info, const AddKernel& kernel) : addition_(read_addition(info)), kernel_(kernel) {}

  std::string describe() const override { return std::string(operator_names[residual_add]) + ": " + kernel_.name; }

  void compute(abi::KernelContext* context) override {
    const Tensor<uint8_t> a = tensor_of<uint8_t>(input_of(context, a_input));
    const Tensor<uint8_t> b = tensor_of<uint8_t>(input_of(context, b_input));
    if (a.shape != b.shape) refuse("A and B must have the same shape");
    uint8_t* y = make_output<uint8_t>(context, a.shape);
    for_parts(context, a.count(), [&](size_t first, size_t count) {
      kernel_.add(addition_, a.data + first, b.data + first, count, y + first);
    });
  }

 private:
  const Addition addition_;
  const AddKernel& kernel_;
};

CodeTable read_table(const abi::KernelInfo* info) {
  const Tensor<uint8_t> b = constant<uint8_t>(info, {b_input, "B"});
  if (b.shape != std::vector<int64_t>{1}) refuse("B must be a row of one code");
  const uint8_t low = scalar<uint8_t>(info, {low_input, "low"}), high = scalar<uint8_t>(info, {high_input, "high"});
  return rescaling_table(read_addition(info), b.data[0], low, high);
}

class LowBitRescaleNode final : public Node {
 public:
  LowBitRescaleNode(const abi::KernelInfo* info, const RescaleKernel& kernel) : table_(read_table(info)), kernel_(kernel) {}

  std::string describe() const override {
    return std::string(operator_names[low_bit_rescale]) + " to " + std::to_string(table_.codes[0]) + ".." +
           std::to_string(table_.codes[255]) + ": " + kernel_.name;
  }

  void compute(abi::KernelContext* context) override {
    Tensor<uint8_t> x = tensor_of<uint8_t>(input_of(context, a_input));
    if (x.shape.empty()) x.shape = {1};  // B has an axis
    uint8_t* y = make_output<uint8_t>(context, x.shape);
    for_parts(context, x.count(), [&](size_t first, size_t count) {
      kernel_.look_up(table_, x.data + first, count, y + first);
    });
  }

 private:
  const CodeTable table_;
  const RescaleKernel& kernel_;
};

std::vector<int> types_of_addition() {
  return {abi::uint8, abi::float32, abi::uint8, abi::uint8, abi::float32, abi::uint8, abi::float32, abi::uint8};
}

}  // namespace

Signature residual_add_signature() {
  return {types_of_addition(), abi::uint8,
          [](const abi::KernelInfo* info, const KernelSet& set, OperatorType type) -> std::unique_ptr<Node> {
            return std::make_unique<ResidualAddNode>(info, *set.operators[type].add);
          }};
}

Signature low_bit_rescale_signature() {
  std::vector<int> types = types_of_addition();
  types.insert(types.end(), {abi::uint8, abi::uint8});
  return {types, abi::uint8,
          [](const abi::KernelInfo* info, const KernelSet& set, OperatorType type) -> std::unique_ptr<Node> {
            return std::make_unique<LowBitRescaleNode>(info, *set.operators[type].rescale);
          }};
}

}  // namespace qil_deploy
