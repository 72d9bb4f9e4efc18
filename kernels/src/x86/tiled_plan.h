// Plan of a vector kernel for one image: stage 0 packs the input into planes, stage 1 computes tiles.
//
// A tile is 1 to 6 neighbouring vectors of output pixels, for blocks of 16 output channels. The kernel computes it a few
// channels at a time, as many as its registers hold sums for, and runs through all steps with them. Tiles are cut fine
// enough for many threads.
#pragma once

#include <vector>

#include "planes.h"

namespace qil_deploy {

constexpr int block_outputs = 16;  // output channels of a group are padded to a multiple of this

inline int blocks_per_group(const Layer& layer) {
  return (layer.outputs_per_group() + block_outputs - 1) / block_outputs;
}

// Work of a kernel: some vectors of pixels for some channels. Plain data: the function that reads it
// is compiled for instructions that the rest of the program may not use, and must not share code with it.
struct TileTask {
  const uint8_t* cells;    // of the first vector, for step offset 0
  const int32_t* offsets;  // [steps]
  int steps;
  const uint8_t* weights;  // of the first channel; the layout is the kernel's
  const uint16_t* runs;    // lengths of runs of steps after which sums are emptied, if the kernel has runs
  int run_count;
  int outputs;  // channels to store, at most those that the shape computes
  const float* scales;
  const int32_t* bias;
  const int32_t* multipliers;
  int zero_point, low, high;
  uint8_t* y;  // of the first channel
  size_t out_pixels;
  const uint64_t* masks;  // of each vector: which of its pixels are not padding
  const int32_t* ranks;   // number of such pixels before each vector; one more at the end
};

// Number of channels that a kernel computes at once for a tile of a given width, and the function that computes them.
struct TileShape {
  int outputs;  // divides 16
  void (*run)(const TileTask& task);
};

// The packed weights of a layer, of any kernel with tiles.
class TileWeights {
 public:
  virtual ~TileWeights() = default;
  // Fills in weights and runs. index counts groups of `outputs` channels, in all blocks of all groups.
  virtual void find(TileTask& task, int outputs, int index) const = 0;
  virtual size_t bytes() const = 0;
};

struct TiledKernel {
  CellFormat format;
  PackRows pack_rows;
  TileShape shapes[6];  // for tiles of 1, 2, ... vectors; those at the end may be missing
};

class TiledPlan final : public Plan {
 public:
  TiledPlan(const Layer& layer, const TiledKernel& kernel, const TileWeights& weights, int height, int width);

  bool fits() const { return planes_.fits(); }
  size_t scratch_bytes() const override { return planes_.bytes(); }
  int stages() const override { return 2; }
  size_t items(int stage) const override { return stage == 0 ? size_t(pack_items_) : tiles_.size(); }
  bool run(int stage, size_t item, const uint8_t* x, uint8_t* y, uint8_t* scratch) const override;

 private:
  struct Tile {
    int first_vector, vectors;
    int first_block, last_block;  // of all groups, one after the other
  };
  void cut_tiles();
  void run_tile(const Tile& tile, const uint8_t* cells, uint8_t* y) const;

  const Layer& layer_;
  const TiledKernel& kernel_;
  const TileWeights& weights_;
  Planes planes_;
  int channel_blocks_, pack_items_;
  std::vector<Tile> tiles_;
  std::vector<uint64_t> masks_;
  std::vector<int32_t> ranks_;
};

class TiledLayer final : public PackedLayer {
 public:
  TiledLayer(const Layer& layer, const TiledKernel& kernel, std::unique_ptr<TileWeights> weights)
      : layer_(layer), kernel_(kernel), weights_(std::move(weights)) {}
  std::unique_ptr<Plan> plan(int height, int width) const override;
  size_t weight_bytes() const override { return weights_->bytes(); }

 private:
  const Layer& layer_;
  const TiledKernel& kernel_;
  std::unique_ptr<TileWeights> weights_;
};

}  // namespace qil_deploy
