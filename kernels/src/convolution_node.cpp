// A node TernaryConv or LowBitConv: reads it, picks its kernel, runs it.
#include <algorithm>
#include <atomic>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "lowbit_conv.h"
#include "node.h"
#include "scratch.h"

namespace qil_deploy {

namespace {

enum Index {
  x_input, x_scale_input, x_zero_point_input, w_input, w_scale_input, w_zero_point_input, y_scale_input,
  y_zero_point_input, bias_input, low_input, high_input, x_high_input, input_count,
};
constexpr const char* input_names[input_count] = {"x", "x_scale", "x_zero_point", "w", "w_scale", "w_zero_point",
                                                  "y_scale", "y_zero_point", "bias", "low", "high", "x_high"};

InputName named(Index index) { return {index, input_names[index]}; }

// The attributes and inputs of a node, except its weights.
struct NodeConstants {
  int64_t groups;
  std::vector<int> kernel_shape, strides, dilations, pads;  // kernel_shape: {0, 0} if the node does not give it
  std::vector<float> weight_scales;
  std::vector<int32_t> bias;
  float x_scale, y_scale;
  int output_zero_point, low, high, input_high;
};

template <typename T>
std::vector<T> values(const abi::KernelInfo* info, Index index) {
  const Tensor<T> tensor = constant<T>(info, named(index));
  return {tensor.data, tensor.data + tensor.count()};
}

NodeConstants read_constants(const abi::KernelInfo* info) {
  NodeConstants node;
  node.groups = integer(info, "group", 1);
  node.kernel_shape = integers(info, "kernel_shape", {0, 0}, 1);
  node.strides = integers(info, "strides", {1, 1}, 1);
  node.dilations = integers(info, "dilations", {1, 1}, 1);
  node.pads = integers(info, "pads", {0, 0, 0, 0}, 0);
  if (scalar<uint8_t>(info, named(x_zero_point_input)) != 0) refuse("x_zero_point must be 0");
  for (int8_t zero_point : values<int8_t>(info, w_zero_point_input)) {
    if (zero_point != 0) refuse("w_zero_point must be 0");
  }
  node.weight_scales = values<float>(info, w_scale_input);
  node.bias = values<int32_t>(info, bias_input);
  node.x_scale = scalar<float>(info, named(x_scale_input));
  node.y_scale = scalar<float>(info, named(y_scale_input));
  node.output_zero_point = scalar<uint8_t>(info, named(y_zero_point_input));
  node.low = scalar<uint8_t>(info, named(low_input));
  node.high = scalar<uint8_t>(info, named(high_input));
  node.input_high = scalar<uint8_t>(info, named(x_high_input));
  return node;
}

Layer make_layer(const NodeConstants& node, const Tensor<int8_t>& weights) {
  const std::vector<int64_t>& shape = weights.shape;
  if (shape.size() != 4) refuse("w must have four dimensions, and has " + std::to_string(shape.size()));
  int64_t taps = 1;
  for (int64_t size : shape) {
    if (size < 1 || size > (1 << 24)) refuse("w has a dimension of " + std::to_string(size));
  }
  for (int i = 1; i < 4; i++) {
    taps *= shape[i];
    if (taps > (1 << 24)) refuse("w has more than 2**24 weights for one output channel");
  }
  if (node.groups < 1 || shape[0] % node.groups != 0) {
    refuse("group must divide the " + std::to_string(shape[0]) + " output channels, and is " +
           std::to_string(node.groups));
  }
  if (shape[1] * node.groups > (1 << 24)) refuse("more than 2**24 input channels");
  Layer layer;
  layer.out_channels = int(shape[0]);
  layer.in_channels = int(shape[1] * node.groups);
  layer.groups = int(node.groups);
  layer.kernel_h = int(shape[2]);
  layer.kernel_w = int(shape[3]);
  if (node.kernel_shape[0] != 0 && node.kernel_shape != std::vector<int>{layer.kernel_h, layer.kernel_w}) {
    refuse("kernel_shape is not that of w");
  }
  std::tie(layer.stride_h, layer.stride_w) = std::pair(node.strides[0], node.strides[1]);
  std::tie(layer.dilation_h, layer.dilation_w) = std::pair(node.dilations[0], node.dilations[1]);
  std::tie(layer.pad_top, layer.pad_left) = std::pair(node.pads[0], node.pads[1]);
  std::tie(layer.pad_bottom, layer.pad_right) = std::pair(node.pads[2], node.pads[3]);
  if (node.weight_scales.size() != 1 && node.weight_scales.size() != size_t(layer.out_channels)) {
    refuse("w_scale must hold one value or one for each output channel");
  }
  if (node.bias.size() != size_t(layer.out_channels)) refuse("bias must hold one value for each output channel");
  layer.output_zero_point = node.output_zero_point;
  layer.low = node.low;
  layer.high = node.high;
  layer.input_high = node.input_high;
  fill_layer(layer, {weights.data, node.weight_scales.data(), node.weight_scales.size(), node.x_scale, node.y_scale,
                     node.bias.data()});
  return layer;
}

// A layer and its kernel. Many threads run it at once.
class Convolution {
 public:
  Convolution(Layer layer, const KernelSet& set, OperatorType type) : layer_(std::move(layer)) {
    const Kernel* chosen = &scalar_kernel;
    for (const Kernel* kernel : set.operators[type].kernels) {
      const std::string reason = kernel->why_not(layer_);
      if (reason.empty()) {
        chosen = kernel;
        break;
      }
      why_not_others_ += std::string("; not ") + kernel->name + ": " + reason;
    }
    packed_ = chosen->pack(layer_);
    keeps_codes_ = chosen == &scalar_kernel;
    if (!keeps_codes_) drop_codes(layer_);
    choice_ = std::string(operator_names[type]) + " " + layer_.describe() + ": " + chosen->name;
  }

