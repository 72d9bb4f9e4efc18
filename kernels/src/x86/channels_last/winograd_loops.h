// The loops of winograd_plan.cpp, compiled for AVX2. Their input is plain data: they must not share code with the rest.
#pragma once

#include "blocks.h"

namespace qil_deploy::channels_last {

constexpr int positions = 16;       // of a patch
constexpr int patch_channels = 32;  // that are transformed at once

// Patches of 4x4 pixels, 2 apart.
struct PatchRow {
  const uint8_t* pixels;  // of the first patch
  size_t row_bytes;       // from one row of pixels to the next
  int pixel_bytes;
  int tiles;
  int offset;             // added to differences
  uint8_t* cells;         // of the first patch, at position 0
  size_t position_bytes;  // from position to position of the same patch
};

// Transforms patches: B' d B of each, as bytes.
void transform_patches(const PatchRow& row);

// Some neighbouring tiles of a block of output channels.
struct WinogradChunk {
  const uint8_t* cells;  // of the first tile, at position 0
  size_t tile_bytes, position_bytes;
  int tiles;    // up to `chunk_pixels`
  int vectors;  // of output channels
  int steps;
  const WeightVector* weights;  // [positions][steps][vectors]
  const uint16_t* run_steps;    // of all runs
  const int* first_runs;        // [positions + 1]
  const StartVector* starts;    // [runs][vectors]
  CodeMaker code_maker;
  int channels;  // to store
  uint8_t* y;    // of the first channel
  size_t out_pixels;
  int out_height, out_width;
  int first_tile, tile_columns;
};

// Computes the codes of a chunk: sums in 16 bits or, where a position has several runs, their totals in 32.
void compute_winograd(const WinogradChunk& chunk, bool one_run_each);

}  // namespace qil_deploy::channels_last
