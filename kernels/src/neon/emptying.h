// The schedule by which the narrow accumulators of a convolution are emptied, from its actual weights.
//
// A kernel goes through the products of an output channel in steps, each of which adds to every lane of its registers. A
// sum of 8 bits is emptied into one of 16 bits, and that into one of 32, before any lane could pass its limits, whatever
// the input codes are. How far a lane can move is known on either side: by its positive weights times the largest code,
// and by its negative ones. Weights of both signs need less than half of the emptying that the largest product requires.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace qil_deploy::neon {

// Contribution to one lane: at most `up`, at least `-down`.
struct Reach {
  int32_t up = 0;
  int32_t down = 0;
};

enum class Empties : uint8_t { nothing, bytes, words };  // words: bytes into words, then those into 32 bits

// A stretch of steps within one row of the convolution's kernel, and the accumulators emptied after it.
struct Run {
  int32_t row;
  int32_t first;  // step of that row
  int32_t steps;
  Empties empties;
};

// Lengths of the groups into which steps are split so that no sum over a group passes -limit - 1 or limit, which no step
// alone may. `reaches` is [steps][lanes].
std::vector<int32_t> split(const std::vector<Reach>& reaches, size_t lanes, int32_t limit);

// Contribution of each group to each sum, [groups][lanes / lanes_per_sum]: lanes that stand side by side end in one sum.
std::vector<Reach> add_groups(const std::vector<Reach>& reaches, size_t lanes, const std::vector<int32_t>& groups,
                              size_t lanes_per_sum);

// The runs through rows of `row_steps` steps each. Bytes are emptied after groups of `bytes[i]` steps, words behind
// `words[j]` of those groups.
std::vector<Run> make_runs(int32_t row_steps, const std::vector<int32_t>& bytes, const std::vector<int32_t>& words);

}  // namespace qil_deploy::neon
