// The operators qil.deploy::TernaryConv and LowBitConv for ONNX Runtime: reads the node, picks its kernel, runs it.
//
// Exported: RegisterCustomOps (ONNX Runtime calls it), and two functions that say what was chosen
// (qil_deploy_kernels_explain, qil_deploy_kernels_layers).
#include <atomic>
#include <cstdlib>
#include <list>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kernel_sets.h"
#include "lowbit_conv.h"
#include "onnxruntime_abi.h"

namespace abi = onnxruntime_abi;

namespace qil_deploy {

namespace {

const abi::AnyFunction* api;  // the same table in every session of a process

// A status of ONNX Runtime as an exception: it passes on unchanged to the runtime.
struct StatusError {
  abi::Status* status;
};

void check(abi::Status* status) {
  if (status != nullptr) throw StatusError{status};
}

[[noreturn]] void refuse(const std::string& text) { throw std::invalid_argument(text); }

// Runs `body` and turns what it throws into a status: nothing may be thrown into ONNX Runtime.
template <typename Body>
abi::Status* guarded(Body body) {
  const auto status = [](int code, const std::string& text) {
    return abi::CreateStatus::of(api)(code, ("qil.deploy: " + text).c_str());
  };
  try {
    body();
    return nullptr;
  } catch (const StatusError& error) {
    return error.status;
  } catch (const std::invalid_argument& error) {
    return status(abi::invalid_argument, error.what());
  } catch (const std::bad_alloc&) {
    return status(abi::fail, "out of memory");
  } catch (const std::exception& error) {
    return status(abi::fail, error.what());
  }
}

// ---- Reading a node

enum Input {
  x_input, x_scale_input, x_zero_point_input, w_input, w_scale_input, w_zero_point_input, y_scale_input,
  y_zero_point_input, bias_input, low_input, high_input, x_high_input, input_count,
};
constexpr const char* input_names[input_count] = {"x", "x_scale", "x_zero_point", "w", "w_scale", "w_zero_point",
                                                  "y_scale", "y_zero_point", "bias", "low", "high", "x_high"};
constexpr int input_types[input_count] = {abi::uint8, abi::float32, abi::uint8, abi::int8, abi::float32, abi::int8,
                                          abi::float32, abi::uint8, abi::int32, abi::uint8, abi::uint8, abi::uint8};

std::vector<int64_t> shape_of(const abi::Value* value) {
  abi::TensorInfo* info;
  check(abi::GetTensorTypeAndShape::of(api)(value, &info));
  size_t rank = 0;
  abi::Status* status = abi::GetDimensionsCount::of(api)(info, &rank);
  std::vector<int64_t> shape(rank);
  if (status == nullptr) status = abi::GetDimensions::of(api)(info, shape.data(), rank);
  abi::ReleaseTensorInfo::of(api)(info);
  check(status);
  return shape;
}

template <typename T>
T* data_of(const abi::Value* value) {
  void* data;
  check(abi::GetTensorMutableData::of(api)(const_cast<abi::Value*>(value), &data));
  return static_cast<T*>(data);
}

template <typename T>
struct Constant {
  std::vector<int64_t> shape;
  const T* data;
  size_t count() const {
    size_t product = 1;
    for (int64_t size : shape) product *= size_t(size);
    return product;
  }
};

template <typename T>
Constant<T> constant(const abi::KernelInfo* info, Input index) {
  int is_constant = 0;
  const abi::Value* value = nullptr;
  check(abi::KernelInfoGetConstantInput::of(api)(info, index, &is_constant, &value));
  if (!is_constant || value == nullptr) refuse(std::string(input_names[index]) + " must be a constant");
  return {shape_of(value), data_of<T>(value)};
}

template <typename T>
T scalar(const abi::KernelInfo* info, Input index) {
  const Constant<T> tensor = constant<T>(info, index);
  if (tensor.count() != 1) refuse(std::string(input_names[index]) + " must hold one value");
  return tensor.data[0];
}

// An attribute of integers; `value` (its default) where the node lacks it.
std::vector<int> integers(const abi::KernelInfo* info, const char* name, std::vector<int> value, int least) {
  std::vector<int64_t> found(16);
  size_t count = found.size();
  if (abi::Status* status = abi::KernelInfoGetInt64s::of(api)(info, name, found.data(), &count)) {
    abi::ReleaseStatus::of(api)(status);
    return value;
  }
  if (count != value.size()) refuse(std::string(name) + " must have " + std::to_string(value.size()) + " values");
  for (size_t i = 0; i < count; i++) {
    if (found[i] < least || found[i] > 65535) {
      refuse(std::string(name) + " must lie in " + std::to_string(least) + "..65535, and one is " +
             std::to_string(found[i]));
    }
    value[i] = int(found[i]);
  }
  return value;
}

int64_t group_count(const abi::KernelInfo* info) {
  int64_t groups = 1;
  if (abi::Status* status = abi::KernelInfoGetInt64::of(api)(info, "group", &groups)) {
    abi::ReleaseStatus::of(api)(status);
    return 1;
  }
  return groups;
}

// Reads shapes and attributes.
void read_convolution(const abi::KernelInfo* info, const std::vector<int64_t>& shape, Layer& layer) {
  if (shape.size() != 4) refuse("w must have four dimensions, and has " + std::to_string(shape.size()));
  int64_t taps = 1;
  for (int64_t size : shape) {
    if (size < 1 || size > (1 << 24)) refuse("w has a dimension of " + std::to_string(size));
  }
  for (int i = 1; i < 4; i++) {
    taps *= shape[i];
    if (taps > (1 << 24)) refuse("w has more than 2**24 weights for one output channel");
  }
  const int64_t groups = group_count(info);
  if (groups < 1 || shape[0] % groups != 0) {
    refuse("group must divide the " + std::to_string(shape[0]) + " output channels, and is " + std::to_string(groups));
  }
  if (shape[1] * groups > (1 << 24)) refuse("more than 2**24 input channels");
  layer.out_channels = int(shape[0]);
  layer.in_channels = int(shape[1] * groups);
  layer.groups = int(groups);
  layer.kernel_h = int(shape[2]);
  layer.kernel_w = int(shape[3]);
  if (integers(info, "kernel_shape", {layer.kernel_h, layer.kernel_w}, 1) !=
      std::vector<int>{layer.kernel_h, layer.kernel_w}) {
    refuse("kernel_shape is not that of w");
  }
  const std::vector<int> strides = integers(info, "strides", {1, 1}, 1);
  const std::vector<int> dilations = integers(info, "dilations", {1, 1}, 1);
  const std::vector<int> pads = integers(info, "pads", {0, 0, 0, 0}, 0);
  std::tie(layer.stride_h, layer.stride_w) = std::pair(strides[0], strides[1]);
  std::tie(layer.dilation_h, layer.dilation_w) = std::pair(dilations[0], dilations[1]);
  std::tie(layer.pad_top, layer.pad_left) = std::pair(pads[0], pads[1]);
  std::tie(layer.pad_bottom, layer.pad_right) = std::pair(pads[2], pads[3]);
}

void read_layer(const abi::KernelInfo* info, Layer& layer) {
  const Constant<int8_t> weights = constant<int8_t>(info, w_input);
  read_convolution(info, weights.shape, layer);
  if (scalar<uint8_t>(info, x_zero_point_input) != 0) refuse("x_zero_point must be 0");
  const Constant<int8_t> zero_points = constant<int8_t>(info, w_zero_point_input);
  for (size_t i = 0; i < zero_points.count(); i++) {
    if (zero_points.data[i] != 0) refuse("w_zero_point must be 0");
  }
  const Constant<float> scales = constant<float>(info, w_scale_input);
  if (scales.count() != 1 && scales.count() != size_t(layer.out_channels)) {
    refuse("w_scale must hold one value or one for each output channel");
  }
  const Constant<int32_t> bias = constant<int32_t>(info, bias_input);
  if (bias.count() != size_t(layer.out_channels)) refuse("bias must hold one value for each output channel");
  layer.output_zero_point = scalar<uint8_t>(info, y_zero_point_input);
  layer.low = scalar<uint8_t>(info, low_input);
  layer.high = scalar<uint8_t>(info, high_input);
  layer.input_high = scalar<uint8_t>(info, x_high_input);
  fill_layer(layer, {weights.data, scales.data, scales.count(), scalar<float>(info, x_scale_input),
                     scalar<float>(info, y_scale_input), bias.data});
}

// ---- Scratch memory: shared by all nodes and sessions, so that a process holds as much as its largest runs at once need

class ScratchPool {
 public:
  struct Buffer {
    uint8_t* data = nullptr;
    size_t bytes = 0;
  };

