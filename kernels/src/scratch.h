// Scratch memory, shared by all nodes and sessions, so that a process holds only as much as its concurrent runs need.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qil_deploy {

// Memory for one run, aligned to 64 bytes, with arbitrary contents. Throws std::bad_alloc.
class Scratch {
 public:
  explicit Scratch(size_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  uint8_t* data() const { return data_; }

 private:
  uint8_t* data_;
  size_t bytes_;
};

}  // namespace qil_deploy
