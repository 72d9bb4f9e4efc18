// A node LowBitMaxPool: the largest code of each window, of maps that lie channel by channel, as kernels of convolutions
// make them.
//
// ONNX Runtime's own MaxPool is fast on codes with the channels last, which its own convolutions make, and many times as
// slow on others. Here a row of results is the largest of the rows of its windows first, then of neighbouring columns:
//
//   down[i]   = max over ky of x[row * stride + ky, i]       pads are 0, which no code is below
//   across[i] = max over kx of down[i + kx]
//   y[j]      = across[j * stride]
//
// All three loops run along rows; compilers make vectors of them, on every processor.
#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "node.h"
#include "scratch.h"

namespace qil_deploy {

namespace {

constexpr int64_t wanted_items = 16;
constexpr int64_t largest_size = 1 << 24;

struct Pool {
  std::vector<int> kernel, strides, pads;  // [2], [2], [4]
};

struct Map {
  int64_t height, width, out_height, out_width;
};

// The results of one map. `row` has space for two rows with pads.
void pool_map(const Pool& pool, const Map& map, const uint8_t* x, uint8_t* y, uint8_t* row) {
  const int64_t padded = map.width + pool.pads[1] + pool.pads[3], steps = padded - pool.kernel[1] + 1;
  uint8_t *down = row, *across = row + padded;
  for (int64_t r = 0; r < map.out_height; r++, y += map.out_width) {
    const int64_t top = r * pool.strides[0] - pool.pads[0];
    const int64_t first = std::max<int64_t>(top, 0), last = std::min(top + pool.kernel[0], map.height);
    std::memset(down, 0, size_t(padded));
    uint8_t* inside = down + pool.pads[1];
    for (int64_t i = first; i < last; i++) {
      const uint8_t* source = x + i * map.width;
      for (int64_t j = 0; j < map.width; j++) inside[j] = std::max(inside[j], source[j]);
    }
    std::memcpy(across, down, size_t(steps));
    for (int k = 1; k < pool.kernel[1]; k++) {
      for (int64_t j = 0; j < steps; j++) across[j] = std::max(across[j], down[j + k]);
    }
    if (pool.strides[1] == 2) {
      for (int64_t j = 0; j < map.out_width; j++) y[j] = across[2 * j];
    } else {
      for (int64_t j = 0; j < map.out_width; j++) y[j] = across[j * pool.strides[1]];
    }
  }
}

class MaxPoolNode final : public Node {
 public:
  explicit MaxPoolNode(const abi::KernelInfo* info) {
    pool_.kernel = integers(info, "kernel_shape", {0, 0}, 1);
    if (pool_.kernel[0] == 0) refuse("kernel_shape is missing");
    pool_.strides = integers(info, "strides", {1, 1}, 1);
    pool_.pads = integers(info, "pads", {0, 0, 0, 0}, 0);
    for (int i = 0; i < 4; i++) {
      if (pool_.pads[i] >= pool_.kernel[i % 2]) refuse("pads must be smaller than the kernel");
    }
  }

  std::string describe() const override {
    return std::string(operator_names[low_bit_max_pool]) + " " + std::to_string(pool_.kernel[0]) + "x" +
           std::to_string(pool_.kernel[1]) + ": rows, then columns";
  }

  void compute(abi::KernelContext* context) override {
    const abi::Value* input = input_of(context, 0);
    const std::vector<int64_t> shape = shape_of(input);
    if (shape.size() != 4) refuse("x must have four dimensions, and has " + std::to_string(shape.size()));
    Map map;
    std::tie(map.height, map.width) = std::pair(shape[2], shape[3]);
    if (map.height < 1 || map.width < 1 || map.height > largest_size || map.width > largest_size) {
      refuse("x has no pixels, or too many");
    }
    const int64_t room[2] = {map.height + pool_.pads[0] + pool_.pads[2] - pool_.kernel[0],
                             map.width + pool_.pads[1] + pool_.pads[3] - pool_.kernel[1]};
    if (room[0] < 0 || room[1] < 0) refuse("the window does not fit into x");
    map.out_height = room[0] / pool_.strides[0] + 1;
    map.out_width = room[1] / pool_.strides[1] + 1;
    uint8_t* y = make_output<uint8_t>(context, {shape[0], shape[1], map.out_height, map.out_width});
    const int64_t maps = shape[0] * shape[1];
    if (maps == 0) return;
    const uint8_t* x = data_of<const uint8_t>(input);
    const int64_t items = std::min(maps, wanted_items);
    const size_t row_bytes = 2 * size_t(map.width + pool_.pads[1] + pool_.pads[3]);
    const Scratch scratch(size_t(items) * row_bytes);
    uint8_t* rows = scratch.data();
    parallel_for(context, size_t(items), [&](size_t item) {
      const int64_t last = maps * int64_t(item + 1) / items;
      for (int64_t i = maps * int64_t(item) / items; i < last; i++) {
        pool_map(pool_, map, x + i * map.height * map.width, y + i * map.out_height * map.out_width,
                 rows + item * row_bytes);
      }
    });
  }

 private:
  Pool pool_;
};

}  // namespace

Signature max_pool_signature() {
  return {{abi::uint8},
          abi::uint8,
          [](const abi::KernelInfo* info, const KernelSet&, OperatorType) -> std::unique_ptr<Node> {
            return std::make_unique<MaxPoolNode>(info);
          }};
}

}  // namespace qil_deploy
