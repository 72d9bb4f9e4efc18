// Convolutions of any shape with channels in the lanes and sums of 16 bits, with AVX2. An image takes two stages: its rows
// are packed, then chunks of 16 output pixels are multiplied for blocks of up to 64 output channels.
#include "../x86_kernels.h"
#include "direct.h"
#include "pixel_chunks.h"

namespace qil_deploy::channels_last {

namespace {

class DirectPlan final : public Plan {
 public:
  DirectPlan(const Layer& layer, const std::vector<DirectBlock>& blocks, const Requantization& requantization, int height,
             int width)
      : layer_(layer), blocks_(blocks), requantization_(requantization), chunks_(layer, height, width) {}

  bool fits() const { return chunks_.image().fits(); }
  size_t scratch_bytes() const override { return chunks_.image().bytes(); }
  int stages() const override { return 2; }
  size_t items(int stage) const override {
    return stage == 0 ? chunks_.image().rows() : blocks_.size() * chunks_.count();
  }

  bool run(int stage, size_t item, const uint8_t* x, uint8_t* y, uint8_t* scratch) const override {
    if (stage == 0) return chunks_.image().pack(item, x, scratch);
    const DirectBlock& block = blocks_[item / chunks_.count()];
    const size_t index = item % chunks_.count();
    const size_t group = size_t(block.outputs.first) / layer_.outputs_per_group();
    DirectChunk chunk;
    chunks_.find_pixels(index, scratch + group * layer_.channels_per_group(), chunk.pixels);
    chunk.count = chunks_.size(index);
    chunk.taps = chunks_.taps();
    chunk.weights = block.weights.data();
    chunk.vectors = block.outputs.vectors();
    chunk.stretches = block.stretches.data();
    chunk.stretch_count = int(block.stretches.size());
    chunk.code_maker = requantization_.of(block.outputs.first);
    chunk.channels = block.outputs.count;
    chunk.y = y + block.outputs.first * chunks_.out_pixels() + chunks_.first_pixel(index);
    chunk.out_pixels = chunks_.out_pixels();
    compute_direct(chunk, block.one_run);
    return true;
  }

 private:
  const Layer& layer_;
  const std::vector<DirectBlock>& blocks_;
  const Requantization& requantization_;
  const PixelChunks chunks_;
};

class DirectLayer final : public PackedLayer {
 public:
  explicit DirectLayer(const Layer& layer)
      : layer_(layer), blocks_(direct_blocks(layer)), requantization_(layer, 0, std::vector<int64_t>(layer.out_channels)) {}

  std::unique_ptr<Plan> plan(int height, int width) const override {
    auto plan = std::make_unique<DirectPlan>(layer_, blocks_, requantization_, height, width);
    return plan->fits() ? std::move(plan) : nullptr;
  }

  size_t weight_bytes() const override {
    size_t total = requantization_.bytes();
    for (const DirectBlock& block : blocks_) {
      total += block.weights.size() * sizeof(WeightVector) + block.stretches.size() * sizeof(Stretch);
    }
    return total;
  }

 private:
  const Layer& layer_;
  const std::vector<DirectBlock> blocks_;
  const Requantization requantization_;
};

std::unique_ptr<PackedLayer> pack(const Layer& layer) { return std::make_unique<DirectLayer>(layer); }

// Ternary layers have lookup, too, which takes fewer instructions where the stride is 1.
std::string why_not_strided(const Layer& layer) {
  return layer.stride_h == 1 && layer.stride_w == 1 ? "takes strides here" : why_not_direct(layer);
}

}  // namespace

}  // namespace qil_deploy::channels_last

namespace qil_deploy {

const Kernel direct_avx2_kernel = {"sums in 16 bits (AVX2)", channels_last::why_not_direct, channels_last::pack};
const Kernel strided_avx2_kernel = {"sums in 16 bits (AVX2)", channels_last::why_not_strided, channels_last::pack};

}  // namespace qil_deploy
