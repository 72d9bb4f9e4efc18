// How a vector kernel computes one image: stage 0 packs the input into planes, stage 1 computes tiles.
//
// A tile is a few neighbouring vectors of output pixels, for blocks of 16 output channels. Tiles are cut fine enough for many
// threads, and each holds its sums in registers while it runs through the steps.
#pragma once

#include <vector>

#include "planes.h"

namespace qil_deploy {

constexpr int block_outputs = 16;  // output channels of a group are padded to a multiple of this

struct Tile {
  int first_vector, vectors;
  int first_block, last_block;  // of all groups, one after the other
};

inline int blocks_per_group(const Layer& layer) {
  return (layer.outputs_per_group() + block_outputs - 1) / block_outputs;
}

class TiledPlan : public Plan {
 public:
  // vectors: the most that a tile has, up to 4.
  TiledPlan(const Layer& layer, const CellFormat& format, int vectors, PackRows pack_rows, int height, int width);

  bool fits() const { return planes_.fits(); }
  size_t scratch_bytes() const override { return planes_.bytes(); }
  int stages() const override { return 2; }
  size_t items(int stage) const override { return stage == 0 ? size_t(pack_items_) : tiles_.size(); }
  bool run(int stage, size_t item, const uint8_t* x, uint8_t* y, uint8_t* scratch) const override;

 protected:
  virtual void run_tile(const Tile& tile, const uint8_t* cells, uint8_t* y) const = 0;

  const Layer& layer_;
  Planes planes_;

 private:
  PackRows pack_rows_;
  int channel_blocks_, pack_items_;
  std::vector<Tile> tiles_;
};

}  // namespace qil_deploy
