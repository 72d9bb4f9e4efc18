// The operators of the domain qil.deploy for ONNX Runtime: their registration, and a list of live nodes.
//
// Exported: RegisterCustomOps (ONNX Runtime calls it), and two functions that report the choices
// (qil_deploy_kernels_explain, qil_deploy_kernels_layers).
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "kernel_sets.h"
#include "node.h"
#include "runtime.h"

namespace abi = onnxruntime_abi;

namespace qil_deploy {

namespace {

// ---- Live nodes, for qil_deploy_kernels_layers

std::mutex layers_mutex;
std::list<std::unique_ptr<Node>> live_nodes;

Node* keep(std::unique_ptr<Node> node) {
  std::lock_guard lock(layers_mutex);
  live_nodes.push_back(std::move(node));
  return live_nodes.back().get();
}

void remove(Node* node) {
  std::lock_guard lock(layers_mutex);
  live_nodes.remove_if([node](const std::unique_ptr<Node>& other) { return other.get() == node; });
}

// ---- The operator

// An operator as one set of kernels computes it. ONNX Runtime hands it back when it creates a kernel.
struct Operator : abi::CustomOp {
  const KernelSet* set;
  OperatorType type;
  Signature signature;
};

const Operator& operator_at(const abi::CustomOp* op) { return *static_cast<const Operator*>(op); }

Signature signature_of(OperatorType type) {
  switch (type) {
    case low_bit_matmul:
      return matmul_signature();
    case low_bit_max_pool:
      return max_pool_signature();
    case residual_add:
      return residual_add_signature();
    case low_bit_rescale:
      return low_bit_rescale_signature();
    default:
      return convolution_signature();
  }
}

Operator make_operator(const KernelSet& set, OperatorType type) {
  Operator op{};
  op.set = &set;
  op.type = type;
  op.signature = signature_of(type);
  op.version = abi::version;
  op.GetName = [](const abi::CustomOp* op) { return operator_names[operator_at(op).type]; };
  op.GetExecutionProviderType = [](const abi::CustomOp*) -> const char* { return nullptr; };
  op.GetInputType = [](const abi::CustomOp* op, size_t index) {
    const std::vector<int>& types = operator_at(op).signature.input_types;
    return index < types.size() ? types[index] : 0;
  };
  op.GetInputTypeCount = [](const abi::CustomOp* op) { return operator_at(op).signature.input_types.size(); };
  op.GetOutputType = [](const abi::CustomOp* op, size_t) { return operator_at(op).signature.output_type; };
  op.GetOutputTypeCount = [](const abi::CustomOp*) -> size_t { return 1; };
  op.KernelDestroy = [](void* node) { remove(static_cast<Node*>(node)); };
  op.GetInputCharacteristic = [](const abi::CustomOp*, size_t) { return 0; };
  op.GetOutputCharacteristic = [](const abi::CustomOp*, size_t) { return 0; };
  op.GetInputMemoryType = [](const abi::CustomOp*, size_t) { return 0; };
  op.GetVariadicInputMinArity = [](const abi::CustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = [](const abi::CustomOp*) { return 1; };
  op.GetVariadicOutputMinArity = [](const abi::CustomOp*) { return 1; };
  op.GetVariadicOutputHomogeneity = [](const abi::CustomOp*) { return 1; };
  op.CreateKernelV2 = [](const abi::CustomOp* op, const abi::AnyFunction*, const abi::KernelInfo* info, void** kernel) {
    const Operator& chosen = operator_at(op);
    return guarded([&] { *kernel = keep(chosen.signature.make(info, *chosen.set, chosen.type)); });
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

// A text that is valid until the calling thread's next call.
const char* keep_text(std::string text) {
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

// The sets that this processor can run, the chosen one and the reason: lines of text, valid until the thread's next call.
__attribute__((visibility("default"))) const char* qil_deploy_kernels_explain() {
  return qil_deploy::keep_text(qil_deploy::explain_choice());
}

// One line per node of all live sessions: the layer, its kernel, and why no other.
__attribute__((visibility("default"))) const char* qil_deploy_kernels_layers() {
  std::lock_guard lock(qil_deploy::layers_mutex);
  std::string text;
  for (const auto& node : qil_deploy::live_nodes) text += node->describe() + "\n";
  return qil_deploy::keep_text(text);
}
}
