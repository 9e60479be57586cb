// SPDX-License-Identifier: Apache-2.0
// Fused scaled dot-product attention: every batch element and every query head stands alone. Where there are fewer
// key/value heads than query heads, query head h reads key/value head h / (query heads per key/value head).
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <string_view>
#include <utility>

#include "rules/families.h"
#include "rules/rows.h"
#include "tessera/base/error.h"

namespace tessera::rules {
namespace {

constexpr std::int64_t kBatch = 0;
constexpr std::int64_t kHeads = 1;

/// What a tensor is to attention, by the name of its argument.
enum class Part {
  kQuery,  ///< [batch, query heads, ...]: query, out, log-sum-exp and the gradient of out
  kKey,    ///< [batch, key heads, ...]: key and value
  kMask,   ///< 2 dims, or [batch or 1, query heads or 1, ...]
  kOther,  ///< random state and cumulated lengths of CUDA's kernels: no such dims
};

Part part_of(std::string_view name) {
  constexpr std::array kQueries{"query", "out", "grad_out", "grad_out_", "logsumexp"};
  if (std::find(kQueries.begin(), kQueries.end(), name) != kQueries.end()) return Part::kQuery;
  if (name == "key" || name == "value") return Part::kKey;
  return name == "attn_mask" || name == "attn_bias" ? Part::kMask : Part::kOther;
}
Part part_of(const OpCall& call, const TensorArg& tensor) {
  return part_of(call.schema.arguments()[static_cast<std::size_t>(tensor.argument)].name());
}

/// Outputs of forward that are [batch, query heads, ...].
bool is_cut_output(std::string_view name) { return name == "output" || name == "logsumexp" || name == "log_sumexp"; }

int tensor_named(const OpCall& call, std::string_view name) {
  int index = 0;
  while (call.schema.arguments()[static_cast<std::size_t>(call.tensor(index).argument)].name() != name) ++index;
  return index;
}

struct Heads {
  std::int64_t query = 0;
  std::int64_t key = 0;

