// Depthwise layers with channels in the lanes, with AVX2: rows of the image are packed, then chunks of 16 output pixels are
// computed for 32 channels each.
#include <algorithm>

#include "../x86_kernels.h"
#include "depthwise.h"
#include "pixel_chunks.h"

namespace qil_deploy::channels_last {

namespace {

class DepthwisePlan final : public Plan {
 public:
  DepthwisePlan(const Layer& layer, const DepthwiseWeights& weights, const Requantization& requantization, int height,
                int width)
      : layer_(layer), weights_(weights), requantization_(requantization), chunks_(layer, height, width) {}

  bool fits() const { return chunks_.image().fits(); }
  size_t scratch_bytes() const override { return chunks_.image().bytes(); }
  int stages() const override { return 2; }
  size_t items(int stage) const override {
    return stage == 0 ? chunks_.image().rows() : chunks_.image().pixel_bytes() / depthwise_outputs * chunks_.count();
  }

  bool run(int stage, size_t item, const uint8_t* x, uint8_t* y, uint8_t* scratch) const override {
    if (stage == 0) return chunks_.image().pack(item, x, scratch);
    const size_t vector = item / chunks_.count(), index = item % chunks_.count();
    const int channel = int(vector) * depthwise_outputs;
    DepthwiseChunk chunk;
    chunks_.find_pixels(index, scratch + channel, chunk.pixels);
    chunk.count = chunks_.size(index);
    chunk.taps = chunks_.taps();
    chunk.tap_count = layer_.taps();
    chunk.pairs = &weights_.pairs[vector * weights_.pair_count];
    chunk.code_maker = requantization_.of(channel);
    chunk.channels = std::min(depthwise_outputs, layer_.out_channels - channel);
    chunk.y = y + channel * chunks_.out_pixels() + chunks_.first_pixel(index);
    chunk.out_pixels = chunks_.out_pixels();
    compute_depthwise(chunk);
    return true;
  }

 private:
  const Layer& layer_;
  const DepthwiseWeights& weights_;
  const Requantization& requantization_;
  const PixelChunks chunks_;
};

class DepthwiseLayer final : public PackedLayer {
 public:
  explicit DepthwiseLayer(const Layer& layer)
      : layer_(layer), weights_(layer), requantization_(layer, 0, std::vector<int64_t>(layer.out_channels)) {}

  std::unique_ptr<Plan> plan(int height, int width) const override {
    auto plan = std::make_unique<DepthwisePlan>(layer_, weights_, requantization_, height, width);
    return plan->fits() ? std::move(plan) : nullptr;
  }

  size_t weight_bytes() const override { return weights_.pairs.size() * sizeof(TapPair) + requantization_.bytes(); }

 private:
  const Layer& layer_;
  const DepthwiseWeights weights_;
  const Requantization requantization_;
};

}  // namespace

DepthwiseWeights::DepthwiseWeights(const Layer& layer) : pair_count((layer.taps() + 1) / 2) {
  const int vectors = (layer.out_channels + depthwise_outputs - 1) / depthwise_outputs;
  pairs.resize(size_t(vectors) * pair_count);
  for (int o = 0; o < layer.out_channels; o++) {
    const int lane = o % depthwise_outputs, place = first_sum_of[lane / 8] + lane % 8;
    for (int tap = 0; tap < layer.taps(); tap++) {
      TapPair& pair = pairs[size_t(o / depthwise_outputs) * pair_count + tap / 2];
      pair.weights[place / lanes].weights[place % lanes][tap % 2] = layer.codes[size_t(o) * layer.taps() + tap];
    }
  }
}

std::string why_not_depthwise(const Layer& layer) {
  if (layer.channels_per_group() != 1 || layer.outputs_per_group() != 1) return "takes one channel in each group";
  if (layer.out_channels < 16) return "fewer than 16 channels";
  for (int o = 0; o < layer.out_channels; o++) {
    if (largest_sum(layer, o) > 32767) return "sums pass 16 bits";
  }
  return "";
}

}  // namespace qil_deploy::channels_last

namespace qil_deploy {

const Kernel depthwise_by_channels_avx2_kernel = {
    "depthwise by channels (AVX2)",
    channels_last::why_not_depthwise,
    [](const Layer& layer) -> std::unique_ptr<PackedLayer> {
      return std::make_unique<channels_last::DepthwiseLayer>(layer);
    },
};

}  // namespace qil_deploy
