// A node of a session, of any operator of the domain qil.deploy, and the operator descriptions for ONNX Runtime.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernel_sets.h"
#include "runtime.h"

namespace qil_deploy {

class Node {
 public:
  Node() = default;
  virtual ~Node() = default;
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  // The operator, the layer, its kernel, the memory of its weights, and why no other kernel.
  virtual std::string describe() const = 0;

  // Runs on the context's tensors. May be called by several threads at once. Throws exceptions that `guarded` catches.
  virtual void compute(abi::KernelContext* context) = 0;
};

struct Signature {
  std::vector<int> input_types;
  int output_type;
  // Throws std::invalid_argument with a sentence if no kernel computes it.
  std::unique_ptr<Node> (*make)(const abi::KernelInfo* info, const KernelSet& set, OperatorType type);
};

Signature convolution_signature();
Signature matmul_signature();
Signature max_pool_signature();
Signature residual_add_signature();
Signature low_bit_rescale_signature();

}  // namespace qil_deploy
