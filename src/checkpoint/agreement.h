// SPDX-License-Identifier: Apache-2.0
// The ranks that save or load together: what one of them cannot do, none of them does.
#pragma once

#include <exception>
#include <optional>
#include <string>
#include <vector>

#include "tessera/mesh/mesh.h"

namespace tessera::checkpoint {

/// All ranks of a mesh, or this process alone.
class Group {
 public:
  explicit Group(const std::optional<Mesh>& mesh);

  [[nodiscard]] int rank() const noexcept { return ranks_.rank(); }
  [[nodiscard]] int size() const noexcept { return ranks_.size(); }

  /// One text per rank, the same vector on all of them. Collective.
  [[nodiscard]] std::vector<std::string> exchange(const std::string& text) const;

  /// Runs `work` on every rank. If it throws on some, it throws on all: what it threw on the first of them. Collective;
  /// a CommunicationError passes, since it reaches the others by itself.
  template <class Work>
  void together(const Work& work) const {
    std::exception_ptr failure;
    try {
      work();
    } catch (...) {
      failure = std::current_exception();
    }
    agree(failure);
  }

 private:
  void agree(const std::exception_ptr& failure) const;

  comm::Communicator ranks_;
  c10::Device device_;
};

}  // namespace tessera::checkpoint
