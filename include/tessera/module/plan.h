// SPDX-License-Identifier: Apache-2.0
// A plan: which parameter lies how on which mesh axis. The only place where parallel configuration lives.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/mesh/mesh.h"
#include "tessera/mesh/stage_order.h"
#include "tessera/tensor/recompute.h"

namespace torch::nn {
class Module;
}

namespace tessera {

/// How one parameter and what belongs to it lie on a mesh.
struct ParameterLayout {
  Placements value;
  Placements gradient;  ///< once it is reduced
  Placements state;     ///< what an optimizer keeps for it
  Placements output;    ///< what is computed from it, on the axes of `planned_outputs`
  unsigned planned_outputs = 0;
  /// Bit i: sharded along axis i to save memory; whoever computes with the value gathers it for that use.
  unsigned gathered_at_use = 0;
};

/// Patterns over dotted parameter names ("block3.qkv.weight") to placements per axis.
///
/// Patterns  as in fnmatch(3): `*` any characters, `?` one, `[ab]` one of. The first pattern that matches a name
///           decides; names that none matches, and axes that an entry does not name, are replicated.
/// Axes      a plan may name axes that a mesh does not have, so that one plan serves many meshes.
///
/// As a file (TOML):
///
///   zero = 3                    # optional: see zero()
///   prefetch_bytes = 8388608    # optional: see prefetch_bytes()
///   reduce_dtype = "float32"    # optional: see reduce_dtype()
///   stages = [["embed", "block0-1"], ["block2-3", "head"]]   # optional: see stages()
///   recompute = "selective"     # optional: see recompute()
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
    /// How the activation that an embedding with this weight gives should lie, by axis name; axes that are not named
    /// stay as they come out. Everything after it follows: with tp = shard(1), the blocks' norms, dropouts and
    /// residuals are sharded over the sequence. In the file: output.tp = "shard(1)".
    std::map<std::string, Placement> outputs = {};
  };

  /// Everything replicated: data parallel.
  Plan() = default;

  /// Appends an entry. Throws ConfigError for an unknown axis.
  Plan& add(std::string match, const std::map<std::string, Placement>& placements,
            const std::map<std::string, Placement>& outputs = {});

  /// ZeRO: what is cut along dim 0 over axis dp_shard, on top of the entries. 1: the optimizer's state; 2: gradients
  /// too; 3: parameters too, which are gathered for each use and dropped after it (FSDP; with dp_replicate beside it,
  /// HSDP). Parameters that an entry shards over dp_shard are left as the entry says. Without effect on a mesh without
  /// dp_shard. Throws ConfigError if `stage` is not 0 to 3.
  /// Source: Rajbhandari et al. 2020, arXiv:1910.02054, section 5.
  Plan& zero(std::int64_t stage);
  [[nodiscard]] int zero() const noexcept { return zero_; }

  /// Parameters that are gathered at use (stage 3) are gathered ahead of it, in the order in which the step before used
  /// them, up to so many bytes of values that are not used yet. 0: when they are used. A step that goes another way is
  /// right too, and its order is the next one's. Pays where a transport moves data on its own while ranks compute, on
  /// GPUs say; between ranks that share the cores of one machine it costs a little.
  /// Memory   up to `bytes` more per rank
  /// Throws   ConfigError if negative
  Plan& prefetch_bytes(std::int64_t bytes);
  [[nodiscard]] std::int64_t prefetch_bytes() const noexcept { return prefetch_bytes_; }

  /// Gradients of another floating dtype become `dtype` before backward adds them up over ranks, and their own again
  /// once every sum is done: float32 for bf16 parameters, so that what several sums (dp_shard, dp_replicate) or a
  /// transport's many additions round away stays; bfloat16 for fp32 parameters halves what is sent. Default: each
  /// gradient's own. Under autocast gradients of fp32 parameters are fp32 already. In the file: float64, float32,
  /// bfloat16 or float16. Memory   a gradient under way has the size of `dtype` Throws   ConfigError for a dtype that
  /// is none of these
  Plan& reduce_dtype(c10::ScalarType dtype);
  [[nodiscard]] const std::optional<c10::ScalarType>& reduce_dtype() const noexcept { return reduce_dtype_; }

  /// Which activations are dropped after forward and made again in backward; see tessera/tensor/recompute.h. Blocks are
  /// the parts of the module that balanced_stages() names. In the file: recompute = "full", or "8GiB".
  Plan& recompute(Recompute recompute) noexcept {
    recompute_ = recompute;
    return *this;
  }
  [[nodiscard]] Recompute recompute() const noexcept { return recompute_; }

  /// Pipeline stages: patterns[k] names what lies on stage k of axis pp, parameters and buffers. Each must be named,
  /// and the first stage that names it has it; a tied parameter lies on the stages of all its names. Without effect on
  /// a mesh without pp. In the file: stages = [["embed", "block0-1"], ["block2-3", "head"]].
  ///
  /// A pattern is a path from the module's root: "block3" is all below it. Parts are as in fnmatch(3) or end in a range
  /// of numbers: "layers.0-4", "block2-3", "8-" (and all that follow). With a plus before it, "+embed.weight", the stage
  /// has a parameter too that another stage names: one that a module of this stage computes with and does not register.
  ///
  /// `order` says where stages run if there are more of them than ranks along pp.
  /// Throws ConfigError for no stage at all, an empty one, or more than kMaxStages.
  Plan& stages(std::vector<std::vector<std::string>> patterns, StageOrder order = StageOrder::kLoop);
  [[nodiscard]] const std::vector<std::vector<std::string>>& stages() const noexcept { return stages_; }
  /// The coordinate along pp of each stage. Throws ConfigError naming the numbers if they do not fit `ranks`.
  [[nodiscard]] std::vector<int> rank_of_stage(int ranks) const;
  /// The first stage that names it, and those that have it too; 0 if no pattern without a plus names it.
  [[nodiscard]] StageSet stage_of(const std::string& name) const;

  /// Throws FileError if the file cannot be read, ConfigError naming file, line, key and what is allowed.
  [[nodiscard]] static Plan load(const std::string& path);
  /// `origin` stands for the file name in messages.
  [[nodiscard]] static Plan parse(std::string_view toml, const std::string& origin);
  /// Inverse of parse.
  [[nodiscard]] std::string to_toml() const;

  [[nodiscard]] const std::vector<Entry>& entries() const noexcept { return entries_; }

  /// How the parameter of that name, with `num_dims` dims, lies on `mesh`.
  [[nodiscard]] ParameterLayout layout_of(const std::string& parameter, std::int64_t num_dims, const Mesh& mesh) const;

  /// Throws ConfigError if an entry matches none of `parameters`, naming the pattern and the nearest name.
  void check_matches(const std::vector<std::string>& parameters) const;

 private:
  [[nodiscard]] const Entry* entry_of(const std::string& parameter) const;

  std::vector<Entry> entries_;
  int zero_ = 0;
  std::int64_t prefetch_bytes_ = 0;
  std::optional<c10::ScalarType> reduce_dtype_;
  Recompute recompute_;
  std::vector<std::vector<std::string>> stages_;
  StageOrder stage_order_ = StageOrder::kLoop;
};

