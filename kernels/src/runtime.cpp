#include "runtime.h"

namespace qil_deploy {

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

const abi::Value* input_of(const abi::KernelContext* context, size_t index) {
  const abi::Value* input;
  check(abi::KernelContextGetInput::of(api)(context, index, &input));
  return input;
}

const abi::Value* constant_or_null(const abi::KernelInfo* info, size_t index) {
  int is_constant = 0;
  const abi::Value* value = nullptr;
  check(abi::KernelInfoGetConstantInput::of(api)(info, index, &is_constant, &value));
  return is_constant ? value : nullptr;
}

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

int64_t integer(const abi::KernelInfo* info, const char* name, int64_t value) {
  int64_t found = 0;
  if (abi::Status* status = abi::KernelInfoGetInt64::of(api)(info, name, &found)) {
    abi::ReleaseStatus::of(api)(status);
    return value;
  }
  return found;
}

}  // namespace qil_deploy
