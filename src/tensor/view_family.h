// SPDX-License-Identifier: Apache-2.0
// Which tensors share the memory of a partial value, which have left it, and which of them missed a write.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>

namespace tessera::tensor {

/// A partial value is reduced inside the storage of the tensor that is read. It has other memory then than its base and
/// views, and nobody can tell until one of them is written: the others do not see it. They may still be read as long as
/// nothing was written, and nobody may have a way to them: autograd holds the base of every view. So a write is free, and
/// it is the one who missed it that must not be read again.
class ViewFamily {
 public:
  ViewFamily() = default;
  ~ViewFamily() { reset(); }
  ViewFamily(const ViewFamily&) = delete;
  ViewFamily& operator=(const ViewFamily&) = delete;

  /// A new view of `base`, which is partial or was.
  void join(ViewFamily& base) {
    if (base.members_ == nullptr) {
      base.members_ = std::make_shared<Members>();
      base.members_->count = 1;
      base.members_->origin = base.departure_;
    }
    leave_members();
    members_ = base.members_;
    ++members_->count;
  }
  /// The memory is another one from now on.
  void leave() {
    if (!shares_memory()) return;
    departure_ = std::make_shared<Departure>(Departure{members_, members_->writes});
    leave_members();
  }
  [[nodiscard]] bool is_or_was_shared() const noexcept { return members_ != nullptr || departure_ != nullptr; }
  /// Another tensor has the same memory.
  [[nodiscard]] bool shares_memory() const noexcept { return members_ != nullptr && members_->count > 1; }

  void note_write() {
    if (members_ != nullptr) ++members_->writes;
    const Departure* left = departure_.get();
    if (left == nullptr && members_ != nullptr) left = members_->origin.get();
    for (; left != nullptr; left = left->from->origin.get()) {
      left->seen = ++left->from->writes;
      left->from->missed_a_write = true;
    }
  }
  /// Somebody wrote what this tensor should show, to memory that it does not have.
  [[nodiscard]] bool missed_a_write() const noexcept {
    if (!is_or_was_shared()) return false;
    return (members_ != nullptr && (members_->missed_a_write || missed_a_write_since(members_->origin.get()))) ||
           missed_a_write_since(departure_.get());
  }
  void reset() {
    leave_members();
    departure_ = nullptr;
  }

 private:
  struct Departure;
  /// Those with the same memory.
  struct Members {
    int count = 0;
    std::uint32_t writes = 0;  ///< by them and by those that left
    bool missed_a_write = false;
    std::shared_ptr<Departure> origin;  ///< of the one whose views they are
  };
  /// The memory became another one.
  struct Departure {
    std::shared_ptr<Members> from;
    mutable std::uint32_t seen = 0;  ///< writes that the new memory shows
  };

  static bool missed_a_write_since(const Departure* left) noexcept {
    for (; left != nullptr; left = left->from->origin.get()) {
      if (left->from->writes != left->seen) return true;
    }
    return false;
  }
  void leave_members() {
    if (members_ != nullptr) --std::exchange(members_, nullptr)->count;
  }

  std::shared_ptr<Members> members_;      ///< null: the memory is nobody else's
  std::shared_ptr<Departure> departure_;  ///< null: never left
};

}  // namespace tessera::tensor
