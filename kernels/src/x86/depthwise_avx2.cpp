// Depthwise layers with AVX2: one input channel for each output channel.
//
// Channels share nothing, so most of the work is moving bytes. A cell is one byte, the code of one channel.
// Codes are widened to 16 bits as they are loaded; code times weight and the sum over the window fit 16 bits, because
// codes and weights are small (checked on the actual weights). A step, for 64 neighbouring pixels: 4 loads that widen, 4
// multiplications, 4 additions. ONNX Runtime sums in 32 bits, and takes twice the registers for as many pixels.
//
// Each item packs the plane of one channel and computes all outputs of it, while the plane is in the first cache.
#include <immintrin.h>

#include <cstdlib>
#include <cstring>

#include "tiled_plan.h"
#include "x86_kernels.h"

namespace qil_deploy {

namespace {

constexpr CellFormat format = {1, 1, 64};

#pragma GCC push_options
#pragma GCC target("avx2,bmi,bmi2,fma")

#include "avx2_output.h"

// One vector of 64 pixels of one channel. task.weights are the window's weights, as words of 16 bits.
void run_vector(const TileTask& task, int vector) {
  const int16_t* weights = reinterpret_cast<const int16_t*>(task.weights);
  __m256i sums[4];
  for (int i = 0; i < 4; i++) sums[i] = _mm256_setzero_si256();
  for (int step = 0; step < task.steps; step++) {
    const uint8_t* cells = task.cells + task.offsets[step] + vector * 64;
    const __m256i weight = _mm256_set1_epi16(weights[step]);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(cells + 16 * i));
      sums[i] = _mm256_add_epi16(sums[i], _mm256_mullo_epi16(_mm256_cvtepu8_epi16(bytes), weight));
    }
  }
  alignas(32) uint8_t codes[64];
  for (int half = 0; half < 2; half++) {
    __m256i wide[4];
    for (int i = 0; i < 2; i++) {
      wide[2 * i] = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(sums[2 * half + i]));
      wide[2 * i + 1] = _mm256_cvtepi16_epi32(_mm256_extracti128_si256(sums[2 * half + i], 1));
    }
    _mm256_store_si256(reinterpret_cast<__m256i*>(codes + 32 * half), codes_of(task, 0, wide));
  }
  store_masked(task.y + task.ranks[vector], codes, task.masks[vector]);
}

uint8_t pack_rows(const uint8_t* const* channels, int, int rows, size_t row_step, int width_left, int stride, int count,
                  int pitch, uint8_t* cells) {
  const uint8_t* source = channels[0];
  const __m128i low_bytes = _mm_set1_epi16(255);
  uint8_t bits = 0;
  __m128i vector_bits = _mm_setzero_si128();
  for (int row = 0; row < rows; row++, source += row_step, cells += pitch) {
    int i = 0;
    if (stride == 1) {
      for (; i + 16 <= count; i += 16) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i));
        vector_bits = _mm_or_si128(vector_bits, bytes);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(cells + i), bytes);
      }
    } else if (stride == 2) {
      for (; i + 8 <= count && 2 * i + 16 <= width_left; i += 8) {
        const __m128i pairs = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + 2 * i));
        const __m128i bytes = _mm_packus_epi16(_mm_and_si128(pairs, low_bytes), _mm_setzero_si128());
        vector_bits = _mm_or_si128(vector_bits, bytes);
        _mm_storel_epi64(reinterpret_cast<__m128i*>(cells + i), bytes);
      }
    }
    for (; i < count; i++) bits |= cells[i] = source[size_t(i) * stride];
    std::memset(cells + count, 0, size_t(pitch - count));
  }
  return bits | or_bytes(_mm256_zextsi128_si256(vector_bits));
}

#pragma GCC pop_options

class DepthwisePlan final : public Plan {
 public:
  DepthwisePlan(const Layer& layer, const std::vector<int16_t>& weights, int height, int width)
      : layer_(layer), weights_(weights), planes_(layer, format, height, width) {
    if (fits()) planes_.mark_pixels(masks_, ranks_);
  }

  bool fits() const { return planes_.fits(); }
  // Vectors of one channel extend into the next: each thread packs only its own, and discards the bytes read there.
  size_t scratch_bytes() const override { return size_t(layer_.groups) * stride_bytes(); }
  int stages() const override { return 1; }
  size_t items(int) const override { return size_t(layer_.groups); }

  bool run(int, size_t item, const uint8_t* x, uint8_t* y, uint8_t* scratch) const override {
    const int group = int(item), outputs = layer_.outputs_per_group();
    uint8_t* cells = scratch + item * stride_bytes();
    const size_t channel_bytes = planes_.group_bytes();
    // Planes::pack writes to the group's place among all groups; here each has room for what its last vectors read.
    if (planes_.pack(group, x, cells - item * channel_bytes, pack_rows) > layer_.input_capacity) return false;
    std::memset(cells + channel_bytes, 0, stride_bytes() - channel_bytes);
    TileTask task;
    task.cells = cells;
    task.offsets = planes_.offsets().data();
    task.steps = int(planes_.offsets().size());
    task.zero_point = layer_.output_zero_point;
    task.low = layer_.low;
    task.high = layer_.high;
    task.masks = masks_.data();
    task.ranks = ranks_.data();
    for (int o = group * outputs; o < (group + 1) * outputs; o++) {
      task.weights = reinterpret_cast<const uint8_t*>(weights_.data() + size_t(o) * task.steps);
      task.scales = layer_.scales.data() + o;
      task.bias = layer_.bias.data() + o;
      task.multipliers = layer_.multipliers.data() + o;
      task.y = y + size_t(o) * planes_.out_height() * planes_.out_width();
      for (int vector = 0; vector < planes_.vectors(); vector++) run_vector(task, vector);
    }
    return true;
  }

 private:
  size_t stride_bytes() const { return (planes_.group_bytes() + 4 * 64 + 63) / 64 * 64; }

  const Layer& layer_;
  const std::vector<int16_t>& weights_;
  Planes planes_;
  std::vector<uint64_t> masks_;
  std::vector<int32_t> ranks_;
};

class DepthwiseLayer final : public PackedLayer {
 public:
  explicit DepthwiseLayer(const Layer& layer) : layer_(layer), weights_(layer.codes.begin(), layer.codes.end()) {}
  std::unique_ptr<Plan> plan(int height, int width) const override {
    auto plan = std::make_unique<DepthwisePlan>(layer_, weights_, height, width);
    return plan->fits() ? std::move(plan) : nullptr;
  }
  size_t weight_bytes() const override { return weights_.size() * 2; }

 private:
  const Layer& layer_;
  std::vector<int16_t> weights_;
};

std::string why_not(const Layer& layer) {
  if (layer.channels_per_group() != 1) return "takes one input channel in each group";
  const int taps = layer.taps();
  for (int o = 0; o < layer.out_channels; o++) {
    int64_t magnitude = 0;
    for (int i = 0; i < taps; i++) magnitude += std::abs(layer.codes[size_t(o) * taps + i]);
    if (magnitude * layer.input_capacity > 32767) return "sums pass 16 bits";
  }
  return "";
}

}  // namespace

const Kernel depthwise_avx2_kernel = {
    "depthwise (AVX2)",
    why_not,
    [](const Layer& layer) -> std::unique_ptr<PackedLayer> { return std::make_unique<DepthwiseLayer>(layer); },
};

}  // namespace qil_deploy
