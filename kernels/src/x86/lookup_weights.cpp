#include "lookup_weights.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace qil_deploy {

namespace {

// The largest sum before the multiplier fits int16, and after it, the bias and the scale fit int32 (so that rounding to
// int32 and saturating in steps_ agree with the definition). Empty if so, else the reason.
std::string sums_too_large(const Layer& layer) {
  const int taps = layer.taps();
  for (int o = 0; o < layer.out_channels; o++) {
    int64_t magnitude = 0;
    for (int i = 0; i < taps; i++) magnitude += std::abs(layer.codes[size_t(o) * taps + i]);
    magnitude *= layer.input_capacity;
    if (magnitude > 32767) return "sums of " + std::to_string(magnitude) + " pass 16 bits";
    const double largest = double(magnitude * layer.multipliers[o]) + std::abs(double(layer.bias[o]));
    if (largest >= 2147483648.0 || largest * std::fabs(double(layer.scales[o])) >= 2147483000.0) {
      return "results before saturation pass 32 bits";
    }
  }
  return "";
}

}  // namespace

std::string why_not_blocks(const Layer& layer) {
  if (layer.groups > 1 && layer.outputs_per_group() < 4) return "fewer than 4 output channels in a group";
  return sums_too_large(layer);
}

std::string why_not_lookup(const Layer& layer) {
  if (layer.largest_code > 1) return "weights up to " + std::to_string(layer.largest_code) + ", it takes -1..1";
  if (layer.input_capacity > 3) return "input codes up to " + std::to_string(layer.input_high) + ", it takes 0..3";
  return why_not_blocks(layer);
}

Step lookup_step(const Layer& layer, int o, int first, int channels, int tap) {
  const int window = layer.kernel_h * layer.kernel_w;
  int pattern = 0, positive = 0, negative = 0, place = 1;
  for (int k = 0; k < channels; k++, place *= 3) {
    const int channel = first + k;
    const int code =
        channel < layer.channels_per_group() ? layer.codes[size_t(o) * layer.taps() + size_t(channel) * window + tap] : 0;
    pattern += place * (code + 1);
    if (code > 0) positive += 3;
    if (code < 0) negative += 3;
  }
  return {uint8_t(pattern), uint8_t(positive), uint8_t(negative)};
}

void cut_runs(const Step* steps_of_block, int steps, int row, int outputs, std::vector<uint16_t>& lengths) {
  std::vector<int> positive(outputs), negative(outputs);
  int length = 0;
  const auto end_run = [&] {
    if (length > 0) lengths.push_back(uint16_t(length));
    std::fill(positive.begin(), positive.end(), 0);
    std::fill(negative.begin(), negative.end(), 0);
    length = 0;
  };
  for (int s = 0; s < steps; s++) {
    const Step* step = steps_of_block + size_t(s) * row;
    bool full = length == 65535;
    for (int j = 0; j < outputs; j++) {
      full |= positive[j] + step[j].positive > 127 || negative[j] + step[j].negative > 128;
    }
    if (full) end_run();
    for (int j = 0; j < outputs; j++) {
      positive[j] += step[j].positive;
      negative[j] += step[j].negative;
    }
    length++;
  }
  end_run();
}

LookupWeights::LookupWeights(const Layer& layer, int channels, int unit) {
  const int window = layer.kernel_h * layer.kernel_w;
  const int outputs = layer.outputs_per_group(), blocks = blocks_per_group(layer);
  steps_ = (layer.channels_per_group() + channels - 1) / channels * window;
  const int zeros = channels == 3 ? 13 : 4;  // digits 1, for weights of 0
  patterns_.resize(size_t(layer.groups) * blocks * steps_ * 16);
  std::vector<Step> block(size_t(steps_) * 16);
  for (Runs& runs : runs_) runs.first.push_back(0);
  for (int index = 0; index < layer.groups * blocks; index++) {
    std::fill(block.begin(), block.end(), Step{uint8_t(zeros), 0, 0});
    const int group = index / blocks, first = index % blocks * 16;
    for (int j = 0; j < 16 && first + j < outputs; j++) {
      for (int s = 0; s < steps_; s++) {
        block[size_t(s) * 16 + j] = lookup_step(layer, group * outputs + first + j, s / window * channels, channels, s % window);
      }
    }
    for (size_t i = 0; i < block.size(); i++) patterns_[size_t(index) * steps_ * 16 + i] = uint8_t(block[i].pattern * unit);
    for (int size = 0; size < 4; size++) {
      for (int start = 0; start < 16; start += 2 << size) {
        cut_runs(&block[start], steps_, 16, 2 << size, runs_[size].lengths);
        runs_[size].first.push_back(uint32_t(runs_[size].lengths.size()));
      }
    }
  }
}

void LookupWeights::find(TileTask& task, int outputs, int index) const {
  const Runs& runs = runs_[outputs == 2 ? 0 : outputs == 4 ? 1 : outputs == 8 ? 2 : 3];
  task.runs = runs.lengths.data() + runs.first[index];
  task.run_count = int(runs.first[index + 1] - runs.first[index]);
  const int first = index * outputs;
  task.weights = patterns_.data() + size_t(first / block_outputs) * steps_ * block_outputs + first % block_outputs;
}

size_t LookupWeights::bytes() const {
  size_t total = patterns_.size();
  for (const Runs& runs : runs_) total += runs.lengths.size() * 2 + runs.first.size() * 4;
  return total;
}

}  // namespace qil_deploy
