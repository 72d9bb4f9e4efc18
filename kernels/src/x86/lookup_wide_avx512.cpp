// Lookup for small maps, with the roles of table and index exchanged.
//
// At 7x7, a vector of 64 neighbouring pixels is all there is: each table would be loaded for a single permute, and a seventh
// of the lanes is padding. Here the 64 lanes are output channels: the patterns of a step are the indices, and the cell of one
// pixel chooses the table, which has for each of the 27 patterns the sum that it gives on this cell. There are 64 cells, so
// the tables take 4 KB.
//
//   p[i]  = patterns of 64 output channels at the step     2 loads, each used for all P pixels
//   t     = table of the pixel's cell                      P loads, used twice
//   a[n][i] += permute(t, p[i])                            2 * P permutes and additions, P up to 8
//
// All loads are aligned, and no pixel is padding. Byte sums are emptied as in lookup_avx512.cpp, in runs that are safe for all
// 128 channels. Codes come out with channels side by side; they are few, and stored one by one.
#include "lookup_wide_avx512.h"

#include <immintrin.h>

#include <algorithm>
#include <cstring>

namespace qil_deploy {

namespace {

struct Tables {
  alignas(64) int8_t sums[64][64];
  constexpr Tables() : sums{} {
    for (int cell = 0; cell < 64; cell++) {
      for (int pattern = 0; pattern < 27; pattern++) {
        sums[cell][pattern] = int8_t((pattern % 3 - 1) * (cell & 3) + (pattern / 3 % 3 - 1) * (cell >> 2 & 3) +
                                     (pattern / 9 - 1) * (cell >> 4));
      }
    }
  }
};
constexpr Tables tables;

struct WideTask {
  const uint8_t* cells;     // of the first pixel, for step offset 0
  const int32_t* offsets;   // [steps]
  const uint8_t* patterns;  // [steps, 128]
  const uint16_t* runs;
  int run_count;
  const WideWeights::Outputs* outputs;  // [2]
  int zero_point, low, high;
  uint8_t* codes;  // [P, 128]
};

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,bmi,bmi2,prefer-vector-width=512")

inline __m512i permuted(__m512i table, __m512i indices) {
  __m512i sums;
  __asm__ volatile("vpermb %2,%1,%0" : "=v"(sums) : "v"(indices), "v"(table));
  return sums;
}

inline void add(__m512i& sum, __m512i value) { __asm__ volatile("vpaddb %1,%0,%0" : "+v"(sum) : "v"(value)); }

// 16 channels, the `part`-th vector of four: rounded results.
inline __m512i rounded(__m512i words, const WideWeights::Outputs& outputs, int part) {
  const __m512i multiplier = _mm512_load_si512(outputs.multipliers[part]), bias = _mm512_load_si512(outputs.bias[part]);
  const __m512 sums = _mm512_cvtepi32_ps(_mm512_dpwssd_epi32(bias, words, multiplier));
  return _mm512_cvtps_epi32(_mm512_mul_ps(sums, _mm512_load_ps(outputs.scales[part])));
}

inline void store(const WideTask& task, const WideWeights::Outputs& outputs, __m512i words, __m512i odd, uint8_t* codes) {
  const __m512i even = _mm512_sub_epi16(words, _mm512_slli_epi16(odd, 8));
  const __m512i zero_point = _mm512_set1_epi16(short(task.zero_point));
  const __m512i first = _mm512_adds_epi16(
      _mm512_packs_epi32(rounded(even, outputs, 0), rounded(even, outputs, 1)), zero_point);
  const __m512i second = _mm512_adds_epi16(
      _mm512_packs_epi32(rounded(odd, outputs, 2), rounded(odd, outputs, 3)), zero_point);
  const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15));
  __m512i packed = _mm512_shuffle_epi8(_mm512_packus_epi16(first, second), order);
  packed = _mm512_max_epu8(packed, _mm512_set1_epi8(char(task.low)));
  packed = _mm512_min_epu8(packed, _mm512_set1_epi8(char(task.high)));
  _mm512_storeu_si512(codes, packed);
}

