// The parts of ONNX Runtime that the operators use: errors as exceptions, tensors, constants, attributes, threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "onnxruntime_abi.h"

namespace qil_deploy {

namespace abi = onnxruntime_abi;

inline const abi::AnyFunction* api = nullptr;  // the same table in every session of a process

// A status of ONNX Runtime as an exception, returned unchanged to the runtime.
struct StatusError {
  abi::Status* status;
};

inline void check(abi::Status* status) {
  if (status != nullptr) throw StatusError{status};
}

[[noreturn]] inline void refuse(const std::string& text) { throw std::invalid_argument(text); }

// Runs `body` and converts its exceptions to a status: nothing may be thrown into ONNX Runtime.
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

// ---- Tensors

std::vector<int64_t> shape_of(const abi::Value* value);

template <typename T>
T* data_of(const abi::Value* value) {
  void* data;
  check(abi::GetTensorMutableData::of(api)(const_cast<abi::Value*>(value), &data));
  return static_cast<T*>(data);
}

template <typename T>
struct Tensor {
  std::vector<int64_t> shape;
  const T* data;
  size_t count() const {
    size_t product = 1;
    for (int64_t size : shape) product *= size_t(size);
    return product;
  }
};

template <typename T>
Tensor<T> tensor_of(const abi::Value* value) {
  return {shape_of(value), data_of<T>(value)};
}

const abi::Value* input_of(const abi::KernelContext* context, size_t index);

// The first output, made in this shape.
template <typename T>
T* make_output(abi::KernelContext* context, const std::vector<int64_t>& shape) {
  abi::Value* output;
  check(abi::KernelContextGetOutput::of(api)(context, 0, shape.data(), shape.size(), &output));
  return data_of<T>(output);
}

// ---- Constant inputs and attributes, when a session is created

struct InputName {
  size_t index;
  const char* name;
};

// Null if the input is not constant.
const abi::Value* constant_or_null(const abi::KernelInfo* info, size_t index);

template <typename T>
Tensor<T> constant(const abi::KernelInfo* info, InputName input) {
  const abi::Value* value = constant_or_null(info, input.index);
  if (value == nullptr) refuse(std::string(input.name) + " must be a constant");
  return tensor_of<T>(value);
}

template <typename T>
T scalar(const abi::KernelInfo* info, InputName input) {
  const Tensor<T> tensor = constant<T>(info, input);
  if (tensor.count() != 1) refuse(std::string(input.name) + " must hold one value");
  return tensor.data[0];
}

// An attribute of integers from `least` to 65535; `value` (its default) if the node lacks it.
std::vector<int> integers(const abi::KernelInfo* info, const char* name, std::vector<int> value, int least);

// An attribute of one integer; `value` if the node lacks it.
int64_t integer(const abi::KernelInfo* info, const char* name, int64_t value);

// ---- Threads

// Calls body(item) for every item, in any order, on the session's threads. The body must not throw.
template <typename Body>
void parallel_for(const abi::KernelContext* context, size_t items, const Body& body) {
  const auto call = [](void* data, size_t item) { (*static_cast<const Body*>(data))(item); };
  void* data = const_cast<void*>(static_cast<const void*>(&body));
  check(abi::KernelContextParallelFor::of(api)(context, call, items, items, data));
}

}  // namespace qil_deploy
