// SPDX-License-Identifier: Apache-2.0
// GPT-2's architecture: pre-norm transformer blocks with causal attention and learned positions.
#include <cmath>

#include "tessera/base/error.h"
#include "tessera/train/models.h"
#include "train/models/common.h"

namespace tessera::train {
namespace {

torch::nn::LayerNorm layer_norm(std::int64_t hidden) {
  return torch::nn::LayerNorm(torch::nn::LayerNormOptions({hidden}));
}

// Token ids [B, T] -> [B, T, D]: token plus position embedding.
struct GptEmbed : torch::nn::Module {
  explicit GptEmbed(const GptOptions& options)
      : tok(register_module("tok", torch::nn::Embedding(options.vocab, options.hidden))),
        pos(register_module("pos", torch::nn::Embedding(options.seq_len, options.hidden))),
        dropout(options.dropout) {}

  torch::Tensor forward(const torch::Tensor& ids_BT) {
    const auto num_tokens = ids_BT.size(1);
    check<ShapeError>(num_tokens <= pos->weight.size(0), "gpt: {} tokens in a sample, but model.seq_len is {}",
                      num_tokens, pos->weight.size(0));
    return torch::dropout(tok(ids_BT) + pos->weight.slice(0, 0, num_tokens), dropout, is_training());
  }

  torch::nn::Embedding tok;
  torch::nn::Embedding pos;
  double dropout;
};

// [B, T, D] -> [B, T, D].
struct GptBlock : torch::nn::Module {
  explicit GptBlock(const GptOptions& options)
      : heads(options.heads),
        head_dim(options.hidden / options.heads),
        ln1(register_module("ln1", layer_norm(options.hidden))),
        qkv(register_module("qkv", torch::nn::Linear(options.hidden, 3 * options.hidden))),
        proj(register_module("proj", torch::nn::Linear(options.hidden, options.hidden))),
        ln2(register_module("ln2", layer_norm(options.hidden))),
        up(register_module("up", torch::nn::Linear(options.hidden, options.ffn))),
        down(register_module("down", torch::nn::Linear(options.ffn, options.hidden))),
        dropout(options.dropout) {}

  torch::Tensor forward(const torch::Tensor& x_BTD) {
    const auto y_BTD = x_BTD + drop(proj(attend(ln1(x_BTD))));
    return y_BTD + drop(down(torch::gelu(up(ln2(y_BTD)), "tanh")));
  }

  torch::Tensor drop(const torch::Tensor& x) const { return torch::dropout(x, dropout, is_training()); }

  torch::Tensor attend(const torch::Tensor& x_BTD) {
    const auto batch = x_BTD.size(0);
    const auto num_tokens = x_BTD.size(1);
    const auto qkv_3BHTK = qkv(x_BTD).view({batch, num_tokens, heads, 3, head_dim}).permute({3, 0, 2, 1, 4}).unbind(0);
    const auto out_BHTK =
        torch::scaled_dot_product_attention(qkv_3BHTK[0], qkv_3BHTK[1], qkv_3BHTK[2],
                                            /*attn_mask=*/{}, is_training() ? dropout : 0.0, /*is_causal=*/true);
    return out_BHTK.transpose(1, 2).reshape({batch, num_tokens, heads * head_dim});
  }

  std::int64_t heads;
  std::int64_t head_dim;
  torch::nn::LayerNorm ln1;
  torch::nn::Linear qkv;
  torch::nn::Linear proj;
  torch::nn::LayerNorm ln2;
  torch::nn::Linear up;
  torch::nn::Linear down;
  double dropout;
};

// [B, T, D] -> logits [B, T, V]: final norm, then a projection without bias.
struct GptHead : torch::nn::Module {
  explicit GptHead(const GptOptions& options)
      : norm(register_module("norm", layer_norm(options.hidden))),
        out(register_module("out",
                            torch::nn::Linear(torch::nn::LinearOptions(options.hidden, options.vocab).bias(false)))) {}

  torch::Tensor forward(const torch::Tensor& x_BTD) { return out(norm(x_BTD)); }

  torch::nn::LayerNorm norm;
  torch::nn::Linear out;
};

// The same with the token embedding's parameter. It is held, not registered: a parameter registered twice would be
// listed, and so updated, twice.
struct GptTiedHead : torch::nn::Module {
  GptTiedHead(const GptOptions& options, torch::Tensor shared)
      : norm(register_module("norm", layer_norm(options.hidden))), shared_weight(std::move(shared)) {}

  torch::Tensor forward(const torch::Tensor& x_BTD) { return torch::linear(norm(x_BTD), shared_weight); }

  torch::nn::LayerNorm norm;
  torch::Tensor shared_weight;
};

// GPT-2's: the parameters that write to the residual stream start smaller, the more of them there are.
double gpt_std(const std::string& name, const torch::Tensor& /*parameter*/, const ModelConfig& config) {
  constexpr double kStd = 0.02;
  const bool residual = name.ends_with(".proj.weight") || name.ends_with(".down.weight");
  return residual ? kStd / std::sqrt(2.0 * static_cast<double>(config.layers)) : kStd;
}

}  // namespace

torch::nn::Sequential build_gpt(const GptOptions& options) {
  check<ConfigError>(options.heads >= 1 && options.hidden % options.heads == 0,
                     "build_gpt: hidden = {} is not a multiple of heads = {}", options.hidden, options.heads);
  auto sizes = options;
  if (sizes.ffn == 0) sizes.ffn = 4 * sizes.hidden;
  torch::nn::Sequential model;
  const auto embed = std::make_shared<GptEmbed>(sizes);
  model->push_back("embed", embed);
  for (std::int64_t i = 0; i < sizes.layers; ++i) {
    model->push_back(fmt::format("block{}", i), std::make_shared<GptBlock>(sizes));
  }
  if (sizes.tie) {
    model->push_back("head", std::make_shared<GptTiedHead>(sizes, embed->tok->weight));
  } else {
    model->push_back("head", std::make_shared<GptHead>(sizes));
  }
  return model;
}

ModelParts make_gpt_parts(const ModelConfig& config) {
  ModelParts parts;
  parts.module = build_gpt({.layers = config.layers,
                            .hidden = config.hidden,
                            .heads = config.heads,
                            .ffn = config.ffn,
                            .vocab = config.vocab,
                            .seq_len = config.seq_len,
                            .tie = config.tie,
                            .dropout = config.dropout});
  parts.input = {InputKind::kTokens, config.seq_len, config.vocab};
  parts.metric = Metric::kPerplexity;
  parts.unit = "tokens";
  parts.units_per_sample = config.seq_len;
  parts.initial_std = gpt_std;
  if (config.tie) parts.held = {{"head", "embed.tok.weight"}};
  return parts;
}

}  // namespace tessera::train
