// The convolution by its definition: one output code after another. Takes every layer and every input code, on every
// processor, and is the reference for the other kernels. Sums wrap as int32 does, as in ONNX Runtime.
#include "lowbit_conv.h"

namespace qil_deploy {

namespace {

class ScalarPlan final : public Plan {
 public:
  ScalarPlan(const Layer& layer, int height, int width)
      : layer_(layer),
        height_(height),
        width_(width),
        out_height_(layer.output_height(height)),
        out_width_(layer.output_width(width)) {}

  size_t scratch_bytes() const override { return 0; }
  int stages() const override { return 1; }
  size_t items(int) const override { return layer_.out_channels; }

  bool run(int, size_t item, const uint8_t* x, uint8_t* y, uint8_t*) const override {
    const int channel = int(item);
    const int group = channel / layer_.outputs_per_group();
    const uint8_t* image = x + size_t(group) * layer_.channels_per_group() * height_ * width_;
    uint8_t* out = y + size_t(channel) * out_height_ * out_width_;
    for (int64_t row = 0; row < out_height_; row++) {
      for (int64_t column = 0; column < out_width_; column++) {
        const uint32_t products = uint32_t(layer_.multipliers[channel]) * sum(image, channel, row, column);
        const int32_t total = int32_t(products + uint32_t(layer_.bias[channel]));
        *out++ = requantize(total, layer_.scales[channel], layer_);
      }
    }
    return true;
  }

 private:
  uint32_t sum(const uint8_t* image, int channel, int64_t row, int64_t column) const {
    const int8_t* code = layer_.codes.data() + size_t(channel) * layer_.taps();
    uint32_t total = 0;
    for (int c = 0; c < layer_.channels_per_group(); c++, image += size_t(height_) * width_) {
      for (int ky = 0; ky < layer_.kernel_h; ky++) {
        const int64_t y = row * layer_.stride_h + int64_t{ky} * layer_.dilation_h - layer_.pad_top;
        for (int kx = 0; kx < layer_.kernel_w; kx++, code++) {
          const int64_t x = column * layer_.stride_w + int64_t{kx} * layer_.dilation_w - layer_.pad_left;
          if (y < 0 || y >= height_ || x < 0 || x >= width_) continue;
          total += uint32_t(int32_t{*code} * int32_t{image[y * width_ + x]});
        }
      }
    }
    return total;
  }

  const Layer& layer_;
  int64_t height_, width_, out_height_, out_width_;
};

class ScalarLayer final : public PackedLayer {
 public:
  explicit ScalarLayer(const Layer& layer) : layer_(layer) {}
  std::unique_ptr<Plan> plan(int height, int width) const override {
    return std::make_unique<ScalarPlan>(layer_, height, width);
  }
  size_t weight_bytes() const override { return layer_.codes.size(); }

 private:
  const Layer& layer_;
};

}  // namespace

const Kernel scalar_kernel = {
    "scalar",
    [](const Layer&) { return std::string(); },
    [](const Layer& layer) -> std::unique_ptr<PackedLayer> { return std::make_unique<ScalarLayer>(layer); },
};

}  // namespace qil_deploy
