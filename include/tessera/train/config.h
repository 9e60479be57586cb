// SPDX-License-Identifier: Apache-2.0
// The configuration of `tessera train`: one struct tree, one table of its fields, one reader for all its sources.
#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace tessera::train {

/// Which model, and its sizes; each model reads those that concern it.
struct ModelConfig {
  std::string name = "gpt";
  /// mlp: widths from input to output.
  std::vector<std::int64_t> sizes = {64, 256, 256, 10};
  /// cnn, resnet.
  std::int64_t channels = 32;
  std::int64_t blocks = 4;
  /// gpt. The default has 1.3 million parameters.
  std::int64_t layers = 4;
  std::int64_t hidden = 160;
  std::int64_t heads = 4;
  /// Feed-forward width; 0 stands for 4 * hidden.
  std::int64_t ffn = 0;
  std::int64_t vocab = 256;
  std::int64_t seq_len = 128;
  /// Output projection and token embedding share one parameter.
  bool tie = false;
  /// mlp, gpt: probability with which an activation is dropped in training.
  double dropout = 0.0;
  friend bool operator==(const ModelConfig&, const ModelConfig&) = default;
};

/// Which data, and in which order.
struct DataConfig {
  /// digits | text | text:FILE_OR_FOLDER | csv:FILE | synthetic; empty: text for gpt, digits for the others.
  std::string source;
  /// shuffled | sequential. Sequential holds nothing out.
  std::string order = "shuffled";
  /// The digits as CSV; empty: .data/digits.csv in the working directory, then in the source folder.
  std::string digits_file;
  friend bool operator==(const DataConfig&, const DataConfig&) = default;
};

struct PlanConfig {
  /// A plan file; empty: the standard plan of the model and mesh.
  std::string file;
  /// What is sharded over dp_shard besides: 0 as the plan file says, 1 optimizer state, 2 gradients too, 3 parameters too.
  std::int64_t zero = 0;
  /// gpt: activations between tensor-parallel products lie sharded over the sequence; not with a plan file, which says so
  /// itself.
  bool sequence_parallel = false;
  /// Activations that are dropped after forward and made again in backward: none (or as the plan file says) | selective
  /// | full | 8GiB: as many as must go for the others to fit.
  std::string recompute = "none";
  /// What is alike on all pipeline stages, where the plan file names none: parameters | time (forward and backward of
  /// each part, measured by rank 0) | memory (parameters, gradients, optimizer state and activations).
  std::string balance = "parameters";
  friend bool operator==(const PlanConfig&, const PlanConfig&) = default;
};

struct OptimizerConfig {
  /// adamw | adam | sgd.
  std::string name = "adamw";
  double lr = 1e-3;
  double weight_decay = 0.01;
  /// sgd only.
  double momentum = 0.9;
  /// Largest global norm of the gradient; 0: no clipping.
  double clip = 0.0;
  friend bool operator==(const OptimizerConfig&, const OptimizerConfig&) = default;
};

