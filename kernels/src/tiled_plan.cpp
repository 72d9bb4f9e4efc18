#include "tiled_plan.h"

#include <algorithm>

namespace qil_deploy {

namespace {

constexpr int wanted_items = 32;  // enough for many threads to share them evenly

// Widths of the tiles that make up `vectors`: as wide as may be, and no single one beside wide ones, which would be slow.
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

TiledPlan::TiledPlan(const Layer& layer, const CellFormat& format, int vectors, PackRows pack_rows, int height, int width)
    : layer_(layer), planes_(layer, format, height, width), pack_rows_(pack_rows) {
  channel_blocks_ =
      layer.groups * ((layer.channels_per_group() + format.channels_per_cell - 1) / format.channels_per_cell);
  pack_items_ = std::min(channel_blocks_, wanted_items);
  const std::vector<int> widths = tile_widths(planes_.vectors(), vectors);
  const int blocks = layer.groups * blocks_per_group(layer);
  const int parts = std::min(blocks, (wanted_items + int(widths.size()) - 1) / int(widths.size()));
  int first = 0;
  for (int vectors_here : widths) {
    for (int part = 0; part < parts; part++) {
      tiles_.push_back({first, vectors_here, int(int64_t{blocks} * part / parts), int(int64_t{blocks} * (part + 1) / parts)});
    }
    first += vectors_here;
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
  for (int block = first; block < last; block++) bits |= planes_.pack(block, x, scratch, pack_rows_);
  return bits <= layer_.input_capacity;
}

}  // namespace qil_deploy
