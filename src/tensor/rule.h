// SPDX-License-Identifier: Apache-2.0
// What a rule is: for one operator, the legal rows (input placements -> output placements) on one mesh axis.
//
// Rules know one axis at a time. The dispatcher always offers the row "everything replicated" first, asks the rule for
// more, picks the cheapest row per axis and puts the axes together. A row must be true for any sizes, even uneven ones,
// or not be offered.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "tensor/call_shape.h"
#include "tensor/layout.h"
#include "tensor/mesh_storage.h"
#include "tensor/stage_map.h"

namespace tessera::tensor {

/// A tensor argument as rules see it. List arguments are flattened in order; undefined optional tensors keep their
/// place with `defined` false.
struct TensorArg {
  at::IntArrayRef sizes;
  Placements placements;  ///< of a plain tensor: replicated
  at::ScalarType dtype = at::kFloat;
  at::IntArrayRef strides;  ///< for operators that read them
  std::int64_t offset = 0;
  std::int64_t bytes = 0;  ///< of the global value
  bool defined = false;
  bool on_mesh = false;  ///< false: a plain tensor
  int argument = 0;      ///< index in the schema
  unsigned gathered_at_use = 0;                   ///< see MeshStorage
  const Placements* state_placements = nullptr;  ///< see MeshStorage
  MeshStorage::OnStages stage;                    ///< see MeshStorage
  [[nodiscard]] std::int64_t dim() const noexcept { return static_cast<std::int64_t>(sizes.size()); }
};

/// One call of an operator.
struct OpCall {
  const c10::FunctionSchema& schema;
  const Mesh& mesh;
  c10::SmallVector<TensorArg, 8> tensors;
  c10::ArrayRef<c10::IValue> arguments;
  bool in_place = false;  ///< the first tensor is written
  const StageMap* stages = nullptr;  ///< null: no tensor lies on pipeline stages
  StageSet forward_stages = 0;       ///< in backward: where the operator ran whose gradient this is; 0: not known
  bool in_backward = false;          ///< known only if there are stages
  StageSet written = 0;              ///< stages on which a tensor that is written lies; 0: none is
  /// Per tensor: how it will lie on the axes before the one that a rule is asked about. Null outside of `Rule::rows`.
  const c10::SmallVector<Placements, 8>* decided = nullptr;

  [[nodiscard]] const c10::IValue& argument(int index) const { return arguments[static_cast<std::size_t>(index)]; }
  [[nodiscard]] const TensorArg& tensor(int index) const { return tensors[static_cast<std::size_t>(index)]; }
  [[nodiscard]] int num_tensors() const noexcept { return static_cast<int>(tensors.size()); }
  /// In-place operators on lists return nothing; their output is the first list.
  [[nodiscard]] int num_outputs() const noexcept {
    const auto returned = static_cast<int>(schema.returns().size());
    return in_place ? std::max(returned, 1) : returned;
  }
  /// Index of the schema argument of that name, -1 if there is none.
  [[nodiscard]] int index_of(const char* name) const;
  /// The named argument; the schema must have it.
  [[nodiscard]] const c10::IValue& named(const char* name) const { return argument(index_of(name)); }
};

/// One legal row on one axis. Placements of undefined tensors and non-tensor outputs are ignored.
struct Row {
  c10::SmallVector<Placement, 8> inputs;
  c10::SmallVector<Placement, 4> outputs;
  bool counts_places = false;  ///< true only for plain shards, though the rule holds for any (Cuts::kAny)
};
using Rows = c10::SmallVector<Row, 8>;

struct Decision;

/// Runs in place of the local operator; takes the arguments off the stack and leaves the outputs.
using Compute = void (*)(const c10::OperatorHandle&, const Decision&, const Mesh&, torch::jit::Stack&);

/// How a call is carried out: what rules and the dispatcher worked out once and the cache remembers.
struct Decision {
  c10::SmallVector<Placements, 8> inputs;   ///< per flattened tensor argument
  c10::SmallVector<Placements, 4> outputs;  ///< per return value
  std::vector<Sizes> output_sizes;          ///< global, per return value; filled by the first run
  bool sizes_known = false;
  std::vector<std::pair<int, c10::IValue>> edits;  ///< arguments rewritten for local sizes
  Compute compute = nullptr;
  std::vector<std::int64_t> notes;          ///< numbers that `compute` needs
  bool fallback = false;                    ///< no rule: gathered and replicated
  bool gathers_view = false;                ///< a view whose input had to be redistributed
  bool hides_strides = false;               ///< some shard is so small that its strides do not tell those of the whole
  std::shared_ptr<const ResultLayout> layout;  ///< of the last call where they did not; null: none yet
  std::shared_ptr<const ShownViews> views;     ///< of the last call that needed them; null: none yet
  std::vector<Decision> elements;           ///< per element of the lists, where the rule says so
  StageSet stages = 0;                      ///< where the call runs; 0: everywhere
  std::uint64_t key = 0;                    ///< of the call, if it runs on stages
  std::shared_ptr<const CallShape> shape;   ///< of the results, if it runs on stages; null: not known yet
};

/// What a rule's rows say about dims that are cut in groups or units (Cut).
enum class Cuts : std::uint8_t {
  kPlain,  ///< nothing: such a dim is cut as torch::chunk cuts first, or gathered
  kAny,    ///< they hold however the dims of a row are cut, if all alike: no matter which elements a rank holds, or whether
           ///< it holds some. The dispatcher offers each row with the cuts that it finds
  kSeen,   ///< the rule looks at cuts, and its rows name them
};

struct Rule {
  /// Appends the legal rows on `axis`. May be null: only the replicated row is legal then, and that is no fallback.
  void (*rows)(const OpCall& call, int axis, Rows& rows) = nullptr;
  /// Rewrites arguments for local sizes and chooses `compute`, once `inputs` and `outputs` are decided. May be null.
  void (*localise)(const OpCall& call, Decision& decision) = nullptr;
  /// Global sizes of the outputs where they do not follow from an input's sharded dim. May be null.
  std::vector<Sizes> (*output_sizes)(const OpCall& call) = nullptr;
  /// The first tensor is a parameter and the first output an activation: it is brought to where the plan wants it.
  bool follows_plan_output = false;
  /// The k-th tensors of the call's lists are a call of their own (_foreach_add_): `rows` is asked for each of them, and
  /// tensors outside of lists are replicated.
  bool per_element = false;
  /// Unless it is kSeen, `rows` is shown shards as if all were plain.
  Cuts cuts = Cuts::kPlain;
};

/// Rules by base name: "aten::add" serves add.Tensor, add_.Tensor and add.out alike.
using RuleTable = std::unordered_map<std::string, Rule>;

/// All rules. Defined by the rules floor.
[[nodiscard]] const RuleTable& rule_table();

/// The rule of an operator: by base name, else the pointwise rule if the operator is tagged pointwise, else null.
/// Defined by the rules floor.
[[nodiscard]] const Rule* find_rule(const c10::OperatorHandle& op);

/// Registers kernels for operators that LibTorch would compose of others in a way that is wrong on a mesh. Called once.
/// Defined by the rules floor.
void register_composites();

}  // namespace tessera::tensor