  Buffer take(size_t bytes) {
    if (bytes == 0) return {};
    {
      std::lock_guard lock(mutex_);
      for (size_t i = 0; i < free_.size(); i++) {
        if (free_[i].bytes < bytes) continue;
        const Buffer buffer = free_[i];
        free_[i] = free_.back();
        free_.pop_back();
        return buffer;
      }
      if (!free_.empty()) {  // too small for this one: grows instead of staying beside a larger one
        std::free(free_.back().data);
        free_.pop_back();
      }
    }
    const size_t rounded = (bytes + 63) / 64 * 64;
    void* data = std::aligned_alloc(64, rounded);
    if (data == nullptr) throw std::bad_alloc();
    return {static_cast<uint8_t*>(data), rounded};
  }

  void give_back(Buffer buffer) {
    if (buffer.data == nullptr) return;
    std::lock_guard lock(mutex_);
    free_.push_back(buffer);
  }

 private:
  std::mutex mutex_;
  std::vector<Buffer> free_;
};

ScratchPool scratch_pool;

class Scratch {
 public:
  explicit Scratch(size_t bytes) : buffer_(scratch_pool.take(bytes)) {}
  ~Scratch() { scratch_pool.give_back(buffer_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  uint8_t* data() const { return buffer_.data; }

 private:
  ScratchPool::Buffer buffer_;
};

// ---- The nodes that live, for qil_deploy_kernels_layers

class Node;
std::mutex layers_mutex;
std::list<const Node*> live_nodes;

// ---- A node

class Node {
 public:
  Node(const abi::KernelInfo* info, const KernelSet& set, OperatorType type) {
    read_layer(info, layer_);
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
    choice_ = std::string(operator_names[type]) + " " + layer_.describe() + ": " + chosen->name;
    std::lock_guard lock(layers_mutex);
    place_ = live_nodes.insert(live_nodes.end(), this);
  }

  ~Node() {
    std::lock_guard lock(layers_mutex);
    live_nodes.erase(place_);
  }

  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  // The operator, the layer, its kernel, the memory of weights as far as they are packed, and why not another kernel.
  std::string describe() const { 
    return choice_ + ", " + std::to_string(packed_->weight_bytes()) + " bytes of weights" + why_not_others_;
  }

  void compute(abi::KernelContext* context) {
    const abi::Value* input;
    check(abi::KernelContextGetInput::of(api)(context, x_input, &input));
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
    const int64_t out_shape[4] = {shape[0], layer_.out_channels, out_height, out_width};
    abi::Value* output;
    check(abi::KernelContextGetOutput::of(api)(context, 0, out_shape, 4, &output));
    if (shape[0] == 0) return;
    const std::shared_ptr<const Plan> plan = plan_for(int(height), int(width));
    const Scratch scratch(plan->scratch_bytes());
    const uint8_t* x = data_of<const uint8_t>(input);
    uint8_t* y = data_of<uint8_t>(output);
    for (int64_t image = 0; image < shape[0]; image++) {
      if (!run(context, *plan, x, y, scratch.data())) {
        run(context, *scalar_kernel.pack(layer_)->plan(int(height), int(width)), x, y, nullptr);
      }
      x += size_t(layer_.in_channels) * height * width;
      y += size_t(layer_.out_channels) * out_height * out_width;
    }
  }

 private:
  // The plan for this size: kept for the sizes met last, a few of them.
  std::shared_ptr<const Plan> plan_for(int height, int width) {
    constexpr size_t kept = 4;
    std::lock_guard lock(mutex_);
    for (const auto& [size, plan] : plans_) {
      if (size == std::pair(height, width)) return plan;
    }
    std::shared_ptr<const Plan> plan = packed_->plan(height, width);
    if (plan == nullptr) plan = scalar_kernel.pack(layer_)->plan(height, width);
    if (plans_.size() == kept) plans_.pop_front();
    plans_.emplace_back(std::pair(height, width), plan);
    return plan;
  }

  // Runs all stages on one image; false where a stage met a code that the kernel cannot take.
  static bool run(const abi::KernelContext* context, const Plan& plan, const uint8_t* x, uint8_t* y, uint8_t* scratch) {
    struct Job {
      const Plan& plan;
      int stage;
      const uint8_t* x;
      uint8_t *y, *scratch;
      std::atomic<bool> good;
    } job{plan, 0, x, y, scratch, true};
    const auto item = [](void* data, size_t index) {
      Job& job = *static_cast<Job*>(data);
      if (!job.plan.run(job.stage, index, job.x, job.y, job.scratch)) job.good = false;
    };
    for (; job.stage < plan.stages() && job.good; job.stage++) {
      const size_t items = plan.items(job.stage);
      check(abi::KernelContextParallelFor::of(api)(context, item, items, items, &job));
    }
    return job.good;
  }

  Layer layer_;
  std::unique_ptr<PackedLayer> packed_;
  std::mutex mutex_;
  std::list<std::pair<std::pair<int, int>, std::shared_ptr<const Plan>>> plans_;
  std::string choice_, why_not_others_;
  std::list<const Node*>::iterator place_;
};

// ---- The operator

// An operator as one set of kernels computes it. ONNX Runtime hands it back when it creates a kernel.
struct Operator : abi::CustomOp {
  const KernelSet* set;
  OperatorType type;
};

Operator make_operator(const KernelSet& set, OperatorType type) {
  Operator op{};
  op.set = &set;
  op.type = type;
  op.version = abi::version;
  op.GetName = [](const abi::CustomOp* op) { return operator_names[static_cast<const Operator*>(op)->type]; };
  op.GetExecutionProviderType = [](const abi::CustomOp*) -> const char* { return nullptr; };
  op.GetInputType = [](const abi::CustomOp*, size_t index) { return index < input_count ? input_types[index] : 0; };
  op.GetInputTypeCount = [](const abi::CustomOp*) -> size_t { return input_count; };
  op.GetOutputType = [](const abi::CustomOp*, size_t) { return int{abi::uint8}; };
  op.GetOutputTypeCount = [](const abi::CustomOp*) -> size_t { return 1; };
  op.KernelDestroy = [](void* node) { delete static_cast<Node*>(node); };
  op.GetInputCharacteristic = [](const abi::CustomOp*, size_t) { return 0; };
  op.GetOutputCharacteristic = [](const abi::CustomOp*, size_t) { return 0; };
  op.GetInputMemoryType = [](const abi::CustomOp*, size_t) { return 0; };
  op.GetVariadicInputMinArity = [](const abi::CustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = [](const abi::CustomOp*) { return 1; };
  op.GetVariadicOutputMinArity = [](const abi::CustomOp*) { return 1; };
  op.GetVariadicOutputHomogeneity = [](const abi::CustomOp*) { return 1; };
  op.CreateKernelV2 = [](const abi::CustomOp* op, const abi::AnyFunction*, const abi::KernelInfo* info, void** kernel) {
    const Operator& chosen = *static_cast<const Operator*>(op);
    return guarded([&] { *kernel = new Node(info, *chosen.set, chosen.type); });
  };
  op.KernelComputeV2 = [](void* node, abi::KernelContext* context) {
    return guarded([&] { static_cast<Node*>(node)->compute(context); });
  };
  op.InferOutputShape = [](const abi::CustomOp*, void*) -> abi::Status* { return nullptr; };  // known when it runs
  op.GetStartVersion = [](const abi::CustomOp*) { return 1; };
  op.GetEndVersion = [](const abi::CustomOp*) { return 0x7fffffff; };
  return op;
}

// One for each set and type, made once: an operator must outlive all sessions, and must not change under them.
const abi::CustomOp* operator_of(const KernelSet& set, OperatorType type) {
  static const std::vector<Operator> operators = [] {
    std::vector<Operator> all;
    for (const KernelSet& set : kernel_sets()) {
      for (int i = 0; i < operator_count; i++) all.push_back(make_operator(set, OperatorType(i)));
    }
    return all;
  }();
  return &operators[size_t(&set - kernel_sets().data()) * operator_count + type];
}

// A text that stays until the calling thread asks again.
const char* keep(std::string text) {
  thread_local std::string kept;
  kept = std::move(text);
  return kept.c_str();
}

}  // namespace

}  // namespace qil_deploy

extern "C" {

// Adds each operator of the domain qil.deploy for which a set of kernels wins on this processor to a session's options. For
// others ONNX Runtime runs the function of the same name in the file.
__attribute__((visibility("default"))) abi::Status* RegisterCustomOps(abi::SessionOptions* options,
                                                                      const abi::ApiBase* base) {
  using namespace qil_deploy;
  const abi::AnyFunction* table = base->GetApi(abi::version);
  if (table == nullptr) return nullptr;  // older than 1.17: it runs the function
  api = table;
  return guarded([&] {
    std::vector<const abi::CustomOp*> operators;
    for (int i = 0; i < operator_count; i++) {
      const Choice choice = choose_kernel_set(OperatorType(i));
      if (choice.invalid) refuse(choice.reason);
      if (choice.set != nullptr) operators.push_back(operator_of(*choice.set, OperatorType(i)));
    }
    if (operators.empty()) return;
    abi::CustomOpDomain* domain;
    check(abi::CreateCustomOpDomain::of(api)("qil.deploy", &domain));
    for (const abi::CustomOp* op : operators) check(abi::CustomOpDomainAdd::of(api)(domain, op));
    check(abi::AddCustomOpDomain::of(api)(options, domain));
  });
}

// Which sets this processor can run, which is chosen and why: lines of text, valid until the thread's next call.
__attribute__((visibility("default"))) const char* qil_deploy_kernels_explain() {
  return qil_deploy::keep(qil_deploy::explain_choice());
}

// One line per node of all sessions that live: the layer, its kernel, and why not another.
__attribute__((visibility("default"))) const char* qil_deploy_kernels_layers() {
  std::lock_guard lock(qil_deploy::layers_mutex);
  std::string text;
  for (const qil_deploy::Node* node : qil_deploy::live_nodes) text += node->describe() + "\n";
  return qil_deploy::keep(text);
}
}
