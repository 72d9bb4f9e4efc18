#include "tiled_plan.h"

#include <algorithm>

namespace qil_deploy {

namespace {

constexpr int wanted_items = 32;  // enough for many threads to share them evenly

// Widths of the tiles that make up `vectors`: as wide as possible, but 3 and 2 rather than 4 and 1, which is slow.
std::vector<int> tile_widths(int vectors, int widest) {
  std::vector<int> widths;
  while (vectors > 0) {
    const int width = vectors == widest + 1 && widest > 2 ? widest - 1 : std::min(vectors, widest);
    widths.push_back(width);
    vectors -= width;
  }
  return widths;
}

}  // namespace

TiledPlan::TiledPlan(const Layer& layer, const TiledKernel& kernel, const TileWeights& weights, int height, int width)
    : layer_(layer), kernel_(kernel), weights_(weights), planes_(layer, kernel.format, height, width) {
  const int per_cell = kernel.format.channels_per_cell;
  channel_blocks_ = layer.groups * ((layer.channels_per_group() + per_cell - 1) / per_cell);
  pack_items_ = std::min(channel_blocks_, wanted_items);
  if (!fits()) return;
  cut_tiles();
  planes_.mark_pixels(masks_, ranks_);
}

void TiledPlan::cut_tiles() {
  int widest = 6;
  while (kernel_.shapes[widest - 1].run == nullptr) widest--;
  const std::vector<int> widths = tile_widths(planes_.vectors(), widest);
  const int64_t blocks = layer_.groups * blocks_per_group(layer_);
  const int64_t parts = std::min<int64_t>(blocks, (wanted_items + int64_t(widths.size()) - 1) / int64_t(widths.size()));
  int first = 0;
  for (int width : widths) {
    for (int64_t part = 0; part < parts; part++) {
      tiles_.push_back({first, width, int(blocks * part / parts), int(blocks * (part + 1) / parts)});
    }
    first += width;
  }
}

bool TiledPlan::run(int stage, size_t item, const uint8_t* x, uint8_t* y, uint8_t* scratch) const {
  if (stage == 1) {
    run_tile(tiles_[item], scratch, y);
    return true;
  }
  const int first = int(int64_t{channel_blocks_} * int64_t(item) / pack_items_);
  const int last = int(int64_t{channel_blocks_} * int64_t(item + 1) / pack_items_);
  uint8_t bits = 0;
  for (int block = first; block < last; block++) bits |= planes_.pack(block, x, scratch, kernel_.pack_rows);
  return bits <= layer_.input_capacity;
}

void TiledPlan::run_tile(const Tile& tile, const uint8_t* cells, uint8_t* y) const {
  const TileShape& shape = kernel_.shapes[tile.vectors - 1];
  const int outputs = layer_.outputs_per_group(), blocks = blocks_per_group(layer_);
  const size_t vector_bytes = size_t(kernel_.format.lanes) * kernel_.format.cell_bytes;
  TileTask task;
  task.offsets = planes_.offsets().data();
  task.steps = int(planes_.offsets().size());
  task.zero_point = layer_.output_zero_point;
  task.low = layer_.low;
  task.high = layer_.high;
  task.out_pixels = size_t(planes_.out_height()) * planes_.out_width();
  task.masks = masks_.data() + tile.first_vector;
  task.ranks = ranks_.data() + tile.first_vector;
  for (int block = tile.first_block; block < tile.last_block; block++) {
    const int group = block / blocks;
    task.cells = cells + group * planes_.group_bytes() + tile.first_vector * vector_bytes;
    for (int part = 0; part < block_outputs / shape.outputs; part++) {
      const int first = block % blocks * block_outputs + part * shape.outputs;
      if (first >= outputs) break;
      const int channel = group * outputs + first;
      task.outputs = std::min(shape.outputs, outputs - first);
      task.scales = layer_.scales.data() + channel;
      task.bias = layer_.bias.data() + channel;
      task.multipliers = layer_.multipliers.data() + channel;
      task.y = y + channel * task.out_pixels;
      weights_.find(task, shape.outputs, block * (block_outputs / shape.outputs) + part);
      shape.run(task);
    }
  }
}

std::unique_ptr<Plan> TiledLayer::plan(int height, int width) const {
  auto plan = std::make_unique<TiledPlan>(layer_, kernel_, *weights_, height, width);
  return plan->fits() ? std::move(plan) : nullptr;
}

}  // namespace qil_deploy
