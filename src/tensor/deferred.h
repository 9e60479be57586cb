// SPDX-License-Identifier: Apache-2.0
// Work of a backward pass that nobody waits for yet: gradients of weights.
#pragma once

#include <functional>
#include <memory>
#include <utility>
#include <vector>

namespace tessera::tensor {

/// A computation that fills memory later. Whoever needs the memory runs it; so does the one who has time for it.
class Deferred {
 public:
  explicit Deferred(std::function<void()> work) : work_(std::move(work)) {}
  /// At most once; what the work holds is let go.
  void run() {
    if (const auto work = std::exchange(work_, nullptr)) work();
  }
  [[nodiscard]] bool done() const noexcept { return work_ == nullptr; }

 private:
  std::function<void()> work_;
};

/// In the order in which backward came to it.
using DeferredQueue = std::vector<std::shared_ptr<Deferred>>;

}  // namespace tessera::tensor
