#include "ordered_weights.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

namespace qil_deploy::neon {

namespace {

constexpr int largest_byte = 127, largest_word = 32767;

// The lanes of all steps of a block, one after another: the stored weights, and their possible contribution to the lane.
struct Lanes {
  std::vector<uint8_t> stored;
  std::vector<Reach> reaches;
};

class LanesOfBlock {
 public:
  LanesOfBlock(const Layer& layer, const Block& block, bool by_lookup)
      : layer_(layer), block_(block), by_lookup_(by_lookup) {}

  Lanes all(int units) const {
    Lanes all;
    for (int y = 0; y < layer_.kernel_h; y++)
      for (int x = 0; x < layer_.kernel_w; x++)
        for (int unit = 0; unit < units; unit++)
          for (int lane = 0; lane < block_.registers * lanes; lane++) {
            Reach reach;
            all.stored.push_back(by_lookup_ ? triple(lane, unit, y, x, reach) : single(lane, unit, y, x, reach));
            all.reaches.push_back(reach);
          }
    return all;
  }

 private:
  // Index, among the 27 triples of {-1, 0, 1}, of the weights of three codes.
  uint8_t triple(int lane, int unit, int y, int x, Reach& reach) const {
    int index = 0;
    for (int c = 2; c >= 0; c--) index = index * 3 + 1 + weight(lane, unit * 3 + c, y, x, reach);
    return uint8_t(index);
  }

  uint8_t single(int lane, int unit, int y, int x, Reach& reach) const {
    return uint8_t(weight(lane / 2, unit * 2 + lane % 2, y, x, reach));
  }

  int weight(int output, int input, int y, int x, Reach& reach) const {
    if (output >= block_.channels || input >= layer_.channels_per_group()) return 0;
    const size_t filter = size_t(block_.first_channel + output) * layer_.channels_per_group() + input;
    const int code = layer_.codes[(filter * layer_.kernel_h + y) * layer_.kernel_w + x];
    (code > 0 ? reach.up : reach.down) += std::abs(code) * layer_.input_capacity;
    return code;
  }

  const Layer& layer_;
  const Block& block_;
  const bool by_lookup_;
};

// Adding to bytes and emptying them takes 16 and about 64 instructions where adding to words takes 32.
bool bytes_win(size_t steps, size_t times_emptied) { return steps > 4 * times_emptied; }

void fill(Block& block, const Layer& layer, const OrderedWeights& ordered) {
  const bool by_lookup = ordered.steps == &lookup_steps;
  Lanes of_steps = LanesOfBlock(layer, block, by_lookup).all(ordered.units_per_group);
  block.weights = std::move(of_steps.stored);
  const size_t width = size_t(block.registers) * lanes;
  const size_t steps = block.weights.size() / width;
  std::vector<int32_t> bytes = split(of_steps.reaches, width, largest_byte);
  block.adds_bytes = by_lookup || bytes_win(steps, bytes.size());
  if (!block.adds_bytes) bytes.assign(steps, 1);
  const size_t per_word = ordered.steps->lanes_per_channel;
  const std::vector<int32_t> words =
      split(add_groups(of_steps.reaches, width, bytes, per_word), width / per_word, largest_word);
  const int32_t row_steps = ordered.row_columns * ordered.units_per_group;
  block.runs = block.adds_bytes ? make_runs(row_steps, bytes, words)
                                : make_runs(row_steps, words, std::vector<int32_t>(words.size(), 1));
}

OrderedWeights order(const Layer& layer, const Steps& steps) {
  OrderedWeights ordered;
  ordered.steps = &steps;
  ordered.groups = layer.groups;
  ordered.channels_per_group = layer.channels_per_group();
  ordered.units_per_group = (layer.channels_per_group() + steps.codes_per_unit - 1) / steps.codes_per_unit;
  ordered.row_columns = layer.dilation_w == 1 && layer.groups == 1 ? layer.kernel_w : 1;
  const int register_channels = lanes / steps.lanes_per_channel;
  const int most = tile_registers * register_channels;
  for (int group = 0; group < layer.groups; group++) {
    for (int first = 0; first < layer.outputs_per_group(); first += most) {
      Block block;
      block.first_channel = group * layer.outputs_per_group() + first;
      block.channels = std::min(most, layer.outputs_per_group() - first);
      block.registers = (block.channels + register_channels - 1) / register_channels;
      block.first_unit = size_t(group) * ordered.units_per_group;
      fill(block, layer, ordered);
      ordered.blocks.push_back(std::move(block));
    }
  }
  return ordered;
}

}  // namespace

size_t OrderedWeights::bytes() const {
  size_t total = 0;
  for (const Block& block : blocks) total += block.weights.size() + block.runs.size() * sizeof(Run);
  return total;
}

OrderedWeights order_for_lookup(const Layer& layer) { return order(layer, lookup_steps); }

OrderedWeights order_for_narrow(const Layer& layer) { return order(layer, narrow_steps); }

OrderedWeights order_for_depthwise(const Layer& layer) {
  const int channels = layer.in_channels, taps = layer.kernel_h * layer.kernel_w;
  OrderedWeights ordered{&depthwise_steps, 1, channels, (channels + lanes - 1) / lanes * lanes, 1, {}};
  for (int first = 0; first < channels; first += lanes) {
    Block block;
    block.first_channel = first;
    block.channels = std::min(lanes, channels - first);
    block.registers = 1;
    block.first_unit = size_t(first);
    block.weights.resize(size_t(taps) * lanes);
    for (int tap = 0; tap < taps; tap++) {
      block.runs.push_back({tap, 0, 1, Empties::nothing});
      for (int lane = 0; lane < block.channels; lane++)
        block.weights[tap * lanes + lane] = uint8_t(layer.codes[size_t(first + lane) * taps + tap]);
    }
    ordered.blocks.push_back(std::move(block));
  }
  return ordered;
}

}  // namespace qil_deploy::neon
