// A low-bit convolution, and the interface of its kernels.
//
// Both operators (kernel_sets.h) are ONNX's QLinearConv followed by Clip, on codes that start at 0 (the zero point of the
// input is 0):
//
//   sum[o, p]  = bias[o] + sum over c, ky, kx of x[c, p * stride + (ky, kx) * dilation - pad] * w[o, c, ky, kx]
//   code[o, p] = clip(saturate(rint(float32(sum) * scale[o]) + output_zero_point, 0, 255), low, high)
//
// Codes outside the image are 0. The sum is exact in int32; `scale` is float32(float32(x_scale * w_scale[o]) / y_scale);
// rint rounds half to even. ONNX Runtime computes the same, so results must be equal to the bit.
//
// How one node runs:
//   1. When a session is created (or in the first run, if the weights are not constant), the first kernel of the chosen
//      set that takes the layer packs its weights (`pack`).
//   2. At the first input of a size, the packed layer plans its work for that size (`plan`). Codes of weights exist while it
//      packs and plans; they are dropped afterwards, since ONNX Runtime keeps its own.
//   3. Each image is computed in stages, one after another; the items of a stage run in any order on any threads.
//   4. If a stage meets an input code that the layer's kernel cannot take, the image is computed anew by the scalar
//      kernel, which takes all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace qil_deploy {

struct Layer {
  // The convolution. `in_channels` counts all groups; pads are those before the first and after the last row, column.
  int out_channels = 0, in_channels = 0, groups = 1;
  int kernel_h = 1, kernel_w = 1;
  int stride_h = 1, stride_w = 1;
  int dilation_h = 1, dilation_w = 1;
  int pad_top = 0, pad_left = 0, pad_bottom = 0, pad_right = 0;

  // Weight [o, c, ky, kx] is multiplier[o] * code[o, c, ky, kx]; c counts the channels of one group. The multiplier is the
  // greatest common divisor of a channel's weights (1 where all are 0), so every int8 tensor has this form.
  std::vector<int8_t> codes;         // [out_channels, in_channels / groups, kernel_h, kernel_w]; empty while it runs
  std::vector<int32_t> multipliers;  // [out_channels], 1 to 128
  int largest_code = 0;              // of all magnitudes

  std::vector<int32_t> bias;  // [out_channels], on the grid of x_scale * w_scale
  std::vector<float> scales;  // [out_channels]
  int output_zero_point = 0;
  int low = 0, high = 255;  // of the Clip; low may lie above high in a hostile file: then every code is `high`

  // The largest input code that the exporter proved, and the largest that a kernel must be ready for: the next 2**n - 1.
  // Packing detects codes above `input_capacity` with one OR per vector; it must never mistake them for others.
  int input_high = 255;
  int input_capacity = 255;

  int channels_per_group() const { return in_channels / groups; }
  int outputs_per_group() const { return out_channels / groups; }
  int taps() const { return channels_per_group() * kernel_h * kernel_w; }  // products in one sum
  int64_t output_height(int64_t height) const;  // 0 or less if the kernel does not fit into the padded image
  int64_t output_width(int64_t width) const;
  std::string describe() const;  // "64->128 3x3 stride 2, weights -1..1, input 0..3"
};

// The work for one size of input. Immutable; many threads run it at once, each run with its own scratch memory.
class Plan {
 public:
  virtual ~Plan() = default;
  virtual size_t scratch_bytes() const = 0;  // given aligned to 64 bytes, with arbitrary contents
  virtual int stages() const = 0;
  virtual size_t items(int stage) const = 0;
  // x: one image [in_channels, height, width]; y: [out_channels, output height, output width].
  // Returns whether all input codes read were at most `input_capacity`; if not, the output is meaningless.
  virtual bool run(int stage, size_t item, const uint8_t* x, uint8_t* y, uint8_t* scratch) const = 0;
};

// The packed weights of one layer. Immutable. Outlives its plans.
class PackedLayer {
 public:
  virtual ~PackedLayer() = default;
  // Null if this size is not supported (say, offsets exceed int32): the scalar kernel then computes it.
  virtual std::unique_ptr<Plan> plan(int height, int width) const = 0;
  virtual size_t weight_bytes() const = 0;
};

struct Kernel {
  const char* name;  // "lookup, AVX-512 VBMI"
  // Empty if the kernel takes the layer, else the reason: "weights of 3 bits; takes -1..1".
  std::string (*why_not)(const Layer& layer);
  std::unique_ptr<PackedLayer> (*pack)(const Layer& layer);  // the layer outlives what is returned
};

// Takes every layer, every size and every input code. Slow; the reference for the others.
extern const Kernel scalar_kernel;

// sum * scale, rounded half to even, saturated, clipped: the definition above.
uint8_t requantize(int32_t sum, float scale, const Layer& layer);

// The same layer from a node's tensors. Throws std::invalid_argument with a sentence if no kernel computes it.
struct NodeTensors {
  const int8_t* weights;  // [out_channels, in_channels / groups, kernel_h, kernel_w], spread by the multipliers
  const float* weight_scales;
  size_t weight_scale_count;  // 1 or out_channels
  float x_scale, y_scale;
  const int32_t* bias;
};
void fill_layer(Layer& layer, const NodeTensors& tensors);

// Fills in the codes of a layer that has its multipliers, from the node's weights; frees them.
void fill_codes(Layer& layer, const int8_t* weights);
void drop_codes(Layer& layer);

}  // namespace qil_deploy
