// SPDX-License-Identifier: Apache-2.0
// Does again, on a mesh, what a tape has recorded.
#pragma once

#include <map>
#include <vector>

#include "module/cut_view.h"
#include "module/tape.h"
#include "tessera/mesh/mesh.h"

namespace tessera::module {

/// Plays a tape once. Every tensor is made where it is wanted; what nobody asked for lies like the first tensor of its
/// sizes that it meets, since that is where its values go.
class Replay {
 public:
  /// `wanted`: placements of the values that are kept.
  Replay(const Tape& tape, const Mesh& mesh, const std::map<ValueId, Placements>& wanted);

  void run();

  /// A value that was wanted, laid out as wanted.
  [[nodiscard]] at::Tensor value(ValueId id) const;

 private:
  /// A tensor of the recording once more: a mesh tensor, or a view of one along a dim that is cut.
  struct Played {
    at::Tensor tensor;
    std::optional<CutView> cut;
  };

  void spread_placements();
  void find_last_uses();
  void play(const RecordedCall& call);
  void play_factory(const RecordedCall& call);
  bool play_views_of_cut_dim(const RecordedCall& call);
  bool play_write_through_cut(const RecordedCall& call);
  void play_into_plain(const RecordedCall& call);
  void keep(ValueId id, at::Tensor tensor) { played_[static_cast<std::size_t>(id)] = {std::move(tensor), {}}; }
  void keep_on_mesh(ValueId id, const at::Tensor& tensor, const RecordedCall& call);
  [[nodiscard]] at::Tensor whole(ValueId id) const;
  [[nodiscard]] const Placements& placements_of(ValueId id) const { return placements_[static_cast<std::size_t>(id)]; }
  [[nodiscard]] std::vector<c10::IValue> arguments_of(const RecordedCall& call) const;

  const Tape& tape_;
  const Mesh& mesh_;
  const std::map<ValueId, Placements>& wanted_;
  std::vector<Placements> placements_;  ///< per value
  std::vector<std::size_t> last_use_;   ///< per value: index of the last call that reads or writes it
  std::vector<Played> played_;          ///< per value
};

}  // namespace tessera::module
