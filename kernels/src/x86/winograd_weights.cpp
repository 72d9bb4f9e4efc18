#include "winograd_weights.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace qil_deploy::winograd {

namespace {

constexpr int largest_sum = 32767 - 3;  // of a run: r is added to it
constexpr int shortest_run = 8;         // in steps: what is emptied more often is not worth it
constexpr int fewest_channels = 16;     // of the input and of the output
constexpr double exact_floats = 16777216.0;

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

// 2c * (sum of the weights of an output channel), and the sum of their magnitudes.
int64_t sum_of_codes(const Layer& layer, int o) {
  int64_t sum = 0;
  for (int i = 0; i < layer.taps(); i++) sum += layer.codes[size_t(o) * layer.taps() + i];
  return sum;
}

int64_t sum_of_magnitudes(const Layer& layer, int o) {
  int64_t sum = 0;
  for (int i = 0; i < layer.taps(); i++) sum += std::abs(layer.codes[size_t(o) * layer.taps() + i]);
  return sum;
}

// 2c * (sum of weights) = 4 * quotient + rest.
int64_t shift_of(const Layer& layer, int o) { return 2 * int64_t{layer.input_capacity} * sum_of_codes(layer, o); }
int rest_of(const Layer& layer, int o) { return int(shift_of(layer, o) & 3); }
int64_t quotient_of(const Layer& layer, int o) { return (shift_of(layer, o) - rest_of(layer, o)) / 4; }

// Empty where the results of every channel are exact in float32 up to rounding, and rounding cannot overflow.
std::string results_too_large(const Layer& layer) {
  for (int o = 0; o < layer.out_channels; o++) {
    const double sum = double(layer.input_capacity) * double(sum_of_magnitudes(layer, o));
    const double bias = std::fabs(double(layer.bias[o])), multiplier = layer.multipliers[o];
    const double quotient = std::fabs(double(quotient_of(layer, o)));
    const double largest = multiplier * (sum + quotient) + bias;
    if (4 * (sum + quotient) >= exact_floats || largest >= exact_floats) return "results pass 24 bits";
    if (largest * std::fabs(double(layer.scales[o])) >= 2147483000.0) return "results before saturation pass 32 bits";
  }
  return "";
}

class BlockMaker {
 public:
  BlockMaker(const Layer& layer, int steps, int first_channel) : layer_(layer), steps_(steps) {
    block_.first_channel = first_channel;
    block_.channels = std::min(block_outputs, layer.out_channels - first_channel);
    block_.vectors = (block_.channels + vector_outputs - 1) / vector_outputs;
    block_.weights.resize(size_t(positions) * steps * block_.vectors);
  }

  Block make() {
    for (int o = 0; o < block_.channels; o++) {
      for (int c = 0; c < layer_.in_channels; c++) {
        int transformed[positions];
        transform(&layer_.codes[(size_t(block_.first_channel + o) * layer_.in_channels + c) * 9], transformed);
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
    WeightVector* vectors = &block_.weights[(size_t(position) * steps_ + step) * block_.vectors];
    return vectors[output / vector_outputs].weights[output % vector_outputs][channel];
  }

  void cut_runs(int position) {
    int sums[block_outputs] = {}, magnitudes[block_outputs] = {};
    int first = 0;
    for (int step = 0; step < steps_; step += unrolled_steps) {
      int more[block_outputs] = {}, larger[block_outputs] = {};
      bool full = step - first + unrolled_steps > 65535;
      for (int o = 0; o < block_.channels; o++) {
        for (int i = 0; i < unrolled_steps * step_channels; i++) {
          const int w = weight(position, step + i / step_channels, o, i % step_channels);
          more[o] += w;
          larger[o] += std::abs(w);
        }
        full |= 2 * layer_.input_capacity * (magnitudes[o] + larger[o]) > largest_sum;
      }
      if (full) {
        end_run(position, first, step, sums);
        std::fill(sums, sums + block_outputs, 0);
        std::fill(magnitudes, magnitudes + block_outputs, 0);
        first = step;
      }
      for (int o = 0; o < block_.channels; o++) {
        sums[o] += more[o];
        magnitudes[o] += larger[o];
      }
    }
    end_run(position, first, steps_, sums);
  }

  void end_run(int position, int first, int last, const int* sums) {
    block_.run_steps.push_back(uint16_t(last - first));
    const size_t at = block_.starts.size();
    block_.starts.resize(at + block_.vectors);
    for (int o = 0; o < block_.channels; o++) {
      int start = -2 * layer_.input_capacity * sums[o];
      if (position == sum_position && first == 0) start += rest_of(layer_, block_.first_channel + o);
      block_.starts[at + o / vector_outputs].words[o % vector_outputs] = int16_t(uint16_t(start));
    }
  }

  const Layer& layer_;
  const int steps_;
  Block block_;
};

}  // namespace

Weights::Weights(const Layer& layer) {
  const int unit = step_channels * unrolled_steps;
  steps = (layer.in_channels + unit - 1) / unit * unrolled_steps;
  for (int first = 0; first < layer.out_channels; first += block_outputs) {
    blocks.push_back(BlockMaker(layer, steps, first).make());
  }
  const size_t padded = blocks.size() * block_outputs;
  factors.resize(padded);
  offsets.resize(padded);
  scales.resize(padded);
  for (int o = 0; o < layer.out_channels; o++) {
    factors[o] = float(layer.multipliers[o]) / 4;
    offsets[o] = float(layer.bias[o] + layer.multipliers[o] * quotient_of(layer, o));
    scales[o] = layer.scales[o];
  }
}

size_t Weights::bytes() const {
  size_t total = (factors.size() + offsets.size() + scales.size()) * sizeof(float);
  for (const Block& block : blocks) {
    total += block.weights.size() * sizeof(WeightVector) + block.starts.size() * sizeof(StartVector) +
             block.run_steps.size() * sizeof(uint16_t) + block.first_runs.size() * sizeof(int);
  }
  return total;
}

std::string why_not(const Layer& layer) {
  const bool plain = layer.kernel_h == 3 && layer.kernel_w == 3 && layer.stride_h == 1 && layer.stride_w == 1 &&
                     layer.dilation_h == 1 && layer.dilation_w == 1 && layer.groups == 1;
  if (!plain) return "takes 3x3 of stride 1, dilation 1 and one group";
  if (layer.in_channels < fewest_channels || layer.out_channels < fewest_channels) {
    return "fewer than " + std::to_string(fewest_channels) + " channels";
  }
  const int run = shortest_run * step_channels * 2 * layer.input_capacity * 9 * layer.largest_code;
  if (layer.largest_code > 14 || layer.input_capacity > 63 || run > largest_sum) {
    return "products of up to " + std::to_string(layer.largest_code * layer.input_capacity) + "; takes 113";
  }
  return results_too_large(layer);
}

}  // namespace qil_deploy::winograd
