// 3x3 convolutions of stride 1 by Winograd's algorithm, with AVX2; winograd_weights.h says what is computed, and why no sum
// overflows. An image takes three stages: its rows are packed with channels side by side, rows of patches are transformed,
// and chunks of tiles are multiplied for blocks of 64 output channels.
#include <algorithm>
#include <cstring>

#include "winograd_avx2.h"
#include "winograd_weights.h"
#include "x86_kernels.h"

namespace qil_deploy::winograd {

namespace {

constexpr int64_t most_bytes = int64_t{1} << 31;

class WinogradPlan final : public Plan {
 public:
  WinogradPlan(const Layer& layer, const Weights& weights, int height, int width)
      : layer_(layer),
        weights_(weights),
        height_(height),
        width_(width),
        out_height_(layer.output_height(height)),
        out_width_(layer.output_width(width)),
        tile_rows_((out_height_ + 1) / 2),
        tile_columns_((out_width_ + 1) / 2),
        pixel_bytes_((layer.in_channels + cell_channels - 1) / cell_channels * cell_channels),
        rows_(2 * tile_rows_ + 2),
        pitch_(std::max<int64_t>(2 * tile_columns_ + 2, layer.pad_left + std::max(width, packed_columns))),
        chunks_((tile_rows_ * tile_columns_ + chunk_tiles - 1) / chunk_tiles) {}

  bool fits() const {
    const int64_t pixels = rows_ * pitch_, tiles = tile_rows_ * tile_columns_;
    return rows_ < (1 << 24) && pitch_ < (1 << 24) && pixels < most_bytes / pixel_bytes_ &&
           tiles < most_bytes / positions / pixel_bytes_;
  }
  size_t scratch_bytes() const override { return packed_bytes() + positions * position_bytes(); }
  int stages() const override { return 3; }
  size_t items(int stage) const override {
    return stage == 0 ? size_t(rows_) : stage == 1 ? size_t(tile_rows_) : weights_.blocks.size() * size_t(chunks_);
  }

  bool run(int stage, size_t item, const uint8_t* x, uint8_t* y, uint8_t* scratch) const override {
    if (stage == 0) return pack(int64_t(item), x, scratch);
    if (stage == 1) {
      transform(item, scratch);
    } else {
      compute(weights_.blocks[item / chunks_], int64_t(item) % chunks_, scratch + packed_bytes(), y);
    }
    return true;
  }

 private:
  size_t packed_bytes() const { return size_t(rows_) * row_bytes(); }
  size_t row_bytes() const { return size_t(pitch_) * pixel_bytes_; }
  size_t position_bytes() const { return size_t(tile_rows_) * tile_columns_ * pixel_bytes_; }

  bool pack(int64_t row, const uint8_t* x, uint8_t* scratch) const {
    uint8_t* pixels = scratch + row * row_bytes();
    const int64_t line = row - layer_.pad_top;
    if (line < 0 || line >= height_) {
      std::memset(pixels, 0, row_bytes());
      return true;
    }
    const size_t plane = size_t(height_) * width_;
    const ImageRow image = {x + line * width_, x + layer_.in_channels * plane, plane, layer_.in_channels, width_};
    return pack_row(image, layer_.pad_left, int(pitch_), pixels) <= layer_.input_capacity;
  }

  void transform(size_t row, uint8_t* scratch) const {
    PatchRow patches;
    patches.pixels = scratch + 2 * row * row_bytes();
    patches.row_bytes = row_bytes();
    patches.pixel_bytes = pixel_bytes_;
    patches.tiles = int(tile_columns_);
    patches.offset = 2 * layer_.input_capacity;
    patches.cells = scratch + packed_bytes() + row * tile_columns_ * pixel_bytes_;
    patches.position_bytes = position_bytes();
    transform_patches(patches);
  }

  void compute(const Block& block, int64_t index, const uint8_t* cells, uint8_t* y) const {
    const int64_t tiles = tile_rows_ * tile_columns_;
    const int64_t first = tiles * index / chunks_, last = tiles * (index + 1) / chunks_;
    Chunk chunk;
    chunk.cells = cells + first * pixel_bytes_;
    chunk.tile_bytes = size_t(pixel_bytes_);
    chunk.position_bytes = position_bytes();
    chunk.tiles = int(last - first);
    chunk.vectors = block.vectors;
    chunk.steps = weights_.steps;
    chunk.weights = block.weights.front().weights[0];
    chunk.run_steps = block.run_steps.data();
    chunk.first_runs = block.first_runs.data();
    chunk.starts = block.starts.front().words;
    chunk.factors = weights_.factors.data() + block.first_channel;
    chunk.offsets = weights_.offsets.data() + block.first_channel;
    chunk.scales = weights_.scales.data() + block.first_channel;
    chunk.channels = block.channels;
    chunk.zero_point = layer_.output_zero_point;
    chunk.low = layer_.low;
    chunk.high = layer_.high;
    chunk.out_height = int(out_height_);
    chunk.out_width = int(out_width_);
    chunk.out_pixels = size_t(out_height_ * out_width_);
    chunk.y = y + block.first_channel * chunk.out_pixels;
    chunk.first_tile = int(first);
    chunk.tile_columns = int(tile_columns_);
    compute_chunk(chunk, block.one_run_each());
  }

  const Layer& layer_;
  const Weights& weights_;
  const int height_, width_;
  const int64_t out_height_, out_width_, tile_rows_, tile_columns_;
  const int pixel_bytes_;
  const int64_t rows_, pitch_;  // of the packed image, in pixels
  const int64_t chunks_;
};

class WinogradLayer final : public PackedLayer {
 public:
  explicit WinogradLayer(const Layer& layer) : layer_(layer), weights_(layer) {}
  std::unique_ptr<Plan> plan(int height, int width) const override {
    auto plan = std::make_unique<WinogradPlan>(layer_, weights_, height, width);
    return plan->fits() ? std::move(plan) : nullptr;
  }
  size_t weight_bytes() const override { return weights_.bytes(); }

 private:
  const Layer& layer_;
  const Weights weights_;
};

}  // namespace

}  // namespace qil_deploy::winograd

namespace qil_deploy {

const Kernel winograd_avx2_kernel = {
    "Winograd (AVX2)",
    winograd::why_not,
    [](const Layer& layer) -> std::unique_ptr<PackedLayer> { return std::make_unique<winograd::WinogradLayer>(layer); },
};

}  // namespace qil_deploy
