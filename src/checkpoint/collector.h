// SPDX-License-Identifier: Apache-2.0
// Everything that a state holds, tensor by tensor and value by value: what is saved, or where what is loaded goes.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "tessera/checkpoint/manifest.h"
#include "tessera/mesh/mesh.h"

namespace tessera::checkpoint {

struct TensorItem {
  std::string name;
  const char* role;
  at::Tensor tensor;
};

struct ValueItem {
  std::string name;
  Value value;
  std::function<void(const Value&)> set;  ///< empty: what is saved must be equal
};

class Collector {
 public:
  /// `saved`: the checkpoint that is being loaded; null: one is being written.
  explicit Collector(const Manifest* saved) : saved_(saved) {}

  /// The same tensor again is an alias of the first name.
  void tensor(const std::string& name, const char* role, const at::Tensor& tensor);
  void value(const std::string& name, Value value, std::function<void(const Value&)> set = {});
  /// Runs when everything is loaded, values too, if `name` is among what is loaded.
  void finally(const std::string& name, std::function<void()> action) { finals_.emplace_back(name, std::move(action)); }

  /// `tensor` counts as `name` from here on, although it is not saved: a copy of a parameter, that an optimizer updates.
  void call(const at::Tensor& tensor, const std::string& name) { names_[tensor.unsafeGetTensorImpl()] = name; }
  /// Throws ConfigError naming `part` and the remedy if no module before it has the tensor.
  [[nodiscard]] const std::string& name_of(const at::Tensor& tensor, const std::string& part) const;

  /// Null when saving.
  [[nodiscard]] const Manifest* saved() const noexcept { return saved_; }
  [[nodiscard]] bool loads() const noexcept { return saved_ != nullptr; }

  void use_mesh(const Mesh& mesh);
  [[nodiscard]] const std::optional<Mesh>& mesh() const noexcept { return mesh_; }

  [[nodiscard]] const std::vector<TensorItem>& tensors() const noexcept { return tensors_; }
  [[nodiscard]] const std::vector<ValueItem>& values() const noexcept { return values_; }
  [[nodiscard]] const std::map<std::string, std::string>& aliases() const noexcept { return aliases_; }
  [[nodiscard]] const std::vector<std::pair<std::string, std::function<void()>>>& finals() const noexcept { return finals_; }

 private:
  const Manifest* saved_;
  std::optional<Mesh> mesh_;
  std::vector<TensorItem> tensors_;
  std::vector<ValueItem> values_;
  std::map<std::string, std::string> aliases_;
  std::vector<std::pair<std::string, std::function<void()>>> finals_;
  std::unordered_map<const void*, std::string> names_;
};

}  // namespace tessera::checkpoint
