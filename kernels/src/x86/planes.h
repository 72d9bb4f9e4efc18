// The input of a convolution laid out so that a vector of neighbouring output pixels reads neighbouring bytes.
//
// A cell holds one pixel of a few channels (`channels_per_cell`, in `cell_bytes` bytes; the kernel says how). A plane holds
// the cells of one group of channels and one phase of the stride: with stride 2, the even and the odd rows and columns lie
// in planes of their own, so that every step of the kernel window reads with stride 1. Phases that no step reads are left
// out.
//
// Rows of a plane follow each other at `pitch` cells. The columns of zeros after a row pad it on the right and the next row
// on the left. Output pixel (row, column) has the number row * pitch + column; all numbers are computed, `lanes` at a time,
// and those that lie in the padding are dropped when codes are stored (7x7: 1 vector of 64; 14x14: 4; 28x28: 13; 56x56: 50).
//
// Step s of a group (its planes one after another, in each the taps of the window in rows) reads the cells of output pixel
// 0 at byte `offsets[s]`, and those of pixel n at n cells after it.
#pragma once

#include <vector>

#include "../lowbit_conv.h"

namespace qil_deploy {

struct CellFormat {
  int channels_per_cell;
  int cell_bytes;
  int lanes;  // output pixels in one vector
};

// Writes `rows` rows of cells: cell i of a row holds pixel i * stride of each channel, for `count` cells, then zeros up to
// `pitch`. channels[k] is the first pixel of the first row, of channel k; rows lie `row_step` bytes apart; `width_left`
// bytes of each row may be read from there. Returns the bits of all codes read, ORed.
using PackRows = uint8_t (*)(const uint8_t* const* channels, int channel_count, int rows, size_t row_step, int width_left,
                             int stride, int count, int pitch, uint8_t* cells);

class Planes {
 public:
  Planes(const Layer& layer, const CellFormat& format, int height, int width);

  bool fits() const { return fits_; }  // whether offsets fit int32
  size_t bytes() const { return size_t(planes()) * plane_bytes_ + slack_; }
  int planes() const { return groups_ * planes_per_group_; }
  size_t group_bytes() const { return size_t(planes_per_group_) * plane_bytes_; }
  int vectors() const { return (pixels_ + format_.lanes - 1) / format_.lanes; }
  int pitch() const { return pitch_; }
  int out_height() const { return out_height_; }
  int out_width() const { return out_width_; }
  const std::vector<int32_t>& offsets() const { return offsets_; }

  // For each vector of pixels: which of them are not padding, and how many such pixels precede it (and, at the end, all).
  void mark_pixels(std::vector<uint64_t>& masks, std::vector<int32_t>& ranks) const;

  // Fills the planes of group of channels `index`, all phases; returns the bits of all codes read, ORed.
  uint8_t pack(int index, const uint8_t* x, uint8_t* cells, PackRows pack_rows) const;

 private:
  struct Phase {
    int row, column;
  };
  void lay_out(const Layer& layer);
  void find_offsets(const Layer& layer);

  CellFormat format_;
  int groups_, channels_per_group_, channel_blocks_, planes_per_group_ = 0;
  int height_, width_, out_height_, out_width_, stride_h_, stride_w_;
  int first_row_ = 0, rows_ = 0;  // of a plane, in rows of the output
  int left_ = 0;                  // columns of zeros that a row needs on its left
  int pitch_ = 0, pixels_ = 0;
  int64_t plane_bytes_ = 0;
  size_t slack_ = 0;  // bytes that the last vectors read past the last plane
  bool fits_ = true;
  std::vector<Phase> phases_;
  std::vector<int32_t> offsets_;
};

}  // namespace qil_deploy