  // Counts the packed weights.
  std::string describe() const {
    return choice_ + ", " + std::to_string(packed_->weight_bytes()) + " bytes of weights" + why_not_others_;
  }

  // weights: those from which the layer was made.
  void compute(abi::KernelContext* context, const int8_t* weights) {
    const abi::Value* input = input_of(context, x_input);
    const std::vector<int64_t> shape = shape_of(input);
    if (shape.size() != 4) refuse("x must have four dimensions, and has " + std::to_string(shape.size()));
    if (shape[1] != layer_.in_channels) {
      refuse("x must have " + std::to_string(layer_.in_channels) + " channels, and has " + std::to_string(shape[1]));
    }
    const int64_t height = shape[2], width = shape[3];
    if (height < 1 || width < 1 || height > (1 << 24) || width > (1 << 24)) refuse("x has no pixels, or too many");
    const int64_t out_height = layer_.output_height(height), out_width = layer_.output_width(width);
    if (out_height < 1 || out_width < 1) {
      refuse("the kernel does not fit into x of " + std::to_string(height) + "x" + std::to_string(width));
    }
    uint8_t* y = make_output<uint8_t>(context, {shape[0], layer_.out_channels, out_height, out_width});
    if (shape[0] == 0) return;
    const std::shared_ptr<const Plan> plan = plan_for(int(height), int(width), weights);
    const Scratch scratch(plan->scratch_bytes());
    const uint8_t* x = data_of<const uint8_t>(input);
    for (int64_t image = 0; image < shape[0]; image++) {
      if (!run(context, *plan, x, y, scratch.data())) {
        const Layer whole = layer_with_codes(weights);
        run(context, *scalar_kernel.pack(whole)->plan(int(height), int(width)), x, y, nullptr);
      }
      x += size_t(layer_.in_channels) * height * width;
      y += size_t(layer_.out_channels) * out_height * out_width;
    }
  }

 private:
  Layer layer_with_codes(const int8_t* weights) {
    std::unique_lock lock(mutex_);
    Layer layer = layer_;
    lock.unlock();
    fill_codes(layer, weights);
    return layer;
  }

