// 3x3 convolutions of stride 1 by Winograd's algorithm, with AVX2; winograd_weights.h says what is computed, and why no sum
// overflows. An image takes three stages: its rows are packed with channels side by side, rows of patches are transformed,
// and chunks of tiles are multiplied for blocks of 64 output channels.
#include "../x86_kernels.h"
#include "packed_image.h"
#include "winograd_weights.h"

namespace qil_deploy::channels_last {

namespace {

class WinogradPlan final : public Plan {
 public:
  WinogradPlan(const Layer& layer, const std::vector<WinogradBlock>& blocks, const Requantization& requantization,
               int height, int width)
      : layer_(layer),
        blocks_(blocks),
        requantization_(requantization),
        steps_(steps_of(layer)),
        out_height_(layer.output_height(height)),
        out_width_(layer.output_width(width)),
        tile_rows_((out_height_ + 1) / 2),
        tile_columns_((out_width_ + 1) / 2),
        chunks_((tile_rows_ * tile_columns_ + chunk_pixels - 1) / chunk_pixels),
        image_(layer, height, width, 2 * tile_rows_ + 2, 2 * tile_columns_ + 2) {}

  bool fits() const {
    return image_.fits() && tile_rows_ * tile_columns_ < (int64_t{1} << 31) / positions / image_.pixel_bytes();
  }
  size_t scratch_bytes() const override { return cells_at() + positions * position_bytes(); }
  int stages() const override { return 3; }
  size_t items(int stage) const override {
    return stage == 0 ? image_.rows() : stage == 1 ? size_t(tile_rows_) : blocks_.size() * size_t(chunks_);
  }

  bool run(int stage, size_t item, const uint8_t* x, uint8_t* y, uint8_t* scratch) const override {
    if (stage == 0) return image_.pack(item, x, scratch);
    if (stage == 1) {
      transform(item, scratch);
    } else {
      compute(blocks_[item / chunks_], int64_t(item) % chunks_, scratch + cells_at(), y);
    }
    return true;
  }

 private:
  size_t cells_at() const { return (image_.bytes() + 63) / 64 * 64; }
  size_t position_bytes() const { return size_t(tile_rows_ * tile_columns_) * image_.pixel_bytes(); }

  void transform(size_t row, uint8_t* scratch) const {
    PatchRow patches;
    patches.pixels = scratch + 2 * row * image_.row_bytes();
    patches.row_bytes = image_.row_bytes();
    patches.pixel_bytes = image_.pixel_bytes();
    patches.tiles = int(tile_columns_);
    patches.offset = 2 * layer_.input_capacity;
    patches.cells = scratch + cells_at() + row * tile_columns_ * image_.pixel_bytes();
    patches.position_bytes = position_bytes();
    transform_patches(patches);
  }

  void compute(const WinogradBlock& block, int64_t index, const uint8_t* cells, uint8_t* y) const {
    const int64_t tiles = tile_rows_ * tile_columns_;
    const int64_t first = tiles * index / chunks_, last = tiles * (index + 1) / chunks_;
    WinogradChunk chunk;
    chunk.cells = cells + first * image_.pixel_bytes();
    chunk.tile_bytes = size_t(image_.pixel_bytes());
    chunk.position_bytes = position_bytes();
    chunk.tiles = int(last - first);
    chunk.vectors = block.outputs.vectors();
    chunk.steps = steps_;
    chunk.weights = block.weights.data();
    chunk.run_steps = block.run_steps.data();
    chunk.first_runs = block.first_runs.data();
    chunk.starts = block.starts.data();
    chunk.code_maker = requantization_.of(block.outputs.first);
    chunk.channels = block.outputs.count;
    chunk.out_height = int(out_height_);
    chunk.out_width = int(out_width_);
    chunk.out_pixels = size_t(out_height_ * out_width_);
    chunk.y = y + block.outputs.first * chunk.out_pixels;
    chunk.first_tile = int(first);
    chunk.tile_columns = int(tile_columns_);
    compute_winograd(chunk, block.one_run_each());
  }

  const Layer& layer_;
  const std::vector<WinogradBlock>& blocks_;
  const Requantization& requantization_;
  const int steps_;
  const int64_t out_height_, out_width_, tile_rows_, tile_columns_, chunks_;
  const PackedImage image_;
};

class WinogradLayer final : public PackedLayer {
 public:
  explicit WinogradLayer(const Layer& layer)
      : layer_(layer), blocks_(winograd_blocks(layer)), requantization_(winograd_requantization(layer)) {}

  std::unique_ptr<Plan> plan(int height, int width) const override {
    auto plan = std::make_unique<WinogradPlan>(layer_, blocks_, requantization_, height, width);
    return plan->fits() ? std::move(plan) : nullptr;
  }

  size_t weight_bytes() const override {
    size_t total = requantization_.bytes();
    for (const WinogradBlock& block : blocks_) {
      total += block.weights.size() * sizeof(WeightVector) + block.starts.size() * sizeof(StartVector) +
               block.run_steps.size() * sizeof(uint16_t) + block.first_runs.size() * sizeof(int);
    }
    return total;
  }

 private:
  const Layer& layer_;
  const std::vector<WinogradBlock> blocks_;
  const Requantization requantization_;
};

}  // namespace

}  // namespace qil_deploy::channels_last

namespace qil_deploy {

const Kernel winograd_avx2_kernel = {
    "Winograd (AVX2)",
    channels_last::why_not_winograd,
    [](const Layer& layer) -> std::unique_ptr<PackedLayer> {
      return std::make_unique<channels_last::WinogradLayer>(layer);
    },
};

}  // namespace qil_deploy
