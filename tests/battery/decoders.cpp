// SPDX-License-Identifier: Apache-2.0
// Language models that predict the next token.
#include "battery/battery.h"

namespace tessera::battery {
namespace {

namespace nn = torch::nn;

constexpr std::int64_t kVocabulary = 22;
constexpr std::int64_t kTokens = 6;
constexpr std::int64_t kWidth = 16;
constexpr std::int64_t kHeads = 4;
constexpr std::int64_t kHeadWidth = kWidth / kHeads;

nn::Linear unbiased(std::int64_t in, std::int64_t out) { return nn::Linear(nn::LinearOptions(in, out).bias(false)); }

struct RmsNormImpl : nn::Module {
  explicit RmsNormImpl(std::int64_t width) { weight = register_parameter("weight", torch::ones(width)); }
  Tensor forward(const Tensor& x) { return x * torch::rsqrt(x.pow(2).mean(-1, true) + 1e-6) * weight; }
  Tensor weight;
};
TORCH_MODULE(RmsNorm);

Tensor angles(std::int64_t tokens, c10::Device device) {
  const auto options = torch::dtype(torch::kDouble).device(device);
  const Tensor frequencies = torch::pow(100.0, -torch::arange(0, kHeadWidth, 2, options) / kHeadWidth);
  return torch::outer(torch::arange(tokens, options), frequencies);
}

/// Pairs of neighbours as complex numbers, as in the first Llama.
Tensor rotate_complex(const Tensor& x) {
  const Tensor phases = angles(x.size(1), x.device());
  const Tensor turns = torch::polar(torch::ones_like(phases), phases).view({1, x.size(1), 1, kHeadWidth / 2});
  const Tensor pairs = torch::view_as_complex(x.reshape({x.size(0), x.size(1), x.size(2), kHeadWidth / 2, 2}));
  return torch::view_as_real(pairs * turns).flatten(3);
}

/// Halves, as in the libraries that came after; [B, H, T, D].
Tensor rotate_half(const Tensor& x) {
  const auto halves = x.chunk(2, -1);
  const Tensor phases = angles(x.size(2), x.device());
  const Tensor both = torch::cat({phases, phases}, -1);
  return x * both.cos() + torch::cat({-halves[1], halves[0]}, -1) * both.sin();
}

Tensor repeat_kv(const Tensor& x, std::int64_t times) {
  return x.unsqueeze(2).expand({x.size(0), x.size(1), times, x.size(2), x.size(3)}).reshape({x.size(0), x.size(1) * times, x.size(2), x.size(3)});
}

enum class Kind : std::uint8_t { kComplexRope, kRepeatKv, kEnableGqa };

template <Kind kKind>
struct LlamaBlockImpl : nn::Module {
  static constexpr std::int64_t kKvHeads = kKind == Kind::kComplexRope ? kHeads : 2;
  LlamaBlockImpl()
      : norm1(register_module("norm1", RmsNorm(kWidth))), norm2(register_module("norm2", RmsNorm(kWidth))),
        q(register_module("q", unbiased(kWidth, kWidth))), k(register_module("k", unbiased(kWidth, kKvHeads * kHeadWidth))),
        v(register_module("v", unbiased(kWidth, kKvHeads * kHeadWidth))), proj(register_module("proj", unbiased(kWidth, kWidth))),
        gate(register_module("gate", unbiased(kWidth, 24))), up(register_module("up", unbiased(kWidth, 24))),
        down(register_module("down", unbiased(24, kWidth))) {}
  Tensor attend(const Tensor& x) {
    const auto heads = [&](nn::Linear& layer, std::int64_t count) {
      return layer(x).view({x.size(0), x.size(1), count, kHeadWidth});
    };
    Tensor query = heads(q, kHeads), key = heads(k, kKvHeads), value = heads(v, kKvHeads).transpose(1, 2);
    if constexpr (kKind == Kind::kComplexRope) {
      query = rotate_complex(query).transpose(1, 2);
      key = rotate_complex(key).transpose(1, 2);
    } else {
      query = rotate_half(query.transpose(1, 2));
      key = rotate_half(key.transpose(1, 2));
    }
    Tensor mixed;
    if constexpr (kKind == Kind::kRepeatKv) {
      key = repeat_kv(key, kHeads / kKvHeads);
      value = repeat_kv(value, kHeads / kKvHeads);
      Tensor scores = torch::matmul(query, key.transpose(2, 3)) / std::sqrt(static_cast<double>(kHeadWidth));
      scores = scores + torch::full({x.size(1), x.size(1)}, -1e9, x.options().requires_grad(false)).triu(1);
      mixed = torch::matmul(torch::softmax(scores, -1), value);
    } else {
      mixed = torch::scaled_dot_product_attention(query, key, value, {}, 0.0, true, c10::nullopt, kKvHeads != kHeads);
    }
    return proj(mixed.transpose(1, 2).contiguous().view({x.size(0), x.size(1), kWidth}));
  }
  Tensor forward(const Tensor& x) {
    const Tensor h = x + attend(norm1(x));
    const Tensor n = norm2(h);
    return h + down(torch::silu(gate(n)) * up(n));
  }
  RmsNorm norm1, norm2;
  nn::Linear q, k, v, proj, gate, up, down;
};

template <Kind kKind>
struct Llama : nn::Module {
  Llama() {
    tok = register_module("tok", nn::Embedding(kVocabulary, kWidth));
    register_module("blocks", blocks);
    for (int i = 0; i < 2; ++i) blocks->push_back(std::make_shared<LlamaBlockImpl<kKind>>());
    norm = register_module("norm", RmsNorm(kWidth));
    out = register_module("out", unbiased(kWidth, kVocabulary));
  }
  Tensor forward(const Tensor& x) {
    Tensor h = tok(x);
    for (const auto& block : *blocks) h = block->as<LlamaBlockImpl<kKind>>()->forward(h);
    return out(norm(h));
  }
  nn::Embedding tok{nullptr};
  nn::ModuleList blocks;
  RmsNorm norm{nullptr};
  nn::Linear out{nullptr};
};

/// Fused c_attn, learned positions, GELU of tanh, a causal mask as buffer and an output tied to the embedding.
struct Gpt2BlockImpl : nn::Module {
  Gpt2BlockImpl()
      : ln_1(register_module("ln_1", nn::LayerNorm(nn::LayerNormOptions({kWidth})))),
        c_attn(register_module("c_attn", nn::Linear(kWidth, 3 * kWidth))), c_proj(register_module("c_proj", nn::Linear(kWidth, kWidth))),
        ln_2(register_module("ln_2", nn::LayerNorm(nn::LayerNormOptions({kWidth})))),
        c_fc(register_module("c_fc", nn::Linear(kWidth, 2 * kWidth))), c_out(register_module("c_out", nn::Linear(2 * kWidth, kWidth))) {
    mask = register_buffer("mask", torch::tril(torch::ones({kTokens, kTokens})).view({1, 1, kTokens, kTokens}));
  }
  Tensor forward(Tensor x) {
    const std::int64_t samples = x.size(0), tokens = x.size(1);
    const auto qkv = c_attn(ln_1(x)).split(kWidth, 2);
    const auto heads = [&](const Tensor& part) { return part.view({samples, tokens, kHeads, kHeadWidth}).transpose(1, 2); };
    Tensor scores = torch::matmul(heads(qkv[0]), heads(qkv[1]).transpose(-2, -1)) * (1.0 / std::sqrt(static_cast<double>(kHeadWidth)));
    scores = scores.masked_fill(mask.slice(2, 0, tokens).slice(3, 0, tokens) == 0, -std::numeric_limits<double>::infinity());
    const Tensor mixed = torch::matmul(torch::softmax(scores, -1), heads(qkv[2]));
    x = x + c_proj(mixed.transpose(1, 2).contiguous().view({samples, tokens, kWidth}));
    return x + c_out(torch::gelu(c_fc(ln_2(x)), "tanh"));
  }
  nn::LayerNorm ln_1;
  nn::Linear c_attn, c_proj;
  nn::LayerNorm ln_2;
  nn::Linear c_fc, c_out;
  Tensor mask;
};

struct Gpt2 : nn::Module {
  Gpt2() {
    wte = register_module("wte", nn::Embedding(kVocabulary, kWidth));
    wpe = register_module("wpe", nn::Embedding(kTokens, kWidth));
    register_module("h", h);
    for (int i = 0; i < 2; ++i) h->push_back(std::make_shared<Gpt2BlockImpl>());
    ln_f = register_module("ln_f", nn::LayerNorm(nn::LayerNormOptions({kWidth})));
  }
  Tensor forward(const Tensor& ids) {
    Tensor x = wte(ids) + wpe(torch::arange(ids.size(1), torch::dtype(torch::kLong).device(ids.device())));
    for (const auto& block : *h) x = block->as<Gpt2BlockImpl>()->forward(x);
    return torch::linear(ln_f(x), wte->weight);
  }
  nn::Embedding wte{nullptr}, wpe{nullptr};
  nn::ModuleList h;
  nn::LayerNorm ln_f{nullptr};
};

/// One product for queries, keys and values of grouped heads, one for gate and up; parallel residuals.
struct PhiBlockImpl : nn::Module {
  static constexpr std::int64_t kKvHeads = 2;
  PhiBlockImpl()
      : norm(register_module("norm", RmsNorm(kWidth))),
        qkv_proj(register_module("qkv_proj", unbiased(kWidth, (kHeads + 2 * kKvHeads) * kHeadWidth))),
        o_proj(register_module("o_proj", unbiased(kWidth, kWidth))), gate_up_proj(register_module("gate_up_proj", unbiased(kWidth, 48))),
        down_proj(register_module("down_proj", unbiased(24, kWidth))) {}
  Tensor forward(const Tensor& x) {
    const std::int64_t samples = x.size(0), tokens = x.size(1);
    const Tensor n = norm(x);
    const Tensor qkv = qkv_proj(n);
    const auto heads = [&](std::int64_t from, std::int64_t count) {
      return qkv.slice(2, from * kHeadWidth, (from + count) * kHeadWidth).view({samples, tokens, count, kHeadWidth}).transpose(1, 2);
    };
    const Tensor query = rotate_half(heads(0, kHeads)), key = rotate_half(heads(kHeads, kKvHeads));
    const Tensor value = heads(kHeads + kKvHeads, kKvHeads);
    const auto repeated = [](const Tensor& part) { return part.repeat_interleave(kHeads / kKvHeads, 1); };
    const Tensor mixed = torch::scaled_dot_product_attention(query, repeated(key), repeated(value), {}, 0.0, true);
    const auto gate_up = gate_up_proj(n).chunk(2, -1);
    return x + o_proj(mixed.transpose(1, 2).reshape({samples, tokens, kWidth})) + down_proj(gate_up[1] * torch::silu(gate_up[0]));
  }
  RmsNorm norm;
  nn::Linear qkv_proj, o_proj, gate_up_proj, down_proj;
};
TORCH_MODULE(PhiBlock);

struct Phi : nn::Module {
  Phi()
      : embed(register_module("embed", nn::Embedding(kVocabulary, kWidth))), first(register_module("first", PhiBlock())),
        second(register_module("second", PhiBlock())), head(register_module("head", nn::Linear(kWidth, kVocabulary))) {}
  Tensor forward(const Tensor& x) { return head(second(first(embed(x)))); }
  nn::Embedding embed;
  PhiBlock first, second;
  nn::Linear head;
};

Plan plan_for_llama(const std::vector<std::string>& parameters) { return plan_for_transformer(parameters); }

}  // namespace

std::vector<Row> decoder_rows() {
  const Input text = ids({kSamples, kTokens}, kVocabulary);
  return {
      row<Llama<Kind::kComplexRope>>("Llama_complex_rope", {text, text}, likelihood, {.plan = plan_for_llama, .stages = 4}),
      row<Llama<Kind::kRepeatKv>>("Llama_repeat_kv", {text, text}, likelihood, {.plan = plan_for_llama, .stages = 4}),
      row<Llama<Kind::kEnableGqa>>("Llama_enable_gqa", {text, text}, likelihood, {.plan = plan_for_llama, .stages = 4}),
      row<Gpt2>("Gpt2", {text, text}, likelihood),
      row<Phi>("Phi_fused", {text, text}, likelihood, {.stages = 4}),
  };
}

}  // namespace tessera::battery
