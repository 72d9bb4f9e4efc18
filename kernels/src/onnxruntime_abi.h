// The part of ONNX Runtime's C interface that this library uses, declared by hand: no package of pip or apt contains its
// header, and the interface is append-only, so that positions in its table never change.
//
// ONNX Runtime hands an `ApiBase` to RegisterCustomOps. `GetApi(version)` returns its table of functions, as that version of
// the interface had it, or null where the runtime is older than that. Version 17 has every function used here and a custom
// operator that can report errors; every runtime from 1.17 on has it. `Slot` names the functions by their position.
#pragma once

#include <cstddef>
#include <cstdint>

namespace onnxruntime_abi {

constexpr uint32_t version = 17;

struct Status;  // null: success
struct SessionOptions;
struct CustomOpDomain;
struct KernelInfo;
struct KernelContext;
struct Value;
struct TensorInfo;

using AnyFunction = void (*)();

struct ApiBase {
  const AnyFunction* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

// A function of the table: its position and its type.
template <size_t Place, typename Function>
struct Slot {
  static Function of(const AnyFunction* api) { return reinterpret_cast<Function>(api[Place]); }
};

struct CustomOp;

using CreateStatus = Slot<0, Status* (*)(int code, const char* message)>;
using CreateCustomOpDomain = Slot<26, Status* (*)(const char* domain, CustomOpDomain** out)>;
using CustomOpDomainAdd = Slot<27, Status* (*)(CustomOpDomain*, const CustomOp*)>;
using AddCustomOpDomain = Slot<28, Status* (*)(SessionOptions*, CustomOpDomain*)>;
using GetTensorMutableData = Slot<51, Status* (*)(Value*, void** out)>;
using GetDimensionsCount = Slot<61, Status* (*)(const TensorInfo*, size_t* out)>;
using GetDimensions = Slot<62, Status* (*)(const TensorInfo*, int64_t* out, size_t count)>;
using GetTensorTypeAndShape = Slot<65, Status* (*)(const Value*, TensorInfo** out)>;
using KernelInfoGetInt64 = Slot<86, Status* (*)(const KernelInfo*, const char* name, int64_t* out)>;
using KernelContextGetInput = Slot<90, Status* (*)(const KernelContext*, size_t index, const Value** out)>;
using KernelContextGetOutput =
    Slot<91, Status* (*)(KernelContext*, size_t index, const int64_t* shape, size_t rank, Value** out)>;
using ReleaseStatus = Slot<93, void (*)(Status*)>;
using ReleaseTensorInfo = Slot<99, void (*)(TensorInfo*)>;
using KernelInfoGetInt64s = Slot<163, Status* (*)(const KernelInfo*, const char* name, int64_t* out, size_t* count)>;
using KernelInfoGetConstantInput =
    Slot<249, Status* (*)(const KernelInfo*, size_t index, int* is_constant, const Value** out)>;
using KernelContextParallelFor =
    Slot<274, Status* (*)(const KernelContext*, void (*function)(void*, size_t), size_t total, size_t batches, void* data)>;

enum ElementType { float32 = 1, uint8 = 2, int8 = 3, int32 = 6 };
enum ErrorCode { fail = 1, invalid_argument = 2, runtime_exception = 6, invalid_graph = 10 };

// A custom operator, version 17: its members in their order. The first version's way to create and run a kernel (without a
// status) stays null. Must outlive every session that it was added to.
struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp*, const AnyFunction* api, const KernelInfo*);
  const char* (*GetName)(const CustomOp*);
  const char* (*GetExecutionProviderType)(const CustomOp*);  // null: the CPU's
  int (*GetInputType)(const CustomOp*, size_t index);
  size_t (*GetInputTypeCount)(const CustomOp*);
  int (*GetOutputType)(const CustomOp*, size_t index);
  size_t (*GetOutputTypeCount)(const CustomOp*);
  void (*KernelCompute)(void* kernel, KernelContext*);
  void (*KernelDestroy)(void* kernel);
  int (*GetInputCharacteristic)(const CustomOp*, size_t index);  // 0: required
  int (*GetOutputCharacteristic)(const CustomOp*, size_t index);
  int (*GetInputMemoryType)(const CustomOp*, size_t index);  // 0: the default
  int (*GetVariadicInputMinArity)(const CustomOp*);
  int (*GetVariadicInputHomogeneity)(const CustomOp*);
  int (*GetVariadicOutputMinArity)(const CustomOp*);
  int (*GetVariadicOutputHomogeneity)(const CustomOp*);
  Status* (*CreateKernelV2)(const CustomOp*, const AnyFunction* api, const KernelInfo*, void** kernel);
  Status* (*KernelComputeV2)(void* kernel, KernelContext*);
  Status* (*InferOutputShape)(const CustomOp*, void* context);
  int (*GetStartVersion)(const CustomOp*);
  int (*GetEndVersion)(const CustomOp*);
};

}  // namespace onnxruntime_abi
