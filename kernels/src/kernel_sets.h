// The sets of kernels that this library was built with, and the one that this processor gets.
#pragma once

#include <string>
#include <vector>

#include "lowbit_conv.h"

namespace qil_deploy {

struct KernelSet {
  const char* name;          // value of QIL_DEPLOY_KERNELS: "avx2"
  const char* instructions;  // what it needs, for messages: "AVX2"
  bool (*runs_here)();       // whether this processor has them
  // Empty where the set is faster than ONNX Runtime's own kernels on this processor, else why not. Asked only where
  // runs_here().
  std::string (*why_not_faster)();
  std::vector<const Kernel*> kernels;  // tried in order; the scalar kernel takes what they leave
};

// All sets of this architecture, the preferred first. The last is "scalar", which is never faster.
const std::vector<KernelSet>& kernel_sets();

struct Choice {
  const KernelSet* set;  // null: nothing is registered, ONNX Runtime runs the function in the file
  std::string reason;    // one sentence
  bool invalid;          // QIL_DEPLOY_KERNELS names no set, or one that this processor cannot run
};

// QIL_DEPLOY_KERNELS where it is set (the name of a set, or "off"), else the first set that wins here.
Choice choose_kernel_set();

// What the processor has, what is chosen and why; lines of text.
std::string explain_choice();

}  // namespace qil_deploy
