// Runs a file once by ONNX Runtime's C interface, with the kernel library: in a process without Python.
//
//   run_by_c libonnxruntime.so MODEL.onnx LIBRARY.so X Y N C H W
//
// X holds the uint8 codes of the input "x", [N, C, H, W]; the codes of the output "y" go to Y. Exit code 1: ONNX Runtime
// refused something, and said why.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "onnxruntime_abi.h"

namespace abi = onnxruntime_abi;

namespace {

struct Environment;
struct Session;
struct MemoryInfo;

using GetErrorMessage = abi::Slot<2, const char* (*)(const abi::Status*)>;
using CreateEnvironment = abi::Slot<3, abi::Status* (*)(int level, const char* name, Environment** out)>;
using CreateSession =
    abi::Slot<7, abi::Status* (*)(const Environment*, const char* path, const abi::SessionOptions*, Session** out)>;
using Run = abi::Slot<9, abi::Status* (*)(Session*, const void* options, const char* const* inputs,
                                          const abi::Value* const* values, size_t count, const char* const* outputs,
                                          size_t output_count, abi::Value** out)>;
using CreateSessionOptions = abi::Slot<10, abi::Status* (*)(abi::SessionOptions** out)>;
using CreateTensor = abi::Slot<49, abi::Status* (*)(const MemoryInfo*, void* data, size_t bytes, const int64_t* shape,
                                                    size_t rank, int type, abi::Value** out)>;
using GetElementCount = abi::Slot<64, abi::Status* (*)(const abi::TensorInfo*, size_t* out)>;
using CreateCpuMemoryInfo = abi::Slot<69, abi::Status* (*)(int allocator, int memory, MemoryInfo** out)>;
using RegisterLibrary = abi::Slot<228, abi::Status* (*)(abi::SessionOptions*, const char* path)>;

const abi::AnyFunction* api;

void check(abi::Status* status) {
  if (status == nullptr) return;
  std::fprintf(stderr, "%s\n", GetErrorMessage::of(api)(status));
  std::exit(1);
}

std::vector<char> bytes_of(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

int main(int, char** arguments) {
  void* runtime = dlopen(arguments[1], RTLD_NOW);
  if (runtime == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  const auto base = reinterpret_cast<const abi::ApiBase* (*)()>(dlsym(runtime, "OrtGetApiBase"));
  api = base()->GetApi(abi::version);
  Environment* environment;
  abi::SessionOptions* options;
  Session* session;
  MemoryInfo* memory;
  abi::Value *x, *y = nullptr;
  abi::TensorInfo* info;
  check(CreateEnvironment::of(api)(3, "test", &environment));
  check(CreateSessionOptions::of(api)(&options));
  check(RegisterLibrary::of(api)(options, arguments[3]));
  check(CreateSession::of(api)(environment, arguments[2], options, &session));
  std::vector<char> codes = bytes_of(arguments[4]);
  int64_t shape[4];
  for (int i = 0; i < 4; i++) shape[i] = std::atoll(arguments[6 + i]);
  check(CreateCpuMemoryInfo::of(api)(0, 0, &memory));
  check(CreateTensor::of(api)(memory, codes.data(), codes.size(), shape, 4, abi::uint8, &x));
  const char *input = "x", *output = "y";
  check(Run::of(api)(session, nullptr, &input, &x, 1, &output, 1, &y));
  check(abi::GetTensorTypeAndShape::of(api)(y, &info));
  size_t count;
  check(GetElementCount::of(api)(info, &count));
  void* made;
  check(abi::GetTensorMutableData::of(api)(y, &made));
  std::ofstream(arguments[5], std::ios::binary).write(static_cast<const char*>(made), std::streamsize(count));
  // What the kernels say of their layers, while the session lives.
  void* library = dlopen(arguments[3], RTLD_NOW);
  std::printf("%s", reinterpret_cast<const char* (*)()>(dlsym(library, "qil_deploy_kernels_layers"))());
  std::fflush(stdout);
  std::_Exit(0);  // nothing is given back: the process ends
}
