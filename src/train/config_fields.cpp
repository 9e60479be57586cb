// SPDX-License-Identifier: Apache-2.0
// The table of configuration fields: key, flag, place, legal values, unit and meaning.
#include "tessera/train/config.h"
#include "train/names.h"

namespace tessera::train {
namespace {

constexpr double kMaxSize = 1 << 24;
constexpr double kMaxCount = 1e15;

// A function from the tree to one member, as the table stores it.
#define TESSERA_MEMBER(path) +[](TrainConfig& config) -> decltype((config.path)) { return config.path; }

// One row per line or two is what makes this a table.
// clang-format off
std::vector<ConfigField> make_fields() {
  return {
      {"model.name", "model", TESSERA_MEMBER(model.name), "model to train", "", model_names()},
      {"model.sizes", "sizes", TESSERA_MEMBER(model.sizes), "mlp: widths from input to output", "", {}, 1, kMaxSize},
      {"model.channels", "channels", TESSERA_MEMBER(model.channels), "cnn, resnet: channels of the first blocks", "", {}, 4,
       kMaxSize},
      {"model.blocks", "blocks", TESSERA_MEMBER(model.blocks), "cnn, resnet: residual blocks", "", {}, 1, 1000},
      {"model.layers", "layers", TESSERA_MEMBER(model.layers), "gpt: transformer blocks", "", {}, 1, 1000},
      {"model.hidden", "hidden", TESSERA_MEMBER(model.hidden), "gpt: width", "", {}, 1, kMaxSize},
      {"model.heads", "heads", TESSERA_MEMBER(model.heads), "gpt: attention heads", "", {}, 1, kMaxSize},
      {"model.ffn", "ffn", TESSERA_MEMBER(model.ffn), "gpt: feed-forward width; 0: 4 * hidden", "", {}, 0, kMaxSize},
      {"model.vocab", "vocab", TESSERA_MEMBER(model.vocab), "gpt: vocabulary", "tokens", {}, 2, kMaxSize},
      {"model.seq_len", "seq-len", TESSERA_MEMBER(model.seq_len), "gpt: length of a sample", "tokens", {}, 1,
       kMaxSize},
      {"model.tie", "tie", TESSERA_MEMBER(model.tie), "gpt: output and token embedding share one parameter", "", {}},
      {"model.dropout", "dropout", TESSERA_MEMBER(model.dropout),
       "mlp, gpt: probability with which an activation is dropped in training", "", {}, 0, 1},
      {"data.source", "data", TESSERA_MEMBER(data.source),
       "digits | text | text:FILE_OR_FOLDER | csv:FILE | synthetic; empty: text for gpt, else digits", "", {}},
      {"data.order", "data-order", TESSERA_MEMBER(data.order), "order of the samples; sequential holds nothing out", "",
       {"shuffled", "sequential"}},
      {"data.digits_file", "digits-file", TESSERA_MEMBER(data.digits_file),
       "digits as CSV; empty: .data/digits.csv here or in the source folder", "", {}},
      {"plan.file", "plan", TESSERA_MEMBER(plan.file), "plan file; empty: the model's standard plan", "", {}},
      {"plan.zero", "zero", TESSERA_MEMBER(plan.zero),
       "sharded over dp_shard: 1 optimizer state, 2 gradients too, 3 parameters too; 0: as the plan file says", "", {}, 0,
       3},
      {"plan.sequence_parallel", "sequence-parallel", TESSERA_MEMBER(plan.sequence_parallel),
       "gpt: shard activations between tensor-parallel products over the sequence", "", {}},
      {"plan.recompute", "recompute", TESSERA_MEMBER(plan.recompute),
       "activations made again in backward: none | selective (what costs little) | full (all but blocks' inputs) | 8GiB "
       "(as many as must go for the others to fit)", "", {}},
      {"plan.balance", "balance", TESSERA_MEMBER(plan.balance),
       "what stages share evenly; time and memory are measured", "", {"parameters", "time", "memory"}},
      {"optimizer.name", "optimizer", TESSERA_MEMBER(optimizer.name), "update rule", "", {"adamw", "adam", "sgd"}},
      {"optimizer.lr", "lr", TESSERA_MEMBER(optimizer.lr), "learning rate", "", {}, 0, 1e6},
      {"optimizer.weight_decay", "weight-decay", TESSERA_MEMBER(optimizer.weight_decay), "weight decay", "", {}, 0,
       1e6},
      {"optimizer.momentum", "momentum", TESSERA_MEMBER(optimizer.momentum), "momentum, sgd only", "", {}, 0, 1},
      {"optimizer.clip", "clip", TESSERA_MEMBER(optimizer.clip), "largest global gradient norm; 0: no clipping", "", {},
       0, 1e30},
      {"mesh", "mesh", TESSERA_MEMBER(mesh), "axes pp, dp_replicate (short dp), dp_shard, tp and sizes, dp=2,tp=2; empty: one rank", "", {}},
      {"batch", "batch", TESSERA_MEMBER(batch), "global batch, over all ranks", "samples", {}, 1, kMaxSize},
      {"microbatches", "microbatches", TESSERA_MEMBER(microbatches), "micro-batches whose gradients add up in a step", "",
       {}, 1, 16383},
      {"schedule", "schedule", TESSERA_MEMBER(schedule),
       "order of micro-batches over pipeline stages: gpipe, 1f1b, interleaved, zb-h1, zb-h2, zbv, dualpipev or file:PATH",
       "", {}},
      {"chunks", "chunks", TESSERA_MEMBER(chunks), "pipeline stages per rank; 0: the schedule's own number", "", {}, 0, 64},
      {"trace", "trace", TESSERA_MEMBER(trace), "Chrome trace to write: pipeline actions of the last step", "", {}},
      {"precision", "precision", TESSERA_MEMBER(precision), "arithmetic; 16 bits under autocast, over fp32 parameters", "",
       {"fp32", "fp64", "bf16", "fp16"}},
      {"loss_scale", "loss-scale", TESSERA_MEMBER(loss_scale), "fp16: first loss scale", "", {}, 1, kMaxSize},
      {"check_finite", "check-finite", TESSERA_MEMBER(check_finite),
       "stop at the first NaN or infinity and name parameter and rank", "", {}},
      {"steps", "steps", TESSERA_MEMBER(steps), "steps to train", "steps", {}, 1, kMaxCount},
      {"epochs", "epochs", TESSERA_MEMBER(epochs), "if above 0, replaces steps", "epochs", {}, 0, 1e9},
      {"seed", "seed", TESSERA_MEMBER(seed), "weights, order and held-out split depend on it", "", {}, 0, kMaxCount},
      {"eval_every", "eval-every", TESSERA_MEMBER(eval_every), "evaluate every so many steps; 0: only at the end",
       "steps", {}, 0, kMaxCount},
      {"device", "device", TESSERA_MEMBER(device), "hardware", "", {"cpu", "cuda"}},
      {"threads_per_rank", "threads-per-rank", TESSERA_MEMBER(threads_per_rank), "intra-op threads of one rank",
       "threads", {}, 1, 4096},
      {"ranks", "ranks", TESSERA_MEMBER(ranks), "how local ranks are made when no launcher did", "",
       {"processes", "threads"}},
      {"timeout_s", "timeout", TESSERA_MEMBER(timeout_s), "deadline of one collective", "s", {}, 0.1, 1e6},
      {"weights", "weights", TESSERA_MEMBER(weights), "safetensors file to start from", "", {}},
      {"dump_weights", "dump-weights", TESSERA_MEMBER(dump_weights), "safetensors file to write at the end", "", {}},
      {"out", "out", TESSERA_MEMBER(out), "folder for metrics, configuration, checkpoints and reports", "", {}},
      {"checkpoint_every", "checkpoint-every", TESSERA_MEMBER(checkpoint_every),
       "steps between checkpoints OUT/step-N, and one at the end or at Ctrl-C; 0: none", "steps", {}, 0, kMaxCount},
      {"keep", "keep", TESSERA_MEMBER(keep), "newest checkpoints that stay; 0: all", "", {}, 0, 1e6},
      {"resume", "resume", TESSERA_MEMBER(resume),
       "goes on from a checkpoint's folder or the newest whole one of a run's folder; auto: of OUT, if there is one", "", {}},
  };
}
// clang-format on

#undef TESSERA_MEMBER

}  // namespace

const std::vector<ConfigField>& config_fields() {
  static const std::vector<ConfigField> fields = make_fields();
  return fields;
}

}  // namespace tessera::train
