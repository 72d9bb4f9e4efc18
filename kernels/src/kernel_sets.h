// The sets of kernels in this library, and the choice among them for this processor.
#pragma once

#include <string>
#include <vector>

#include "addition.h"
#include "lowbit_conv.h"
#include "lowbit_matmul.h"

namespace qil_deploy {

// The operators of the domain qil.deploy. The first two compute what lowbit_conv.h defines: a kernel cannot decline a node
// once its operator is registered, so layers whose sums can be looked up have an operator of their own, and each is
// registered separately if it wins. lowbit_matmul.h, max_pool_node.cpp and addition.h define the others.
enum OperatorType {
  ternary_conv,
  low_bit_conv,
  low_bit_matmul,
  low_bit_max_pool,
  residual_add,
  low_bit_rescale,
  operator_count
};
constexpr const char* operator_names[operator_count] = {"TernaryConv",   "LowBitConv",  "LowBitMatMul",
                                                        "LowBitMaxPool", "ResidualAdd", "LowBitRescale"};

// The kernels of a set for one of the operators.
struct OperatorKernels {
  std::vector<const Kernel*> kernels;  // of a convolution, tried in order; the scalar kernel takes the rest
  // Empty if the kernels are faster than ONNX Runtime's own on this processor, else the reason. Called only if the set
  // runs here.
  std::string (*why_not_faster)();
  const MatMulKernel* matmul = nullptr;  // of LowBitMatMul
  bool pools = false;                    // whether LowBitMaxPool is registered, whose one kernel is for all processors
  const AddKernel* add = nullptr;          // of ResidualAdd
  const RescaleKernel* rescale = nullptr;  // of LowBitRescale

  bool empty() const {  // then it is never registered
    return kernels.empty() && matmul == nullptr && !pools && add == nullptr && rescale == nullptr;
  }
};

struct KernelSet {
  const char* name;          // value of QIL_DEPLOY_KERNELS: "avx2"
  const char* instructions;  // that it needs, for messages: "AVX2"
  bool (*runs_here)();       // whether this processor has them
  OperatorKernels operators[operator_count];
};

// All sets of this architecture, the preferred first. The last is "scalar", which is never faster.
const std::vector<KernelSet>& kernel_sets();

struct Choice {
  const KernelSet* set;  // null: the operator is not registered, ONNX Runtime runs the function in the file
  std::string reason;    // one sentence
  bool invalid;          // QIL_DEPLOY_KERNELS names no set, or one that this processor cannot run
};

// For one operator: QIL_DEPLOY_KERNELS if it is set (the name of a set, or "off"), else the first set that wins here.
Choice choose_kernel_set(OperatorType type);

// For each operator the kernels of all sets, the choice and the reason; lines of text.
std::string explain_choice();

}  // namespace qil_deploy