  explicit Heads(const OpCall& call)
      : query(call.tensor(tensor_named(call, "query")).sizes[kHeads]),
        key(call.tensor(tensor_named(call, "key")).sizes[kHeads]) {}
  [[nodiscard]] bool fit() const { return key > 0 && query % key == 0; }
  [[nodiscard]] std::int64_t per_key() const { return query / key; }
};

/// Does each rank's part of the key heads serve its part of the query heads, and no others? Asked in the same way on
/// every axis, so that the answers go together where several cut heads.
bool are_cut_alike(const OpCall& call, const Heads& heads) {
  std::int64_t parts = 1;
  int num_axes = 0;
  for (int axis = 0; axis < call.mesh.num_axes(); ++axis) {
    if (!contains(sharded_dims(call, axis), kHeads)) continue;
    parts *= call.mesh.axis_size(axis);
    ++num_axes;
  }
  if (num_axes > 1) return heads.key % parts == 0;
  for (std::int64_t part = 0; part < parts; ++part) {
    const Extent query = chunk_extent(heads.query, parts, part);
    const Extent key = chunk_extent(heads.key, parts, part);
    if (query.length != key.length * heads.per_key()) return false;
  }
  return true;
}

/// How keys lie and how their gradients come out, where queries are cut along `dim`: a rank that has all key heads
/// picks those that its query heads read, and knows a part of their gradient.
std::pair<Placement, Placement> key_placements(const OpCall& call, std::int64_t dim) {
  if (dim == kBatch || are_cut_alike(call, Heads(call))) return {S(dim), S(dim)};
  return {R, P};
}

bool offer_cut(const OpCall& call, std::int64_t dim, Row& row) {
  const auto size = [&](const TensorArg& tensor) { return tensor.sizes[static_cast<std::size_t>(dim)]; };
  const std::int64_t query_size = size(call.tensor(tensor_named(call, "query")));
  if (query_size == 0 || (dim == kHeads && !Heads(call).fit())) return false;
  const auto [key, key_gradient] = key_placements(call, dim);
  Placement mask_gradient = P;
  for (const TensorArg& tensor : call.tensors) {
    const Part part = part_of(call, tensor);
    const bool has_dim = tensor.defined && tensor.dim() == 4 && size(tensor) == query_size;
    if (part == Part::kKey && dim == kBatch && !has_dim) return false;
    const bool follows = part == Part::kQuery || (part == Part::kMask && has_dim);
    if (part == Part::kMask && follows) mask_gradient = S(dim);
    row.inputs.push_back(follows ? S(dim) : part == Part::kKey ? key : R);
  }
  if (is_backward(call.schema)) {
    row.outputs = {S(dim), key_gradient, key_gradient, mask_gradient};
    row.outputs.resize(static_cast<std::size_t>(call.num_outputs()));
    return true;
  }
  for (const c10::Argument& output : call.schema.returns()) {
    row.outputs.push_back(is_cut_output(output.name()) ? S(dim) : R);
  }
  return true;
}

void attention_rows(const OpCall& call, int axis, Rows& rows) {
  const int debug_mask = call.index_of("return_debug_mask");
  if (debug_mask >= 0 && call.argument(debug_mask).toBool()) return;
  for (const std::int64_t dim : {kBatch, kHeads}) {
    Row row;
    if (contains(sharded_dims(call, axis), dim) && offer_cut(call, dim, row)) rows.push_back(std::move(row));
  }
}

/// The key heads, counted from the first that this rank holds, that its query heads read: once each if they share
/// alike, else once per query head.
std::vector<std::int64_t> key_heads_read(const Extent& query, const Extent& key, std::int64_t per_key) {
  if (query.length == 0) return {0};
  const std::int64_t first = query.offset / per_key;
  const std::int64_t last = (query.offset + query.length - 1) / per_key;
  const bool share_alike = first == last || (query.offset % per_key == 0 && query.length % per_key == 0);
  std::vector<std::int64_t> read(static_cast<std::size_t>(share_alike ? last - first + 1 : query.length));
  std::iota(read.begin(), read.end(), share_alike ? first : query.offset);
  for (std::int64_t& head : read) head = (share_alike ? head : head / per_key) - key.offset;
  return read;
}

/// Key heads that are read, out of those that are here.
class PickedHeads {
 public:
  explicit PickedHeads(const std::vector<std::int64_t>& read)
      : read_(read), consecutive_(std::adjacent_find(read.begin(), read.end(), skips) == read.end()) {}

  [[nodiscard]] at::Tensor of(const at::Tensor& keys) const {
    if (consecutive_) return keys.narrow(kHeads, read_.front(), static_cast<std::int64_t>(read_.size()));
    return keys.index_select(kHeads, index(keys));
  }
  /// Adds the gradient of what was picked to that of all.
  void add_gradient(const at::Tensor& all, const at::Tensor& picked) const {
    if (consecutive_) {
      all.narrow(kHeads, read_.front(), static_cast<std::int64_t>(read_.size())).add_(picked);
    } else {
      at::Tensor(all).index_add_(kHeads, index(all), picked);
    }
  }

 private:
  [[nodiscard]] at::Tensor index(const at::Tensor& like) const {
    return at::tensor(read_, at::TensorOptions(like.device()).dtype(at::kLong));
  }
  static bool skips(std::int64_t head, std::int64_t next) { return next != head + 1; }