  // The plan for this size; those of the last few sizes are kept.
  std::shared_ptr<const Plan> plan_for(int height, int width, const int8_t* weights) {
    constexpr size_t kept = 4;
    std::lock_guard lock(mutex_);
    for (const auto& [size, plan] : plans_) {
      if (size == std::pair(height, width)) return plan;
    }
    if (!keeps_codes_) fill_codes(layer_, weights);
    std::shared_ptr<const Plan> plan = packed_->plan(height, width);
    if (plan == nullptr) {
      plan = scalar_kernel.pack(layer_)->plan(height, width);
      keeps_codes_ = true;  // which scalar plans read
    }
    if (!keeps_codes_) drop_codes(layer_);
    if (plans_.size() == kept) plans_.pop_front();
    plans_.emplace_back(std::pair(height, width), plan);
    return plan;
  }

  // Runs all stages on one image; false if a stage met a code that the kernel cannot take.
  static bool run(const abi::KernelContext* context, const Plan& plan, const uint8_t* x, uint8_t* y, uint8_t* scratch) {
    std::atomic<bool> good = true;
    for (int stage = 0; stage < plan.stages() && good; stage++) {
      const auto item = [&](size_t index) {
        if (!plan.run(stage, index, x, y, scratch)) good = false;
      };
      parallel_for(context, plan.items(stage), item);
    }
    return good;
  }

  Layer layer_;
  std::unique_ptr<PackedLayer> packed_;
  bool keeps_codes_;
  std::mutex mutex_;  // guards the members below, and the layer's codes
  std::list<std::pair<std::pair<int, int>, std::shared_ptr<const Plan>>> plans_;
  std::string choice_, why_not_others_;
};

// Weights are packed once: when the session is created, or in the first run if they are not constant then, because the
// file stores them in 4 or 2 bits and ONNX Runtime's optimizer is off: nodes of the file unpack them in each run. If they
// change in a later run, they are packed anew.
class ConvolutionNode final : public Node {
 public:
  ConvolutionNode(const abi::KernelInfo* info, const KernelSet& set, OperatorType type)
      : node_(read_constants(info)), set_(set), type_(type) {
    const abi::Value* weights = constant_or_null(info, w_input);
    constant_ = weights != nullptr;
    if (constant_) convolution_ = make(tensor_of<int8_t>(weights));
  }

  std::string describe() const override {
    std::lock_guard lock(mutex_);
    if (convolution_ != nullptr) return convolution_->describe();
    return std::string(operator_names[type_]) + ": chosen in the first run, for its weights are no constant";
  }

  void compute(abi::KernelContext* context) override {
    const abi::Value* weights = input_of(context, w_input);
    if (constant_) {
      convolution_->compute(context, data_of<const int8_t>(weights));
    } else {
      const Tensor<int8_t> read = tensor_of<int8_t>(weights);
      convolution_of(read)->compute(context, read.data);
    }
  }

 private:
  std::shared_ptr<Convolution> make(const Tensor<int8_t>& weights) const {
    return std::make_shared<Convolution>(make_layer(node_, weights), set_, type_);
  }

  std::shared_ptr<Convolution> convolution_of(const Tensor<int8_t>& weights) {
    std::lock_guard lock(mutex_);
    const bool same = convolution_ != nullptr && weights.shape == shape_ &&
                      std::equal(made_of_.begin(), made_of_.end(), weights.data);
    if (!same) {
      std::vector<int8_t> copy(weights.data, weights.data + weights.count());
      convolution_ = make(weights);
      shape_ = weights.shape;
      made_of_ = std::move(copy);
    }
    return convolution_;
  }

  const NodeConstants node_;
  const KernelSet& set_;
  const OperatorType type_;
  bool constant_;
  mutable std::mutex mutex_;  // guards the members below, if weights are not constant
  std::shared_ptr<Convolution> convolution_;
  std::vector<int64_t> shape_;
  std::vector<int8_t> made_of_;
};

}  // namespace

Signature convolution_signature() {
  return {{abi::uint8, abi::float32, abi::uint8, abi::int8, abi::float32, abi::int8, abi::float32, abi::uint8, abi::int32,
           abi::uint8, abi::uint8, abi::uint8},
          abi::uint8,
          [](const abi::KernelInfo* info, const KernelSet& set, OperatorType type) -> std::unique_ptr<Node> {
            return std::make_unique<ConvolutionNode>(info, set, type);
          }};
}

}  // namespace qil_deploy
