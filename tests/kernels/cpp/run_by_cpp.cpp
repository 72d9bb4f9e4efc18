// Runs a file once by ONNX Runtime's C++ interface, with the kernel library, as docs/kernels.md says.
//
//   run_by_cpp MODEL.onnx X Y N C H W
//
// The library is libqil_deploy_kernels.so, as the loader finds it. X holds the uint8 codes of the input "x", [N, C, H, W];
// the codes of the output "y" go to Y.
#include <onnxruntime_cxx_api.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <vector>

int main(int, char** arguments) {
  Ort::Env environment;
  Ort::SessionOptions options;
  options.RegisterCustomOpsLibrary(ORT_TSTR("libqil_deploy_kernels.so"));
  Ort::Session session(environment, arguments[1], options);

  std::ifstream file(arguments[2], std::ios::binary);
  std::vector<char> codes{std::istreambuf_iterator<char>(file), {}};
  int64_t shape[4];
  for (int i = 0; i < 4; i++) shape[i] = std::atoll(arguments[4 + i]);
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const auto x = Ort::Value::CreateTensor(memory, reinterpret_cast<uint8_t*>(codes.data()), codes.size(), shape, 4);

  const char *input = "x", *output = "y";
  const auto results = session.Run(Ort::RunOptions{nullptr}, &input, &x, 1, &output, 1);
  const size_t count = results[0].GetTensorTypeAndShapeInfo().GetElementCount();
  const char* made = reinterpret_cast<const char*>(results[0].GetTensorData<uint8_t>());
  std::ofstream(arguments[3], std::ios::binary).write(made, std::streamsize(count));
}