  const std::vector<std::int64_t>& read_;
  bool consecutive_;
};

/// Kernels cannot run on nothing: they run on one element or head of zeros, and what comes out is cut off.
at::Tensor not_empty(const at::Tensor& tensor) {
  if (tensor.dim() < 3 || (tensor.size(kBatch) > 0 && tensor.size(kHeads) > 0)) return tensor;
  std::vector<std::int64_t> sizes = tensor.sizes().vec();
  for (const std::int64_t dim : {kBatch, kHeads}) {
    sizes[static_cast<std::size_t>(dim)] = std::max<std::int64_t>(sizes[static_cast<std::size_t>(dim)], 1);
  }
  return tensor.new_zeros(sizes);
}

void compute_picked(const c10::OperatorHandle& op, const Decision& decision, const Mesh&, torch::jit::Stack& stack) {
  const auto& schema = op.schema();
  const std::size_t base = stack.size() - schema.arguments().size();
  const PickedHeads picked(decision.notes);
  at::Tensor query;
  std::array<at::Tensor, 2> keys;  // key, value
  for (std::size_t i = 0; i < schema.arguments().size(); ++i) {
    c10::IValue& argument = stack[base + i];
    if (!argument.isTensor() || !argument.toTensor().defined()) continue;
    const std::string& name = schema.arguments()[i].name();
    const at::Tensor tensor = argument.toTensor();
    if (name == "query") query = tensor;
    const bool is_key = part_of(name) == Part::kKey;
    if (is_key) keys[name == "key" ? 0 : 1] = tensor;
    argument = is_key ? picked.of(not_empty(tensor)) : not_empty(tensor);
  }
  op.callBoxed(stack);
  const std::vector<c10::IValue> results = torch::jit::pop(stack, schema.returns().size());
  for (std::size_t i = 0; i < results.size(); ++i) {
    c10::IValue result = results[i];
    if (is_backward(schema) && (i == 1 || i == 2)) {
      // Partial sums must lie alike on all ranks.
      const at::Tensor all = at::zeros(keys[i - 1].sizes(), keys[i - 1].options());
      if (query.numel() > 0) picked.add_gradient(all, result.toTensor());
      result = all;
    } else if (result.isTensor() && result.toTensor().defined()) {
      for (const std::int64_t dim : {kBatch, kHeads}) {
        const bool is_padded = query.size(dim) == 0 && shards_dim(decision.outputs[i], dim);
        if (is_padded) result = result.toTensor().narrow(dim, 0, 0);
      }
    }
    stack.push_back(std::move(result));
  }
}

void refuse_dropout(const OpCall& call) {
  const int index = call.index_of("dropout_p");
  const double p = index < 0 ? 0 : call.argument(index).toDouble();
  check<ShapeError>(p == 0,
                    "{} on mesh {}: dropout_p is {}, and each rank would drop other elements; allowed: 0, or "
                    "torch::scaled_dot_product_attention",
                    call.schema.name(), call.mesh.to_string(), p);
}

void localise_attention(const OpCall& call, Decision& decision) {
  // Reached only by those who call a fused kernel by name: attention_dropout.cpp keeps dropout away from them.
  refuse_dropout(call);
  const Heads heads(call);
  if (!heads.fit()) return;
  const auto extent = [&](const char* name, std::int64_t dim) {
    const int index = tensor_named(call, name);
    return tensor::local_extent(call.tensor(index).sizes[static_cast<std::size_t>(dim)], static_cast<int>(dim),
                                decision.inputs[static_cast<std::size_t>(index)], call.mesh);
  };
  const Extent query = extent("query", kHeads);
  const Extent key = extent("key", kHeads);
  const bool is_empty = query.length == 0 || extent("query", kBatch).length == 0;
  decision.notes = key_heads_read(query, key, heads.per_key());
  std::vector<std::int64_t> all(static_cast<std::size_t>(key.length));
  std::iota(all.begin(), all.end(), 0);
  const bool adds_up = is_backward(call.schema) && decision.outputs[1].any_partial();
  if (is_empty || adds_up || decision.notes != all) decision.compute = compute_picked;
}

/// Gradients have the sizes of what they belong to.
std::vector<Sizes> gradient_sizes(const OpCall& call) {
  std::vector<Sizes> sizes;
  for (const char* name : {"query", "key", "value"}) {
    const at::IntArrayRef own = call.tensor(tensor_named(call, name)).sizes;
    sizes.emplace_back(own.begin(), own.end());
  }
  return sizes;
}

}  // namespace

void add_attention_rules(RuleTable& table) {
  for (const char* name :
       {"aten::_scaled_dot_product_flash_attention_for_cpu", "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_efficient_attention", "aten::_scaled_dot_product_cudnn_attention"}) {
    table[name] = {.rows = attention_rows, .localise = localise_attention};
    table[std::string(name) + "_backward"] = {
        .rows = attention_rows, .localise = localise_attention, .output_sizes = gradient_sizes};
  }
}

}  // namespace tessera::rules