struct TrainConfig {
  ModelConfig model;
  DataConfig data;
  PlanConfig plan;
  OptimizerConfig optimizer;
  /// Axes and sizes, "dp=2,tp=2"; empty: one rank.
  std::string mesh;
  /// Samples per step over all ranks: the same numbers are trained on whatever the mesh.
  std::int64_t batch = 16;
  /// Micro-batches per step: their gradients add up and are reduced once.
  std::int64_t microbatches = 1;
  /// The order in which pipeline stages run them: a name of pipeline::schedules(), or file:PATH.
  std::string schedule = "1f1b";
  /// Pipeline stages per rank; 0: the schedule's own number.
  std::int64_t chunks = 0;
  /// Chrome trace of the last step's actions of pipeline stages; empty: none.
  std::string trace;
  /// fp32 | fp64 | bf16 | fp16; 16-bit ones compute under autocast over fp32 parameters, fp16 with dynamic loss scaling.
  std::string precision = "fp32";
  /// fp16 only: the first loss scale, which then follows the gradients (torch.amp.GradScaler).
  double loss_scale = 65536.0;
  /// Stop at the first value that is not finite and name the parameter and the rank. Reductions do not overlap backward.
  bool check_finite = false;
  std::int64_t steps = 100;
  /// If above 0, replaces `steps`.
  std::int64_t epochs = 0;
  /// Initial weights, order of the data, held-out split and dropout depend on it and on nothing else.
  std::int64_t seed = 0;
  /// Evaluate on the held-out data every so many steps; 0: after the last step only.
  std::int64_t eval_every = 0;
  /// cpu | cuda.
  std::string device = "cpu";
  std::int64_t threads_per_rank = 1;
  /// processes | threads.
  std::string ranks = "processes";
  /// Deadline of one collective, seconds.
  double timeout_s = 60.0;
  /// safetensors file to start from; empty: fresh weights from `seed`.
  std::string weights;
  /// safetensors file to write when training ends; empty: none.
  std::string dump_weights;
  /// Folder for metrics, the resolved configuration, checkpoints and reports; empty: none.
  std::string out;
  /// Steps between checkpoints OUT/step-N; 0: none.
  std::int64_t checkpoint_every = 0;
  /// How many of the newest checkpoints stay; 0: all.
  std::int64_t keep = 2;
  /// Where to go on from: the folder of a checkpoint, or of a run, which means its newest whole one; "auto": that of `out`,
  /// if there is one. Empty: begin anew.
  std::string resume;
  friend bool operator==(const TrainConfig&, const TrainConfig&) = default;
};

/// Where a field lives: a function from the tree to the member, whose type is the field's type.
using ConfigMember =
    std::variant<std::string& (*)(TrainConfig&), std::int64_t& (*)(TrainConfig&), double& (*)(TrainConfig&),
                 bool& (*)(TrainConfig&), std::vector<std::int64_t>& (*)(TrainConfig&)>;

/// One row of the field table: it drives files, --set, flags, help and the JSON dump.
struct ConfigField {
  /// "section.key", or "key" at the top of the file.
  std::string key;
  /// Flag without its dashes, for instance "seq-len".
  std::string flag;
  ConfigMember member;
  std::string doc;
  /// Unit of the value, empty if it has none.
  std::string unit;
  /// Words a text field may have; empty: any.
  std::vector<std::string> allowed;
  /// Smallest and largest legal number, both included.
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
};

/// Every field, in the order in which help and dumps show them.
[[nodiscard]] const std::vector<ConfigField>& config_fields();

/// The value of one field as text, in the spelling that `ConfigReader::set` reads.
[[nodiscard]] std::string format_value(const ConfigField& field, const TrainConfig& config);

/// The resolved configuration as one JSON object, with sections as nested objects.
[[nodiscard]] std::string format_json(const TrainConfig& config);

/// The resolved configuration as TOML; reading it back gives an equal tree.
[[nodiscard]] std::string format_toml(const TrainConfig& config);

/// Collects a configuration from a file, from --set and from flags (later ones win), and every mistake on the way.
///
///   ConfigReader reader;
///   reader.read_file("train.toml");
///   reader.assign("optimizer.lr=0.01", "--set");
///   reader.set("model.hidden", "192", "--hidden");
///   TrainConfig config = reader.finish();
///
/// Mistakes do not throw where they are found: `finish` reports them all in one ConfigError, one line each, with file
/// and line (or the flag), the key, the value, what is allowed and the nearest known word.
class ConfigReader {
 public:
  /// Reads a TOML file of at most 1 MiB.
  void read_file(const std::filesystem::path& path);
  /// Reads TOML text; `name` stands for the file in messages.
  void read_text(std::string_view text, const std::string& name);
  /// "section.key=value"; `origin` stands for the place in messages.
  void assign(std::string_view assignment, const std::string& origin);
  /// Sets one field from text: 12, 1e-3, true, 64,128,10 or a word.
  void set(std::string_view key, std::string_view value, const std::string& origin);

  /// True if some source has set this field.
  [[nodiscard]] bool is_set(std::string_view key) const;
  /// Checks how the fields fit together and returns the tree. Throws ConfigError listing every problem found so far.
  [[nodiscard]] TrainConfig finish() const;

 private:
  TrainConfig config_;
  std::map<std::string, std::string, std::less<>> origins_;
  std::vector<std::string> problems_;
};

}  // namespace tessera::train