template <int P>
__attribute__((noinline)) void run_pixels(const WideTask& task) {
  alignas(64) int16_t words[P][2][32], odd[P][2][32];
  const int start = -128 * task.run_count;
  for (int n = 0; n < P; n++) {
    for (int i = 0; i < 2; i++) {
      _mm512_store_si512(words[n][i], _mm512_set1_epi16(short(start * 257)));
      _mm512_store_si512(odd[n][i], _mm512_set1_epi16(short(start)));
    }
  }
  const uint8_t* patterns = task.patterns;
  const int32_t* offset = task.offsets;
  const int8_t* sums_of_cells = tables.sums[0];
  for (int run = 0; run < task.run_count; run++) {
    __m512i sums[P][2];
#pragma GCC unroll 8
    for (int n = 0; n < P; n++) sums[n][0] = sums[n][1] = _mm512_set1_epi8(char(0x80));
    for (int step = task.runs[run]; step > 0; step--, patterns += wide_outputs) {
      const __m512i first = _mm512_load_si512(patterns), second = _mm512_load_si512(patterns + 64);
      uint64_t cells;  // of 8 pixels, of which P are used
      std::memcpy(&cells, task.cells + *offset++, 8);
      __m512i looked_up[P + 1][2];
#pragma GCC unroll 9
      for (int n = 0; n <= P; n++) {
        if (n < P) {
          const __m512i table = _mm512_load_si512(sums_of_cells + (cells >> 8 * n & 255) * 64);
          looked_up[n][0] = permuted(table, first);
          looked_up[n][1] = permuted(table, second);
        }
        if (n > 0) {
          add(sums[n - 1][0], looked_up[n - 1][0]);
          add(sums[n - 1][1], looked_up[n - 1][1]);
        }
      }
    }
#pragma GCC unroll 8
    for (int n = 0; n < P; n++) {
#pragma GCC unroll 2
      for (int i = 0; i < 2; i++) {
        __m512i* word = reinterpret_cast<__m512i*>(words[n][i]);
        __m512i* upper = reinterpret_cast<__m512i*>(odd[n][i]);
        *word = _mm512_add_epi16(*word, sums[n][i]);
        *upper = _mm512_add_epi16(*upper, _mm512_srli_epi16(sums[n][i], 8));
      }
    }
  }
  for (int n = 0; n < P; n++) {
    for (int i = 0; i < 2; i++) {
      store(task, task.outputs[i], _mm512_load_si512(words[n][i]), _mm512_load_si512(odd[n][i]),
            task.codes + n * wide_outputs + 64 * i);
    }
  }
}

#pragma GCC pop_options

constexpr int most_pixels = 8;
void (*const run_functions[most_pixels])(const WideTask&) = {run_pixels<1>, run_pixels<2>, run_pixels<3>, run_pixels<4>,
                                                             run_pixels<5>, run_pixels<6>, run_pixels<7>, run_pixels<8>};

// One item: some pixels of one row, for one block of channels.
class WidePlan final : public Plan {
 public:
  WidePlan(const Layer& layer, const WideWeights& weights, PackRows pack_rows, int height, int width)
      : layer_(layer), weights_(weights), pack_rows_(pack_rows), planes_(layer, {3, 1, 64}, height, width) {
    channel_blocks_ = layer.groups * ((layer.channels_per_group() + 2) / 3);
    pack_items_ = std::min(channel_blocks_, 32);
    pieces_ = (planes_.out_width() + most_pixels - 1) / most_pixels;
    blocks_ = layer.groups * weights.blocks_per_group;
  }

  bool fits() const { return planes_.fits(); }
  size_t scratch_bytes() const override { return planes_.bytes(); }
  int stages() const override { return 2; }
  // Patterns of a block are read once per row piece: blocks are the outer order, so that they stay in the second cache.
  size_t items(int stage) const override {
    return stage == 0 ? size_t(pack_items_) : size_t(blocks_) * planes_.out_height() * pieces_;
  }

  bool run(int stage, size_t item, const uint8_t* x, uint8_t* y, uint8_t* scratch) const override {
    if (stage == 1) {
      const int pixels_of_block = planes_.out_height() * pieces_;
      run_item(int(item) / pixels_of_block, int(item) % pixels_of_block / pieces_, int(item) % pieces_, scratch, y);
      return true;
    }
    const int first = int(int64_t{channel_blocks_} * int64_t(item) / pack_items_);
    const int last = int(int64_t{channel_blocks_} * int64_t(item + 1) / pack_items_);
    uint8_t bits = 0;
    for (int block = first; block < last; block++) bits |= planes_.pack(block, x, scratch, pack_rows_);
    return bits <= layer_.input_capacity;
  }

