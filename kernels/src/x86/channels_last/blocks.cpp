#include "blocks.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace qil_deploy::channels_last {

namespace {

// Integers up to here are exact in float32, and so are their products with powers of 2.
constexpr double exact_floats = 16777216.0;
constexpr double safe_to_round = 2147483000.0;

}  // namespace

std::vector<Span> cut_outputs(const Layer& layer) {
  const int outputs = layer.outputs_per_group(), vectors = (outputs + lanes - 1) / lanes;
  const int parts = (vectors + block_vectors - 1) / block_vectors;
  std::vector<Span> spans;
  for (int group = 0; group < layer.groups; group++) {
    for (int part = 0; part < parts; part++) {
      const int first = vectors * part / parts * lanes, last = std::min(vectors * (part + 1) / parts * lanes, outputs);
      spans.push_back({group * outputs + first, last - first});
    }
  }
  return spans;
}

int steps_of(const Layer& layer) {
  const int unit = step_channels * unrolled_steps;
  return (layer.channels_per_group() + unit - 1) / unit * unrolled_steps;
}

int64_t largest_sum(const Layer& layer, int output) {
  int64_t sum = 0;
  for (int i = 0; i < layer.taps(); i++) sum += std::abs(layer.codes[size_t(output) * layer.taps() + i]);
  return sum * layer.input_capacity;
}

Requantization::Requantization(const Layer& layer, int shift, const std::vector<int64_t>& missing)
    : layer_(layer), shift_(shift) {
  const size_t padded = size_t(layer.out_channels) + block_outputs;
  factors_.resize(padded);
  offsets_.resize(padded);
  scales_.resize(padded);
  multipliers_.resize(padded);
  biases_.resize(padded);
  for (int o = 0; o < layer.out_channels; o++) {
    const int64_t multiplier = layer.multipliers[o], bias = layer.bias[o] + multiplier * missing[o];
    const double sum = double(largest_sum(layer, o)) + std::fabs(double(missing[o]));
    const double largest = double(multiplier) * sum + std::fabs(double(bias));
    in_float_ &= std::ldexp(sum, shift) < exact_floats && largest < exact_floats;
    in_float_ &= largest * std::fabs(double(layer.scales[o])) < safe_to_round;
    factors_[o] = std::ldexp(float(multiplier), -shift);
    offsets_[o] = float(bias);
    scales_[o] = layer.scales[o];
    multipliers_[o] = int32_t(multiplier);
    biases_[o] = int32_t(uint32_t(bias));  // sums wrap as the definition's do
  }
}

CodeMaker Requantization::of(int first_channel) const {
  CodeMaker maker;
  maker.factors = factors_.data() + first_channel;
  maker.offsets = offsets_.data() + first_channel;
  maker.scales = scales_.data() + first_channel;
  maker.multipliers = multipliers_.data() + first_channel;
  maker.biases = biases_.data() + first_channel;
  maker.in_float = in_float_;
  maker.shift = shift_;
  maker.zero_point = layer_.output_zero_point;
  maker.low = layer_.low;
  maker.high = layer_.high;
  return maker;
}

}  // namespace qil_deploy::channels_last
