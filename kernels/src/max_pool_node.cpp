// A node LowBitMaxPool: the largest code of each window, of maps stored channel by channel, the layout of the convolution
// kernels.
//
// ONNX Runtime's own MaxPool is fast on codes with channels last, the layout of its own convolutions, and many times as
// slow on others. Here a row of results takes the maximum over the rows of its windows, then over neighbouring columns:
//
//   down[i]   = max over ky of x[row * stride + ky, i]       pads are 0, the smallest code
//   across[i] = max over kx of down[i + kx]
//   y[j]      = across[j * stride]
//
// Maps are often narrower than two vectors, so there is no loop over remaining single bytes: all work is in blocks of 16
// codes. Codes past the end of a row belong to the next row, and are set to 0; nothing is read or written past the end of
// the maps.
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

constexpr int64_t lanes = 16;
typedef uint8_t Codes __attribute__((vector_size(lanes)));  // which compilers have on every processor

inline Codes larger(Codes a, Codes b) { return a > b ? a : b; }

inline Codes load(const uint8_t* source) {
  Codes codes;
  std::memcpy(&codes, source, lanes);
  return codes;
}

// The codes from `source` on; 0 from `end` on.
inline Codes load(const uint8_t* source, const uint8_t* end) {
  if (end - source >= lanes) return load(source);
  Codes codes = {};
  std::memcpy(&codes, source, size_t(end - source));
  return codes;
}

Codes first_lanes(int64_t count) {
  Codes mask;
  for (int64_t i = 0; i < lanes; i++) mask[i] = i < count ? 255 : 0;
  return mask;
}

int64_t whole_blocks(int64_t count) { return (count + lanes - 1) / lanes * lanes; }

// Bytes of a row of `down`, or of `across`: the last blocks extend past its end.
int64_t pitch_of(const Pool& pool, const Map& map) {
  return whole_blocks(map.width + pool.pads[1] + pool.pads[3] + pool.kernel[1] + 2 * lanes * pool.strides[1]);
}

// A row of `across`, and all rows of `down`. (A row that has just been written is not read again at once: loads that lie
// across two stores wait for both.)
size_t bytes_for(const Pool& pool, const Map& map) { return size_t((map.out_height + 1) * pitch_of(pool, map)); }

// x_end: the end of the last map that may be read. At pads, `down` is 0, and stays so.
void pool_down(const Pool& pool, const Map& map, const uint8_t* x, const uint8_t* x_end, uint8_t* down) {
  const Codes last_lanes = first_lanes(map.width - (whole_blocks(map.width) - lanes));
  const int64_t pitch = pitch_of(pool, map);
  for (int64_t r = 0; r < map.out_height; r++, down += pitch) {
    const int64_t top = r * pool.strides[0] - pool.pads[0];
    const int64_t first = std::max<int64_t>(top, 0), last = std::min(top + pool.kernel[0], map.height);
    for (int64_t j = 0; j < map.width; j += lanes) {
      Codes largest = {};
      for (int64_t i = first; i < last; i++) largest = larger(largest, load(x + i * map.width + j, x_end));
      if (j + lanes >= map.width) largest &= last_lanes;
      std::memcpy(down + pool.pads[1] + j, &largest, lanes);
    }
  }
}

// y_end: the end of the last map that may be written.
template <int Stride>
void pool_across(const Pool& pool, const Map& map, const uint8_t* down, uint8_t* across, uint8_t* y, uint8_t* y_end) {
  const int64_t pitch = pitch_of(pool, map), stride = Stride == 0 ? pool.strides[1] : Stride;
  const int64_t steps = (map.out_width - 1) * stride + 1;
  for (int64_t r = 0; r < map.out_height; r++, y += map.out_width, down += pitch) {
    for (int64_t j = 0; j < steps; j += lanes) {
      Codes largest = load(down + j);
      for (int k = 1; k < pool.kernel[1]; k++) largest = larger(largest, load(down + j + k));
      std::memcpy(across + j, &largest, lanes);
    }
    for (int64_t j = 0; j < map.out_width; j += lanes) {
      const uint8_t* source = across + j * stride;
      uint8_t picked[lanes];
      for (int64_t i = 0; i < lanes; i++) picked[i] = source[i * stride];
      // If a block extends past the row, the next one is written later.
      if (y_end - (y + j) >= lanes) {
        std::memcpy(y + j, picked, lanes);
      } else {
        std::memcpy(y + j, picked, size_t(y_end - (y + j)));
      }
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
    const size_t bytes = bytes_for(pool_, map), pixels = size_t(map.height) * map.width;
    const size_t out_pixels = size_t(map.out_height) * map.out_width;
    const Scratch scratch(size_t(items) * bytes);
    uint8_t* space = scratch.data();
    const auto across = pool_.strides[1] == 2 ? pool_across<2> : pool_across<0>;
    parallel_for(context, size_t(items), [&](size_t item) {
      const int64_t first = maps * int64_t(item) / items, last = maps * int64_t(item + 1) / items;
      uint8_t *row = space + item * bytes, *down = row + pitch_of(pool_, map);
      std::memset(row, 0, bytes);
      for (int64_t i = first; i < last; i++) {
        pool_down(pool_, map, x + i * pixels, x + maps * pixels, down);
        across(pool_, map, down, row, y + i * out_pixels, y + last * out_pixels);
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
