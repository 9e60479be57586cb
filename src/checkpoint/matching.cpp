// SPDX-License-Identifier: Apache-2.0
// Pairs names, and says what keeps them apart.
#include "checkpoint/matching.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "checkpoint/dtypes.h"
#include "tessera/base/text.h"
#include "tessera/checkpoint/errors.h"

namespace tessera::checkpoint {
namespace {

constexpr std::size_t kMaxListed = 10;

/// Differences as they are found; those beyond the tenth are counted, since each costs a search for what was meant.
class Differences {
 public:
  template <class Say>
  void add(const Say& say) {
    if (++count_ <= kMaxListed) listed_.push_back(say());
  }
  void throw_if_any(const std::string& folder) const {
    if (count_ == 0) return;
    throw CheckpointMismatch(fmt::format("{}: {} of its contents do not fit the program: {}{}", folder, count_,
                                         fmt::join(listed_, "; "), count_ > kMaxListed ? "; ..." : ""));
  }

 private:
  std::size_t count_ = 0;
  std::vector<std::string> listed_;
};

std::string shape_and_dtype(at::IntArrayRef shape, c10::ScalarType dtype) {
  const std::string_view name = dtype_name(dtype);
  return fmt::format("{} [{}]", name.empty() ? at::toString(dtype) : name, fmt::join(shape, ", "));
}

const char* kind_of(const Value& value) {
  constexpr const char* kWords[] = {"an integer", "a count", "a real number", "true or false", "a text"};
  return kWords[value.index()];
}

class Matcher {
 public:
  Matcher(const Collector& collector, const std::vector<std::string>& only)
      : collector_(collector), saved_(*collector.saved()), only_(only) {
    for (const SavedTensor& tensor : saved_.tensors) note_saved(tensor.name);
    for (const auto& [name, target] : saved_.aliases) note_saved(name);
    for (const auto& [name, value] : saved_.values) note_saved(name);
  }

  Matches run(const std::string& folder) {
    for (const TensorItem& item : collector_.tensors()) match_tensor(item);
    for (const auto& [name, target] : collector_.aliases()) match_alias(name, target);
    for (const ValueItem& item : collector_.values()) match_value(item);
    for (const std::string& name : saved_names_) {
      differences_.add([&] { return fmt::format("{} is only in the checkpoint{}", printable(name), meant(name, wanted_names_)); });
    }
    for (const std::string& name : only_) check_used(name);
    differences_.throw_if_any(folder);
    return std::move(matches_);
  }

 private:
  void note_saved(const std::string& name) {
    if (is_chosen(name, only_)) saved_names_.insert(name);
  }

  /// True if the checkpoint has it; notes that it was found, or that it is missing.
  bool find(const std::string& name) {
    if (!is_chosen(name, only_)) return false;
    const bool found = saved_names_.erase(name) == 1;
    if (found) return true;
    wanted_names_.push_back(name);
    differences_.add([&] {
      return fmt::format("{} is not in the checkpoint{}", printable(name),
                         meant(name, {saved_names_.begin(), saved_names_.end()}));
    });
    return false;
  }

  void match_tensor(const TensorItem& item) {
    if (!find(item.name)) return;
    const SavedTensor* saved = saved_.find(item.name);
    if (saved == nullptr) {
      differences_.add([&] { return fmt::format("{} is no tensor of its own in the checkpoint, but one of the program", item.name); });
      return;
    }
    if (item.tensor.sizes() != at::IntArrayRef(saved->shape) || item.tensor.scalar_type() != saved->dtype) {
      differences_.add([&] {
        return fmt::format("{} is {} in the checkpoint, {} in the program", item.name,
                           shape_and_dtype(saved->shape, saved->dtype),
                           shape_and_dtype(item.tensor.sizes(), item.tensor.scalar_type()));
      });
      return;
    }
    matches_.tensors.push_back({item.tensor, saved});
  }

  void match_alias(const std::string& name, const std::string& target) {
    if (!find(name)) return;
    const auto saved = saved_.aliases.find(name);
    if (saved != saved_.aliases.end() && saved->second == target) return;
    differences_.add([&] {
      return fmt::format("{} is the same tensor as {} in the program, {} in the checkpoint", name, target,
                         saved == saved_.aliases.end() ? "another one" : "the same as " + saved->second);
    });
  }

  void match_value(const ValueItem& item) {
    if (!find(item.name)) return;
    const auto saved = saved_.values.find(item.name);
    if (saved == saved_.values.end() || saved->second.index() != item.value.index()) {
      differences_.add([&] {
        return fmt::format("{} is {} in the checkpoint, {} in the program", item.name,
                           saved == saved_.values.end() ? "a tensor" : kind_of(saved->second), kind_of(item.value));
      });
      return;
    }
    if (!item.set && !(saved->second == item.value)) {
      differences_.add([&] {
        return fmt::format("{} is \"{}\" in the checkpoint, \"{}\" in the program", item.name,
                           printable(to_string(saved->second)), printable(to_string(item.value)));
      });
    }
    matches_.values.push_back({&item, &saved->second});
  }

  /// What was probably meant, if something is near.
  static std::string meant(const std::string& name, const std::vector<std::string>& candidates) {
    const std::string nearest = base::nearest_word(name, candidates);
    const bool near = !nearest.empty() && base::edit_distance(name, nearest) <= static_cast<int>(name.size() / 4 + 1);
    return near ? fmt::format(" (is {} meant?)", printable(nearest)) : "";
  }

  void check_used(const std::string& chosen) {
    const std::vector<std::string> one = {chosen};
    const auto chooses = [&](const auto& item) { return is_chosen(item.name, one); };
    const bool used = std::any_of(collector_.tensors().begin(), collector_.tensors().end(), chooses) ||
                      std::any_of(collector_.values().begin(), collector_.values().end(), chooses);
    if (used) return;
    std::vector<std::string> names;
    for (const TensorItem& item : collector_.tensors()) names.push_back(item.name);
    differences_.add([&] {
      return fmt::format("only = \"{}\" chooses nothing of the program; it has {} and others", printable(chosen),
                         base::nearest_word(chosen, names));
    });
  }

  const Collector& collector_;
  const Manifest& saved_;
  const std::vector<std::string>& only_;
  std::set<std::string> saved_names_;        ///< chosen ones that the program has not asked for yet
  std::vector<std::string> wanted_names_;    ///< that the checkpoint does not have
  Matches matches_;
  Differences differences_;
};

}  // namespace

bool is_chosen(const std::string& name, const std::vector<std::string>& only) {
  const auto chooses = [&](const std::string& chosen) { return name == chosen || name.starts_with(chosen + "."); };
  return only.empty() || std::any_of(only.begin(), only.end(), chooses);
}

Matches match(const Collector& collector, const std::vector<std::string>& only, const std::string& folder) {
  return Matcher(collector, only).run(folder);
}

}  // namespace tessera::checkpoint
