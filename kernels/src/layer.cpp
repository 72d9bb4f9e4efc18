#include <cmath>
#include <cstdlib>
#include <numeric>
#include <stdexcept>

#include "lowbit_conv.h"

namespace qil_deploy {

namespace {

int64_t output_size(int64_t size, int pads, int kernel, int dilation, int stride) {
  const int64_t room = size + pads - (int64_t{dilation} * (kernel - 1) + 1);
  return room < 0 ? 0 : room / stride + 1;
}

int next_capacity(int code) {
  int capacity = 1;
  while (capacity < code) capacity = 2 * capacity + 1;
  return capacity;
}

}  // namespace

int64_t Layer::output_height(int64_t height) const {
  return output_size(height, pad_top + pad_bottom, kernel_h, dilation_h, stride_h);
}

int64_t Layer::output_width(int64_t width) const {
  return output_size(width, pad_left + pad_right, kernel_w, dilation_w, stride_w);
}

std::string Layer::describe() const {
  const auto pair = [](int a, int b) { return std::to_string(a) + "x" + std::to_string(b); };
  std::string text = std::to_string(in_channels) + "->" + std::to_string(out_channels) + " " + pair(kernel_h, kernel_w);
  if (stride_h != 1 || stride_w != 1) text += " stride " + pair(stride_h, stride_w);
  if (dilation_h != 1 || dilation_w != 1) text += " dilation " + pair(dilation_h, dilation_w);
  if (groups != 1) text += " groups " + std::to_string(groups);
  return text + ", weights -" + std::to_string(largest_code) + ".." + std::to_string(largest_code) + ", input 0.." +
         std::to_string(input_high);
}

void fill_layer(Layer& layer, const NodeTensors& tensors) {
  const int taps = layer.taps();
  layer.multipliers.resize(layer.out_channels);
  layer.scales.resize(layer.out_channels);
  layer.bias.assign(tensors.bias, tensors.bias + layer.out_channels);
  layer.input_capacity = next_capacity(layer.input_high);
  layer.largest_code = 0;
  for (int o = 0; o < layer.out_channels; o++) {
    const int8_t* weights = tensors.weights + size_t(o) * taps;
    int divisor = 0;
    for (int i = 0; i < taps; i++) divisor = std::gcd(divisor, int{weights[i]});
    layer.multipliers[o] = divisor == 0 ? 1 : divisor;
    int largest = 0;
    for (int i = 0; i < taps; i++) largest = std::max(largest, std::abs(int{weights[i]}));
    layer.largest_code = std::max(layer.largest_code, largest / layer.multipliers[o]);
    // Two roundings to float32, as in ONNX Runtime.
    const float product = tensors.x_scale * tensors.weight_scales[tensors.weight_scale_count == 1 ? 0 : o];
    layer.scales[o] = product / tensors.y_scale;
    if (!std::isfinite(layer.scales[o])) {
      throw std::invalid_argument("x_scale * w_scale / y_scale of output channel " + std::to_string(o) +
                                  " is not a finite number");
    }
  }
  fill_codes(layer, tensors.weights);
}

void fill_codes(Layer& layer, const int8_t* weights) {
  const size_t taps = size_t(layer.taps());
  layer.codes.resize(size_t(layer.out_channels) * taps);
  for (int o = 0; o < layer.out_channels; o++) {
    // For multiples of the multiplier, up to 128 in magnitude, the product with its reciprocal is close to the quotient,
    // and rounding makes it exact.
    const int reciprocal = (1 << 16) / layer.multipliers[o];
    for (size_t i = size_t(o) * taps; i < (size_t(o) + 1) * taps; i++) {
      layer.codes[i] = int8_t((weights[i] * reciprocal + (1 << 15)) >> 16);
    }
  }
}

void drop_codes(Layer& layer) { std::vector<int8_t>().swap(layer.codes); }

uint8_t requantize(int32_t sum, float scale, const Layer& layer) {
  const float least = float(-layer.output_zero_point), most = float(255 - layer.output_zero_point);
  const float value = float(sum) * scale;
  const float saturated = value < least ? least : value > most ? most : value;
  const int code = int(std::nearbyintf(saturated)) + layer.output_zero_point;
  const int raised = code < layer.low ? layer.low : code;
  return uint8_t(raised > layer.high ? layer.high : raised);
}

}  // namespace qil_deploy
