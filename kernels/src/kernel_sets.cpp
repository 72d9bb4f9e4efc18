#include "kernel_sets.h"

#include <cstdlib>

#if defined(__x86_64__)
#include <cpuid.h>

#include "x86/x86_kernels.h"
#elif defined(__aarch64__)
#include "neon/convolution.h"
#endif

namespace qil_deploy {

namespace {

#if defined(__x86_64__)
std::string always_faster() { return ""; }

bool has_avx512_vbmi() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
         __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("bmi2");
}

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
         __builtin_cpu_supports("fma");
}

// AVX-VNNI, which GCC 12 cannot ask for by name: leaf 7.1, bit 4 of EAX.
bool has_avx_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 4 & 1) != 0;
}

std::string why_dot_products_win() { return "ONNX Runtime's own are faster, with dot products (VNNI)"; }

std::string why_avx2_is_not_faster() {
  if (has_avx_vnni() || __builtin_cpu_supports("avx512vnni")) {
    return "the processor has dot products (VNNI), with which ONNX Runtime is as fast";
  }
  return "";
}
#elif defined(__aarch64__)
std::string why_neon_is_not_faster() {
  if (!neon::has_dot_product()) return "";
  return "it has dot-product instructions, with which ONNX Runtime's own kernels are as fast";
}

std::string why_additions_are_fast() { return "ONNX Runtime's own additions take as few instructions"; }
#endif

std::string why_none_is_written() { return "none is written for its instructions, ONNX Runtime's own run"; }

std::string why_scalar_is_not_faster() { return "it is there for tests"; }

}  // namespace

// Pools, additions and rescalings are registered if the set's TernaryConv is: after ONNX Runtime's own convolutions, whose
// output has channels last, its own pools are as fast.
const std::vector<KernelSet>& kernel_sets() {
  static const std::vector<KernelSet> sets = {
#if defined(__x86_64__)
      {"avx512vbmi",
       "AVX-512 with VBMI, VBMI2 and VNNI",
       has_avx512_vbmi,
       {{{&lookup_avx512_kernel}, always_faster},
        {{}, why_dot_products_win},
        {{}, always_faster, &matmul_avx512_kernel},
        {{}, always_faster, nullptr, true},
        {{}, always_faster, nullptr, false, &add_avx512_kernel},
        {{}, always_faster, nullptr, false, nullptr, &rescale_avx512_kernel}}},
      {"avx2",
       "AVX2",
       has_avx2,
       {{{&winograd_avx2_kernel, &strided_avx2_kernel, &lookup_avx2_kernel}, why_avx2_is_not_faster},
        {{&winograd_avx2_kernel, &depthwise_by_channels_avx2_kernel, &direct_avx2_kernel, &depthwise_avx2_kernel,
          &narrow_avx2_kernel},
         why_avx2_is_not_faster},
        {{}, why_none_is_written},
        {{}, why_avx2_is_not_faster, nullptr, true},
        {{}, why_avx2_is_not_faster, nullptr, false, &add_avx2_kernel},
        {{}, why_avx2_is_not_faster, nullptr, false, nullptr, &rescale_avx2_kernel}}},
#elif defined(__aarch64__)
      {"neon",
       "NEON",
       [] { return true; },
       {{{&neon::lookup_kernel}, why_neon_is_not_faster},
        {{&neon::depthwise_kernel, &neon::lookup_kernel, &neon::narrow_kernel}, why_neon_is_not_faster},
        {{}, why_none_is_written},
        {{}, why_neon_is_not_faster, nullptr, true},
        {{}, why_additions_are_fast},
        {{}, why_neon_is_not_faster, nullptr, false, nullptr, &portable_rescale_kernel}}},
#endif
      {"scalar",
       "nothing special",
       [] { return true; },
       {{{&scalar_kernel}, why_scalar_is_not_faster},
        {{&scalar_kernel}, why_scalar_is_not_faster},
        {{}, why_scalar_is_not_faster, &scalar_matmul_kernel},
        {{}, why_scalar_is_not_faster, nullptr, true},
        {{}, why_scalar_is_not_faster, nullptr, false, &scalar_add_kernel},
        {{}, why_scalar_is_not_faster, nullptr, false, nullptr, &portable_rescale_kernel}}},
  };
  return sets;
}

namespace {

constexpr const char* variable = "QIL_DEPLOY_KERNELS";

std::string names_of_sets() {
  std::string names;
  for (const KernelSet& set : kernel_sets()) names += std::string(set.name) + ", ";
  return names + "off";
}

Choice forced_choice(const std::string& name, OperatorType type) {
  if (name == "off") return {nullptr, std::string(variable) + " is off", false};
  for (const KernelSet& set : kernel_sets()) {
    if (set.name != name) continue;
    if (!set.runs_here()) {
      return {nullptr, std::string(variable) + "=" + name + " needs " + set.instructions + ", which this processor lacks",
              true};
    }
    if (set.operators[type].empty()) {
      return {nullptr, std::string(variable) + " asks for " + name + ", which has no kernels for it", false};
    }
    return {&set, std::string(variable) + " asks for it", false};
  }
  return {nullptr, std::string(variable) + " is none of " + names_of_sets(), true};
}

}  // namespace

Choice choose_kernel_set(OperatorType type) {
  const char* wanted = std::getenv(variable);
  if (wanted != nullptr && *wanted != '\0') return forced_choice(wanted, type);
  for (const KernelSet& set : kernel_sets()) {
    if (!set.operators[type].empty() && set.runs_here() && set.operators[type].why_not_faster().empty()) {
      return {&set, "the first that is faster here than ONNX Runtime's own kernels", false};
    }
  }
  return {nullptr, "no set is faster here than ONNX Runtime's own kernels, which run instead", false};
}

namespace {

std::string explain_set(const KernelSet& set, const OperatorKernels& has) {
  if (!set.runs_here()) return std::string("the processor lacks ") + set.instructions;
  const std::string reason = has.why_not_faster();
  if (has.empty()) return "has no kernels: " + reason;
  return reason.empty() ? "faster than ONNX Runtime's own kernels" : "runs, but " + reason;
}

}  // namespace

std::string explain_choice() {
  std::string sets, choices;
  for (int i = 0; i < operator_count; i++) {
    const std::string for_operator = std::string(" for ") + operator_names[i] + ": ";
    for (const KernelSet& set : kernel_sets()) {
      sets += set.name + for_operator + explain_set(set, set.operators[i]) + "\n";
    }
    const Choice choice = choose_kernel_set(OperatorType(i));
    choices += "chosen" + for_operator + (choice.set == nullptr ? "none" : choice.set->name) + " (" + choice.reason + ")\n";
  }
  return sets + choices;
}

}  // namespace qil_deploy
