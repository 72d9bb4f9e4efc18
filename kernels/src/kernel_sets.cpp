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

std::string avx2_is_faster() {
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
#endif

}  // namespace

const std::vector<KernelSet>& kernel_sets() {
  static const std::vector<KernelSet> sets = {
#if defined(__x86_64__)
      {"avx512vbmi",
       "AVX-512 with VBMI, VBMI2 and VNNI",
       has_avx512_vbmi,
       always_faster,
       {&lookup_avx512_kernel, &depthwise_avx2_kernel, &dot_avx512_kernel}},
      {"avx2", "AVX2", has_avx2, avx2_is_faster, {&lookup_avx2_kernel, &depthwise_avx2_kernel, &narrow_avx2_kernel}},
#elif defined(__aarch64__)
      {"neon",
       "NEON",
       [] { return true; },
       why_neon_is_not_faster,
       {&neon::depthwise_kernel, &neon::lookup_kernel, &neon::narrow_kernel}},
#endif
      {"scalar", "nothing special", [] { return true; }, [] { return std::string("it is there for tests"); }, {}},
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

Choice forced_choice(const std::string& name) {
  if (name == "off") return {nullptr, std::string(variable) + " is off", false};
  for (const KernelSet& set : kernel_sets()) {
    if (set.name != name) continue;
    if (!set.runs_here()) {
      return {nullptr, std::string(variable) + "=" + name + " needs " + set.instructions + ", which this processor lacks",
              true};
    }
    return {&set, std::string(variable) + " asks for it", false};
  }
  return {nullptr, std::string(variable) + " is none of " + names_of_sets(), true};
}

}  // namespace

Choice choose_kernel_set() {
  const char* wanted = std::getenv(variable);
  if (wanted != nullptr && *wanted != '\0') return forced_choice(wanted);
  for (const KernelSet& set : kernel_sets()) {
    if (set.runs_here() && set.why_not_faster().empty()) {
      return {&set, "the first that is faster here than ONNX Runtime's own kernels", false};
    }
  }
  return {nullptr, "no set is faster here than ONNX Runtime's own kernels, which run instead", false};
}

std::string explain_choice() {
  std::string text;
  for (const KernelSet& set : kernel_sets()) {
    text += std::string(set.name) + ": ";
    if (!set.runs_here()) {
      text += std::string("the processor lacks ") + set.instructions;
    } else {
      const std::string reason = set.why_not_faster();
      text += reason.empty() ? "faster than ONNX Runtime's own kernels" : "runs, but " + reason;
    }
    text += "\n";
  }
  const Choice choice = choose_kernel_set();
  return text + "chosen: " + (choice.set == nullptr ? "none" : choice.set->name) + " (" + choice.reason + ")\n";
}

}  // namespace qil_deploy
