#include "requantize.h"

#include <arm_neon.h>

#include <algorithm>
#include <cstring>

namespace qil_deploy::neon {

namespace {

constexpr int channels_at_once = 8;

// Writes the codes of 8 channels of 4 pixels: if all are wanted, 4 bytes at a time, a constant number.
template <typename Pixels>
void write_quads(const uint32_t* quads, int channels, Pixels pixels, uint8_t* out, size_t plane) {
  for (int c = 0; c < channels; c++, out += plane) std::memcpy(out, &quads[c], pixels);
}

}  // namespace

Requantization::Requantization(const Layer& layer)
    : multipliers_(layer.multipliers),
      bias_(layer.bias),
      scales_(layer.scales),
      zero_point_(int16_t(layer.output_zero_point)),
      low_(uint8_t(layer.low)),
      high_(uint8_t(layer.high)) {
  const size_t size = size_t(layer.out_channels) + channels_at_once;
  multipliers_.resize(size);
  bias_.resize(size);
  scales_.resize(size);
}

void Requantization::run(const int32_t* sums, int stride, int first, int channels, int pixels, uint8_t* out,
                         size_t plane) const {
  const int16x8_t zero_point = vdupq_n_s16(zero_point_);
  const uint8x8_t low = vdup_n_u8(low_), high = vdup_n_u8(high_);
  for (int c = 0; c < channels; c += channels_at_once, out += channels_at_once * plane) {
    const size_t at = size_t(first) + c;
    uint8x8_t codes[4];
    for (int p = 0; p < 4; p++) {
      int16x4_t halves[2];
      for (int half = 0; half < 2; half++) {
        const int32x4_t products = vld1q_s32(sums + p * stride + c + 4 * half);
        const size_t i = at + 4 * half;
        const int32x4_t sum = vmlaq_s32(vld1q_s32(&bias_[i]), products, vld1q_s32(&multipliers_[i]));  // wraps
        halves[half] = vqmovn_s32(vcvtnq_s32_f32(vmulq_f32(vcvtq_f32_s32(sum), vld1q_f32(&scales_[i]))));
      }
      const int16x8_t rounded = vqaddq_s16(vcombine_s16(halves[0], halves[1]), zero_point);
      codes[p] = vmin_u8(vmax_u8(vqmovun_s16(rounded), low), high);
    }
    const uint8x8x2_t left = vzip_u8(codes[0], codes[1]), right = vzip_u8(codes[2], codes[3]);
    uint32_t quads[channels_at_once];  // the four pixels of each channel
    for (int half = 0; half < 2; half++) {
      const uint16x4x2_t four = vzip_u16(vreinterpret_u16_u8(left.val[half]), vreinterpret_u16_u8(right.val[half]));
      vst1_u32(quads + 4 * half, vreinterpret_u32_u16(four.val[0]));
      vst1_u32(quads + 4 * half + 2, vreinterpret_u32_u16(four.val[1]));
    }
    const int count = std::min(channels_at_once, channels - c);
    if (pixels == 4)
      write_quads(quads, count, std::integral_constant<size_t, 4>(), out, plane);
    else
      write_quads(quads, count, size_t(pixels), out, plane);
  }
}

}  // namespace qil_deploy::neon
