#include "planes.h"

#include <algorithm>
#include <cstring>

namespace qil_deploy {

namespace {

int floor_division(int a, int b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

}  // namespace

Planes::Planes(const Layer& layer, const CellFormat& format, int height, int width)
    : format_(format),
      groups_(layer.groups),
      channels_per_group_(layer.channels_per_group()),
      channel_blocks_((channels_per_group_ + format.channels_per_cell - 1) / format.channels_per_cell),
      height_(height),
      width_(width),
      out_height_(int(layer.output_height(height))),
      out_width_(int(layer.output_width(width))),
      stride_h_(layer.stride_h),
      stride_w_(layer.stride_w) {
  lay_out(layer);
  if (fits_) find_offsets(layer);
}

void Planes::lay_out(const Layer& layer) {
  const int top = floor_division(-layer.pad_top, stride_h_);
  const int bottom = floor_division((layer.kernel_h - 1) * layer.dilation_h - layer.pad_top, stride_h_);
  const int left = floor_division(-layer.pad_left, stride_w_);
  const int right = floor_division((layer.kernel_w - 1) * layer.dilation_w - layer.pad_left, stride_w_);
  first_row_ = top;
  rows_ = out_height_ + bottom - top;
  left_ = std::max(0, -left);
  // A row must hold what its last pixel reads on the right, and, past the data that are read, the zeros on the left of the
  // next row.
  const int64_t columns = (width_ + stride_w_ - 1) / stride_w_;
  const int64_t used = std::max<int64_t>(0, std::min<int64_t>(columns, int64_t{out_width_} + right));
  const int64_t pitch = std::max<int64_t>({out_width_, int64_t{out_width_} + right, used + left_});
  const int64_t pixels = int64_t{out_height_ - 1} * pitch + out_width_;
  plane_bytes_ = (left_ + int64_t{rows_} * pitch) * format_.cell_bytes;
  slack_ = size_t(4 * format_.lanes * format_.cell_bytes + 64);

  for (int ky = 0; ky < layer.kernel_h; ky++) {
    for (int kx = 0; kx < layer.kernel_w; kx++) {
      const int y = ky * layer.dilation_h - layer.pad_top, x = kx * layer.dilation_w - layer.pad_left;
      const Phase phase{y - floor_division(y, stride_h_) * stride_h_, x - floor_division(x, stride_w_) * stride_w_};
      const auto same = [&](const Phase& p) { return p.row == phase.row && p.column == phase.column; };
      if (std::none_of(phases_.begin(), phases_.end(), same)) phases_.push_back(phase);
    }
  }
  planes_per_group_ = channel_blocks_ * int(phases_.size());
  const int64_t all_bytes = plane_bytes_ * planes_per_group_ * groups_;
  fits_ = pitch < (1 << 24) && pixels < (1 << 28) && plane_bytes_ < (1 << 30) && all_bytes < (int64_t{1} << 31);
  pitch_ = int(pitch);
  pixels_ = int(pixels);
}

void Planes::find_offsets(const Layer& layer) {
  for (int block = 0; block < channel_blocks_; block++) {
    for (int ky = 0; ky < layer.kernel_h; ky++) {
      for (int kx = 0; kx < layer.kernel_w; kx++) {
        const int y = ky * layer.dilation_h - layer.pad_top, x = kx * layer.dilation_w - layer.pad_left;
        const int row = floor_division(y, stride_h_), column = floor_division(x, stride_w_);
        size_t phase = 0;
        while (phases_[phase].row != y - row * stride_h_ || phases_[phase].column != x - column * stride_w_) phase++;
        const int64_t plane = int64_t{block} * int64_t(phases_.size()) + int64_t(phase);
        const int64_t cell = left_ + int64_t{row - first_row_} * pitch_ + column;
        offsets_.push_back(int32_t(plane * plane_bytes_ + cell * format_.cell_bytes));
      }
    }
  }
}

void Planes::mark_pixels(std::vector<uint64_t>& masks, std::vector<int32_t>& ranks) const {
  ranks.assign(1, 0);
  for (int vector = 0; vector < vectors(); vector++) {
    uint64_t mask = 0;
    for (int i = 0; i < format_.lanes; i++) {
      const int pixel = vector * format_.lanes + i;
      if (pixel / pitch_ < out_height_ && pixel % pitch_ < out_width_) mask |= uint64_t{1} << i;
    }
    masks.push_back(mask);
    ranks.push_back(ranks.back() + __builtin_popcountll(mask));
  }
}

uint8_t Planes::pack(int index, const uint8_t* x, uint8_t* cells, PackRows pack_rows) const {
  const int group = index / channel_blocks_, block = index % channel_blocks_;
  const int first = block * format_.channels_per_cell;
  const int count = std::min(format_.channels_per_cell, channels_per_group_ - first);
  const size_t image = size_t(height_) * width_;
  const uint8_t* source = x + (size_t(group) * channels_per_group_ + first) * image;
  uint8_t* target = cells + size_t(index) * phases_.size() * plane_bytes_;
  const size_t row_bytes = size_t(pitch_) * format_.cell_bytes;
  uint8_t bits = 0;
  for (const Phase& phase : phases_) {
    std::memset(target, 0, size_t(left_) * format_.cell_bytes);
    uint8_t* rows = target + size_t(left_) * format_.cell_bytes;
    // Rows [begin, end) of the plane lie in the image.
    const int begin = std::clamp(-first_row_, 0, rows_);
    const int end = std::clamp(floor_division(height_ - 1 - phase.row, stride_h_) - first_row_ + 1, begin, rows_);
    std::memset(rows, 0, size_t(begin) * row_bytes);
    std::memset(rows + size_t(end) * row_bytes, 0, size_t(rows_ - end) * row_bytes);
    const int columns = phase.column < width_ ? (width_ - phase.column + stride_w_ - 1) / stride_w_ : 0;
    const int used = std::min(columns, pitch_ - left_);
    if (used <= 0) {
      std::memset(rows + size_t(begin) * row_bytes, 0, size_t(end - begin) * row_bytes);
    } else if (end > begin) {
      const int64_t first_source_row = int64_t{begin + first_row_} * stride_h_ + phase.row;
      const uint8_t* channels[4];
      for (int k = 0; k < count; k++) channels[k] = source + k * image + first_source_row * width_ + phase.column;
      bits |= pack_rows(channels, count, end - begin, size_t(width_) * stride_h_, width_ - phase.column, stride_w_, used,
                        pitch_, rows + size_t(begin) * row_bytes);
    }
    target += plane_bytes_;
  }
  return bits;
}

}  // namespace qil_deploy
