#include "winograd_weights.h"

#include <algorithm>
#include <cstdlib>

namespace qil_deploy::channels_last {

namespace {

constexpr int largest_run = 32767 - 3;  // what a run may reach: r is added to it
constexpr int shortest_run = 8;         // in steps: what is emptied more often is not worth it
constexpr int fewest_channels = 16;     // of the input and of the output

// H g H' of one input and one output channel.
void transform(const int8_t* g, int* transformed) {
  const auto along = [](int a, int b, int c, int* to, int stride) {
    to[0] = 2 * a;
    to[stride] = a + b + c;
    to[2 * stride] = a - b + c;
    to[3 * stride] = 2 * c;
  };
  int columns[4][3];
  for (int x = 0; x < 3; x++) along(g[x], g[3 + x], g[6 + x], &columns[0][x], 3);
  for (int y = 0; y < 4; y++) along(columns[y][0], columns[y][1], columns[y][2], transformed + 4 * y, 1);
}

// 2c * (sum of an output channel's weights) = 4 * quotient + rest.
int64_t shift_of(const Layer& layer, int output) {
  int64_t sum = 0;
  for (int i = 0; i < layer.taps(); i++) sum += layer.codes[size_t(output) * layer.taps() + i];
  return 2 * int64_t{layer.input_capacity} * sum;
}

int rest_of(const Layer& layer, int output) { return int(shift_of(layer, output) & 3); }

int64_t quotient_of(const Layer& layer, int output) {
  return (shift_of(layer, output) - rest_of(layer, output)) / 4;
}

class BlockMaker {
 public:
  BlockMaker(const Layer& layer, Span outputs) : layer_(layer), steps_(steps_of(layer)) {
    block_.outputs = outputs;
    block_.weights.resize(size_t(positions) * steps_ * outputs.vectors());
  }

  WinogradBlock make() {
    for (int o = 0; o < block_.outputs.count; o++) {
      for (int c = 0; c < layer_.in_channels; c++) {
        int transformed[positions];
        transform(&layer_.codes[(size_t(block_.outputs.first + o) * layer_.in_channels + c) * 9], transformed);
        for (int p = 0; p < positions; p++) weight(p, c / step_channels, o, c % step_channels) = int8_t(transformed[p]);
      }
    }
    for (int p = 0; p < positions; p++) {
      block_.first_runs.push_back(int(block_.run_steps.size()));
      cut_runs(p);
    }
    block_.first_runs.push_back(int(block_.run_steps.size()));
    return std::move(block_);
  }

 private:
  int8_t& weight(int position, int step, int output, int channel) {
    WeightVector* vectors = &block_.weights[(size_t(position) * steps_ + step) * block_.outputs.vectors()];
    return vectors[output / lanes].weights[output % lanes][channel];
  }

  void cut_runs(int position) {
    int sums[block_outputs] = {}, magnitudes[block_outputs] = {};
    int first = 0;
    for (int step = 0; step < steps_; step += unrolled_steps) {
      int more[block_outputs] = {}, larger[block_outputs] = {};
      bool full = step - first + unrolled_steps > 65535;
      for (int o = 0; o < block_.outputs.count; o++) {
        for (int i = 0; i < unrolled_steps * step_channels; i++) {
          const int w = weight(position, step + i / step_channels, o, i % step_channels);
          more[o] += w;
          larger[o] += std::abs(w);
        }
        full |= 2 * layer_.input_capacity * (magnitudes[o] + larger[o]) > largest_run;
      }
      if (full) {
        end_run(position, first, step, sums);
        std::fill(sums, sums + block_outputs, 0);
        std::fill(magnitudes, magnitudes + block_outputs, 0);
        first = step;
      }
      for (int o = 0; o < block_.outputs.count; o++) {
        sums[o] += more[o];
        magnitudes[o] += larger[o];
      }
    }
    end_run(position, first, steps_, sums);
  }

  void end_run(int position, int first, int last, const int* sums) {
    block_.run_steps.push_back(uint16_t(last - first));
    const size_t at = block_.starts.size();
    block_.starts.resize(at + block_.outputs.vectors());
    for (int o = 0; o < block_.outputs.count; o++) {
      int start = -2 * layer_.input_capacity * sums[o];
      if (position == sum_position && first == 0) start += rest_of(layer_, block_.outputs.first + o);
      block_.starts[at + o / lanes].words[o % lanes] = int16_t(uint16_t(start));
    }
  }

  const Layer& layer_;
  const int steps_;
  WinogradBlock block_;
};

}  // namespace

std::vector<WinogradBlock> winograd_blocks(const Layer& layer) {
  std::vector<WinogradBlock> blocks;
  for (const Span& outputs : cut_outputs(layer)) blocks.push_back(BlockMaker(layer, outputs).make());
  return blocks;
}

Requantization winograd_requantization(const Layer& layer) {
  std::vector<int64_t> missing;
  for (int o = 0; o < layer.out_channels; o++) missing.push_back(quotient_of(layer, o));
  return Requantization(layer, 2, missing);
}

std::string why_not_winograd(const Layer& layer) {
  const bool plain = layer.kernel_h == 3 && layer.kernel_w == 3 && layer.stride_h == 1 && layer.stride_w == 1 &&
                     layer.dilation_h == 1 && layer.dilation_w == 1 && layer.groups == 1;
  if (!plain) return "takes 3x3 of stride 1, dilation 1 and one group";
  if (layer.in_channels < fewest_channels || layer.out_channels < fewest_channels) {
    return "fewer than " + std::to_string(fewest_channels) + " channels";
  }
  const int run = shortest_run * step_channels * 2 * layer.input_capacity * 9 * layer.largest_code;
  if (layer.largest_code > 14 || layer.input_capacity > 63 || run > largest_run) {
    return "products of up to " + std::to_string(layer.largest_code * layer.input_capacity) + "; takes 113";
  }
  // Combining adds up to 9 sums of a tile, each at most 8 times an output channel's largest.
  for (int o = 0; o < layer.out_channels; o++) {
    if (72 * largest_sum(layer, o) > 2147483647) return "sums pass 32 bits";
  }
  return "";
}

}  // namespace qil_deploy::channels_last
