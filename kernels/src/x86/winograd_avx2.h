// The loops of winograd_plan.cpp, compiled for AVX2. What they read is plain data: they must not share code with the rest.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qil_deploy::winograd {

constexpr int cell_channels = 32;  // input channels in one vector: those of a pixel are padded to a multiple of it
constexpr int chunk_tiles = 16;    // tiles that share the loads of weights
constexpr int packed_columns = 16;

// A row of the image, channel by channel.
struct ImageRow {
  const uint8_t* codes;  // of the first channel
  const uint8_t* end;    // of the image
  size_t plane;          // bytes from channel to channel
  int channels, width;
};

// Writes a row as pixels of `channels` codes, rounded up to `cell_channels` with zeros, `pitch` pixels of which those of the
// image begin at `left`; the others are 0. Returns the bits of all codes read, ORed. `pitch` is at least
// `left` + max(width, packed_columns).
uint8_t pack_row(const ImageRow& row, int left, int pitch, uint8_t* pixels);

// Patches of 4x4 pixels, 2 apart.
struct PatchRow {
  const uint8_t* pixels;  // of the first patch
  size_t row_bytes;       // from one row of pixels to the next
  int pixel_bytes;
  int tiles;
  int offset;           // added to differences
  uint8_t* cells;       // of the first patch, at position 0
  size_t position_bytes;  // from position to position of the same patch
};

// Transforms patches: B' d B of each, as bytes.
void transform_patches(const PatchRow& row);

// Some neighbouring tiles of a block of output channels.
struct Chunk {
  const uint8_t* cells;  // of the first tile, at position 0
  size_t tile_bytes, position_bytes;
  int tiles;    // up to `chunk_tiles`
  int vectors;  // of 16 output channels, up to 4
  int steps;
  const int8_t* weights;      // [positions][steps][vectors][16][2]
  const uint16_t* run_steps;  // of all runs
  const int* first_runs;      // [positions + 1]
  const int16_t* starts;      // [runs][vectors][16]
  const float *factors, *offsets, *scales;
  int channels;  // to store
  int zero_point, low, high;
  uint8_t* y;  // of the first channel
  size_t out_pixels;
  int out_height, out_width;
  int first_tile, tile_columns;
};

// Computes the codes of a chunk: sums in 16 bits, or, where a position has several runs, their totals in 32.
void compute_chunk(const Chunk& chunk, bool one_run_each);

}  // namespace qil_deploy::winograd
