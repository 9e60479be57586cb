// SPDX-License-Identifier: Apache-2.0
// A plan: which parameter lies how on which mesh axis. The only place where parallel configuration lives.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/mesh/mesh.h"

namespace tessera {

/// Patterns over dotted parameter names ("block3.qkv.weight") to placements per axis.
///
/// Patterns  as in fnmatch(3): `*` any characters, `?` one, `[ab]` one of. The first pattern that matches a name
///           decides; names that none matches, and axes that an entry does not name, are replicated.
/// Axes      a plan may name axes that a mesh does not have, so that one plan serves many meshes.
///
/// As a file (TOML):
///
///   [[parameters]]
///   match = "block*.qkv.*"
///   tp = "colwise"            # shard(0): each rank computes some of the outputs
///
///   [[parameters]]
///   match = "block*.proj.weight"
///   tp = "rowwise"            # shard(1): each rank consumes some of the inputs
class Plan {
 public:
  struct Entry {
    std::string match;
    std::map<std::string, Placement> placements;  ///< by axis name
  };

  /// Everything replicated: data parallel.
  Plan() = default;

  /// Appends an entry. Throws ConfigError for an unknown axis.
  Plan& add(std::string match, const std::map<std::string, Placement>& placements);

  /// Throws FileError if the file cannot be read, ConfigError naming file, line, key and what is allowed.
  [[nodiscard]] static Plan load(const std::string& path);
  /// `origin` stands for the file name in messages.
  [[nodiscard]] static Plan parse(std::string_view toml, const std::string& origin);
  /// Inverse of parse.
  [[nodiscard]] std::string to_toml() const;

  [[nodiscard]] const std::vector<Entry>& entries() const noexcept { return entries_; }

  /// How the parameter of that name lies on `mesh`.
  [[nodiscard]] Placements placements_of(const std::string& parameter, const Mesh& mesh) const;

  /// Throws ConfigError if an entry matches none of `parameters`, naming the pattern and the nearest name.
  void check_matches(const std::vector<std::string>& parameters) const;

 private:
  std::vector<Entry> entries_;
};

/// Ready plans over the usual names of such modules; tensor parallel on axis `tp`, everything else replicated.
/// Only patterns that match some of `parameters` are taken, so that a plan fits models without biases, say.
///
/// MLP: Linear layers in order, alternately column- and row-parallel; the last is row-parallel if that pairs up, else
/// replicated. Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3.
[[nodiscard]] Plan plan_for_mlp(const std::vector<std::string>& parameters);
/// CNN of residual blocks (conv1, norm1, conv2): output channels of conv1, input channels of conv2.
[[nodiscard]] Plan plan_for_cnn(const std::vector<std::string>& parameters);
/// Transformer blocks: qkv, q, k, v, up, gate column-parallel; proj, down row-parallel; output head over the vocabulary.
[[nodiscard]] Plan plan_for_transformer(const std::vector<std::string>& parameters);

}  // namespace tessera