 private:
  void run_item(int block, int row, int piece, const uint8_t* cells, uint8_t* y) const {
    const int width = planes_.out_width();
    const int column = width * piece / pieces_, pixels = width * (piece + 1) / pieces_ - column;
    const int group = block / weights_.blocks_per_group, first = block % weights_.blocks_per_group * wide_outputs;
    alignas(64) uint8_t codes[most_pixels][wide_outputs];
    const uint32_t* runs = weights_.run_first.data() + block;
    run_functions[pixels - 1]({
        cells + group * planes_.group_bytes() + size_t(row) * planes_.pitch() + column,
        planes_.offsets().data(),
        weights_.aligned_patterns() + size_t(block) * weights_.steps * wide_outputs,
        weights_.run_lengths.data() + runs[0],
        int(runs[1] - runs[0]),
        weights_.outputs.data() + size_t(block) * 2,
        layer_.output_zero_point,
        layer_.low,
        layer_.high,
        codes[0],
    });
    const size_t out_pixels = size_t(planes_.out_height()) * width;
    const int count = std::min(wide_outputs, layer_.outputs_per_group() - first);
    uint8_t* target = y + (size_t(group) * layer_.outputs_per_group() + first) * out_pixels + size_t(row) * width + column;
    for (int channel = 0; channel < count; channel++, target += out_pixels) {
      for (int n = 0; n < pixels; n++) target[n] = codes[n][channel];
    }
  }

  const Layer& layer_;
  const WideWeights& weights_;
  PackRows pack_rows_;
  Planes planes_;
  int channel_blocks_, pack_items_, pieces_, blocks_;
};

}  // namespace

bool wide_is_faster(const Layer& layer, int height, int width) {
  (void)height;
  return layer.output_width(width) <= 14 && layer.outputs_per_group() >= wide_outputs;
}

WideWeights::WideWeights(const Layer& layer) {
  const int window = layer.kernel_h * layer.kernel_w, group_outputs = layer.outputs_per_group();
  blocks_per_group = (group_outputs + wide_outputs - 1) / wide_outputs;
  steps = (layer.channels_per_group() + 2) / 3 * window;
  const int blocks = layer.groups * blocks_per_group;
  patterns.resize(size_t(blocks) * steps * wide_outputs + 64);
  outputs.resize(size_t(blocks) * 2);
  run_first.push_back(0);
  uint8_t* target = const_cast<uint8_t*>(aligned_patterns());
  std::vector<Step> all(size_t(steps) * wide_outputs);
  for (int block = 0; block < blocks; block++) {
    const int first = block % blocks_per_group * wide_outputs, group = block / blocks_per_group;
    std::fill(all.begin(), all.end(), Step{13, 0, 0});
    for (int j = 0; j < wide_outputs; j++) {
      Outputs& vectors = outputs[size_t(block) * 2 + j / 64];
      const int part = j % 4 / 2 + j % 2 * 2, lane = j % 64 / 4;  // j % 4: 0, 1, 2, 3 -> parts 0, 2, 1, 3
      const bool there = first + j < group_outputs;
      const int o = group * group_outputs + (there ? first + j : 0);
      vectors.multipliers[part][lane] = (there ? layer.multipliers[o] : 0) << (part % 2 * 16);
      vectors.bias[part][lane] = there ? layer.bias[o] : 0;
      vectors.scales[part][lane] = there ? layer.scales[o] : 0.0f;
      if (!there) continue;
      for (int s = 0; s < steps; s++) {
        all[size_t(s) * wide_outputs + j] = lookup_step(layer, o, s / window * 3, 3, s % window);
      }
    }
    for (const Step& step : all) *target++ = step.pattern;
    cut_runs(all.data(), steps, wide_outputs, wide_outputs, run_lengths);
    run_first.push_back(uint32_t(run_lengths.size()));
  }
}

std::unique_ptr<Plan> make_wide_plan(const Layer& layer, const WideWeights& weights, PackRows pack_rows, int height,
                                     int width) {
  auto plan = std::make_unique<WidePlan>(layer, weights, pack_rows, height, width);
  return plan->fits() ? std::move(plan) : nullptr;
}

}  // namespace qil_deploy