/// Cuts a module into `count` stages of about equal weight, for Plan::stages(): a chain of its children, or of their
/// children where a child is a list or sequence, in the order in which they are registered. The largest stage is as
/// small as it can be. Parts without parameters and buffers need no stage. `weight_of` is the cost of one part, given
/// its path and the part; default: elements of its parameters. Throws ConfigError if there are fewer parts than stages.
[[nodiscard]] std::vector<std::vector<std::string>> balanced_stages(
    const torch::nn::Module& module, int count,
    const std::function<double(const std::string& path, const torch::nn::Module& part)>& weight_of = {});

/// Ready plans over the usual names of such modules; tensor parallel on axis `tp`, everything else replicated.
/// Only patterns that match some of `parameters` are taken, so that a plan fits models without biases, say.
///
/// MLP: Linear layers in order, alternately column- and row-parallel; the last is row-parallel if that pairs up, else
/// replicated. Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3.
[[nodiscard]] Plan plan_for_mlp(const std::vector<std::string>& parameters);
/// CNN of residual blocks (conv1, norm1, conv2): output channels of conv1, input channels of conv2.
[[nodiscard]] Plan plan_for_cnn(const std::vector<std::string>& parameters);
/// The same for blocks of layers that are each a convolution and a norm (layer1.conv, layer1.norm, layer2.conv).
[[nodiscard]] Plan plan_for_resnet(const std::vector<std::string>& parameters);
struct TransformerPlanOptions {
  /// Activations between the tensor-parallel products lie sharded over the sequence.
  /// Source: Korthikanti et al. 2022, arXiv:2205.05198, section 4.2.
  bool sequence_parallel = false;
};
/// Transformer blocks: qkv, q, k, v, up, gate column-parallel; proj, down row-parallel; token embedding and output head
/// over the vocabulary, so that logits are never gathered.
[[nodiscard]] Plan plan_for_transformer(const std::vector<std::string>& parameters,
                                        const TransformerPlanOptions& options = {});

}  // namespace tessera
