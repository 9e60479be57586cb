// SPDX-License-Identifier: Apache-2.0
// Language models that read a whole sequence: encoders, and encoders with decoders.
#include "battery/battery.h"

namespace tessera::battery {
namespace {

namespace nn = torch::nn;

/// BERT: padding is 0, its keys are masked, and the loss leaves it out.
struct Bert : nn::Module {
  static constexpr std::int64_t kWidth = 16, kHeads = 2;
  Bert()
      : words(register_module("words", nn::Embedding(nn::EmbeddingOptions(20, kWidth).padding_idx(0)))),
        positions(register_module("positions", nn::Embedding(8, kWidth))), types(register_module("types", nn::Embedding(2, kWidth))),
        norm(register_module("norm", nn::LayerNorm(nn::LayerNormOptions({kWidth})))),
        query(register_module("query", nn::Linear(kWidth, kWidth))), key(register_module("key", nn::Linear(kWidth, kWidth))),
        value(register_module("value", nn::Linear(kWidth, kWidth))), dense(register_module("dense", nn::Linear(kWidth, kWidth))),
        norm1(register_module("norm1", nn::LayerNorm(nn::LayerNormOptions({kWidth})))),
        intermediate(register_module("intermediate", nn::Linear(kWidth, 32))), output(register_module("output", nn::Linear(32, kWidth))),
        norm2(register_module("norm2", nn::LayerNorm(nn::LayerNormOptions({kWidth})))),
        decoder(register_module("decoder", nn::Linear(kWidth, 20))) {}
  Tensor forward(const Tensor& ids, const Tensor& segments) {
    const std::int64_t samples = ids.size(0), tokens = ids.size(1);
    const Tensor places = torch::arange(tokens, ids.options()).unsqueeze(0).expand_as(ids);
    Tensor x = norm(words(ids) + positions(places) + types(segments));
    const Tensor mask = (1.0 - ids.ne(0).to(torch::kDouble).unsqueeze(1).unsqueeze(2)) * -1e4;
    const auto heads = [&](nn::Linear& layer) { return layer(x).view({samples, tokens, kHeads, kWidth / kHeads}).permute({0, 2, 1, 3}); };
    const Tensor scores = torch::matmul(heads(query), heads(key).transpose(-1, -2)) / std::sqrt(8.0) + mask;
    const Tensor mixed = torch::matmul(torch::softmax(scores, -1), heads(value)).permute({0, 2, 1, 3}).contiguous();
    x = norm1(x + dense(mixed.view({samples, tokens, kWidth})));
    x = norm2(x + output(torch::gelu(intermediate(x))));
    return decoder(x);
  }
  nn::Embedding words, positions, types;
  nn::LayerNorm norm;
  nn::Linear query, key, value, dense;
  nn::LayerNorm norm1;
  nn::Linear intermediate, output;
  nn::LayerNorm norm2;
  nn::Linear decoder;
};

/// Ids [B, T] whose rows end in padding.
Input padded_ids(std::int64_t tokens, std::int64_t count) {
  return [tokens, count](at::Generator& generator) {
    const Tensor words = torch::randint(1, count, {kSamples, tokens}, generator, torch::kLong);
    const Tensor lengths = torch::tensor({tokens, tokens - 2, tokens - 1, tokens - 3, tokens}).unsqueeze(1);
    return words.masked_fill(torch::arange(tokens) >= lengths, 0);
  };
}

Tensor likelihood_without_padding(const Tensor& logits, const Tensor& target) {
  return nn::functional::cross_entropy(logits.transpose(1, 2), target, nn::functional::CrossEntropyFuncOptions().ignore_index(0));
}

/// T5: biases by distance that all layers share, no scaling, cross attention.
struct T5AttentionImpl : nn::Module {
  static constexpr std::int64_t kWidth = 16, kHeads = 4;
  T5AttentionImpl() {
    for (auto& layer : {&q, &k, &v, &o}) *layer = nn::Linear(nn::LinearOptions(kWidth, kWidth).bias(false));
    register_module("q", q), register_module("k", k), register_module("v", v), register_module("o", o);
  }
  Tensor forward(const Tensor& x, const Tensor& memory, const Tensor& bias) {
    const auto heads = [](nn::Linear& layer, const Tensor& in) {
      return layer(in).view({in.size(0), -1, kHeads, kWidth / kHeads}).transpose(1, 2);
    };
    Tensor scores = torch::einsum("bhqd,bhkd->bhqk", {heads(q, x), heads(k, memory)});
    if (bias.defined()) scores = scores + bias;
    const Tensor mixed = torch::matmul(torch::softmax(scores, -1), heads(v, memory));
    return o(mixed.transpose(1, 2).contiguous().view({x.size(0), -1, kWidth}));
  }
  nn::Linear q{nullptr}, k{nullptr}, v{nullptr}, o{nullptr};
};
TORCH_MODULE(T5Attention);

struct T5 : nn::Module {
  static constexpr std::int64_t kWidth = 16, kHeads = 4;
  T5()
      : shared(register_module("shared", nn::Embedding(20, kWidth))), distances(register_module("distances", nn::Embedding(8, kHeads))),
        encode(register_module("encode", T5Attention())), wi(register_module("wi", nn::Linear(kWidth, 24))),
        wo(register_module("wo", nn::Linear(24, kWidth))), decode(register_module("decode", T5Attention())),
        cross(register_module("cross", T5Attention())), norm(register_module("norm", nn::LayerNorm(nn::LayerNormOptions({kWidth})))) {}
  Tensor bias(std::int64_t tokens, c10::Device device) {
    const Tensor places = torch::arange(tokens, torch::dtype(torch::kLong).device(device));
    const Tensor buckets = (places.unsqueeze(0) - places.unsqueeze(1)).clamp(-4, 3) + 4;
    return distances(buckets).permute({2, 0, 1}).unsqueeze(0);
  }
  Tensor forward(const Tensor& source, const Tensor& target) {
    Tensor memory = shared(source);
    memory = memory + encode(memory, memory, bias(source.size(1), source.device()));
    memory = memory + wo(torch::relu(wi(memory)));
    Tensor x = shared(target);
    const Tensor causal = torch::ones({target.size(1), target.size(1)}, torch::dtype(torch::kBool).device(target.device())).triu(1);
    x = x + decode(x, x, bias(target.size(1), target.device()).masked_fill(causal, -1e9));
    x = x + cross(x, memory, Tensor());
    return torch::matmul(norm(x) * std::pow(kWidth, -0.5), shared->weight.t());
  }
  nn::Embedding shared, distances;
  T5Attention encode;
  nn::Linear wi, wo;
  T5Attention decode, cross;
  nn::LayerNorm norm;
};

/// ALiBi: slopes per head times the distance.
struct Alibi : nn::Module {
  static constexpr std::int64_t kWidth = 16, kHeads = 4;
  Alibi()
      : embed(register_module("embed", nn::Embedding(20, kWidth))), qkv(register_module("qkv", nn::Linear(kWidth, 3 * kWidth))),
        proj(register_module("proj", nn::Linear(kWidth, kWidth))), head(register_module("head", nn::Linear(kWidth, 20))) {
    slopes = register_buffer("slopes", torch::pow(2.0, -torch::arange(1, kHeads + 1).to(torch::kDouble) * 2).view({kHeads, 1, 1}));
  }
  Tensor forward(const Tensor& ids) {
    const std::int64_t samples = ids.size(0), tokens = ids.size(1);
    const Tensor x = embed(ids);
    const auto parts = qkv(x).view({samples, tokens, kHeads, 3 * kWidth / kHeads}).permute({0, 2, 1, 3}).chunk(3, -1);
    const Tensor places = torch::arange(tokens, torch::dtype(torch::kDouble).device(ids.device()));
    const Tensor distance = places.unsqueeze(0) - places.unsqueeze(1);
    const Tensor bias = (slopes * distance).masked_fill(distance > 0, -std::numeric_limits<double>::infinity());
    const Tensor mixed = torch::scaled_dot_product_attention(parts[0], parts[1], parts[2], bias.unsqueeze(0));
    return head(x + proj(mixed.transpose(1, 2).reshape({samples, tokens, kWidth})));
  }
  nn::Embedding embed;
  nn::Linear qkv, proj, head;
  Tensor slopes;
};

/// Linear attention: elu(x) + 1 as features, sums over the past by cumsum.
struct LinearAttention : nn::Module {
  static constexpr std::int64_t kWidth = 16, kHeads = 2;
  LinearAttention()
      : embed(register_module("embed", nn::Embedding(20, kWidth))), q(register_module("q", nn::Linear(kWidth, kWidth))),
        k(register_module("k", nn::Linear(kWidth, kWidth))), v(register_module("v", nn::Linear(kWidth, kWidth))),
        out(register_module("out", nn::Linear(kWidth, 20))) {}
  Tensor forward(const Tensor& ids) {
    const Tensor x = embed(ids);
    const auto heads = [&](nn::Linear& layer) { return layer(x).view({x.size(0), x.size(1), kHeads, kWidth / kHeads}); };
    const Tensor query = torch::elu(heads(q)) + 1, key = torch::elu(heads(k)) + 1;
    const Tensor memory = torch::einsum("bthd,bthe->bthde", {key, heads(v)}).cumsum(1);
    const Tensor norm = torch::einsum("bthd,bthd->bth", {query, key.cumsum(1)});
    const Tensor mixed = torch::einsum("bthd,bthde->bthe", {query, memory}) / (norm.unsqueeze(-1) + 1e-6);
    return out(x + mixed.flatten(2));
  }
  nn::Embedding embed;
  nn::Linear q, k, v, out;
};

/// A dense mixture: every expert sees every token, and the two best count.
struct Mixtral : nn::Module {
  static constexpr std::int64_t kWidth = 12, kExperts = 4;
  Mixtral()
      : embed(register_module("embed", nn::Embedding(20, kWidth))),
        gate(register_module("gate", nn::Linear(nn::LinearOptions(kWidth, kExperts).bias(false)))),
        head(register_module("head", nn::Linear(kWidth, 20))) {
    w1 = register_parameter("w1", torch::zeros({kExperts, kWidth, 16}));
    w2 = register_parameter("w2", torch::zeros({kExperts, 16, kWidth}));
  }
  Tensor forward(const Tensor& ids) {
    const Tensor x = embed(ids);
    const Tensor flat = x.view({-1, kWidth});
    const auto [best, chosen] = torch::softmax(gate(flat), -1).topk(2, -1);
    const Tensor shares = torch::zeros({flat.size(0), kExperts}, flat.options().requires_grad(false));
    const Tensor weights = shares.scatter(1, chosen, best / best.sum(-1, true));
    const Tensor hidden = torch::silu(torch::einsum("nd,edh->neh", {flat, w1}));
    const Tensor experts = torch::einsum("neh,ehd->ned", {hidden, w2});
    return head(x + (experts * weights.unsqueeze(-1)).sum(1).view_as(x));
  }
  nn::Embedding embed;
  nn::Linear gate, head;
  Tensor w1, w2;
};

/// The Transformer of LibTorch, sequence first inside.
struct StockTransformer : nn::Module {
  static constexpr std::int64_t kWidth = 16;
  StockTransformer()
      : embed(register_module("embed", nn::Embedding(20, kWidth))),
        body(register_module("body", nn::Transformer(nn::TransformerOptions(kWidth, 4, 1, 1).dim_feedforward(24).dropout(0.0)))),
        head(register_module("head", nn::Linear(kWidth, 20))) {}
  Tensor forward(const Tensor& source, const Tensor& target) {
    const Tensor mask = nn::TransformerImpl::generate_square_subsequent_mask(target.size(1)).to(target.device(), torch::kDouble);
    const Tensor out = body(embed(source).transpose(0, 1), embed(target).transpose(0, 1), Tensor(), mask, Tensor(), source.eq(0),
                            Tensor(), source.eq(0));
    return head(out).transpose(0, 1);
  }
  nn::Embedding embed;
  nn::Transformer body;
  nn::Linear head;
};

/// TransformerEncoder with sinusoidal positions and a class token, for classification.
struct EncoderClassifier : nn::Module {
  static constexpr std::int64_t kWidth = 16;
  EncoderClassifier()
      : embed(register_module("embed", nn::Embedding(20, kWidth))),
        encoder(register_module("encoder", nn::TransformerEncoder(nn::TransformerEncoderOptions(
                                               nn::TransformerEncoderLayerOptions(kWidth, 2).dim_feedforward(20).dropout(0.0).activation(torch::kGELU), 2)))),
        head(register_module("head", nn::Linear(kWidth, 3))) {
    const Tensor angles = torch::outer(torch::arange(12, torch::kDouble), torch::pow(50.0, -torch::arange(0, kWidth, 2).to(torch::kDouble) / kWidth));
    positions = register_buffer("positions", torch::stack({angles.sin(), angles.cos()}, 2).flatten(1));
    token = register_parameter("token", torch::zeros({1, 1, kWidth}));
  }
  Tensor forward(const Tensor& ids) {
    Tensor x = torch::cat({token.expand({ids.size(0), 1, kWidth}), embed(ids) * std::sqrt(16.0)}, 1);
    x = x + positions.slice(0, 0, x.size(1));
    const Tensor padding = torch::cat({torch::zeros({ids.size(0), 1}, ids.options().dtype(torch::kBool)), ids.eq(0)}, 1);
    return head(encoder(x.transpose(0, 1), Tensor(), padding).select(0, 0));
  }
  nn::Embedding embed;
  nn::TransformerEncoder encoder;
  nn::Linear head;
  Tensor positions, token;
};

}  // namespace

std::vector<Row> encoder_rows() {
  const Input text = ids({kSamples, 6}, 20);
  return {
      row<T5>("T5", {text, text, text}, likelihood),
      row<Alibi>("Alibi", {text, text}, likelihood, {.stages = 4}),
      row<LinearAttention>("LinearAttention", {text, text}, likelihood),
      row<Mixtral>("Mixtral_dense", {text, text}, likelihood),
      row<StockTransformer>("Transformer_stock", {padded_ids(6, 20), text, text}, likelihood, {.stages = 2}),
      row<EncoderClassifier>("TransformerEncoder_stock", {padded_ids(6, 20), ids({kSamples}, 3)}, likelihood),
      row<Bert>("Bert_padded", {padded_ids(7, 20), ids({kSamples, 7}, 2), padded_ids(7, 20)}, likelihood_without_padding, {.stages = 4}),
  };
}

}  // namespace tessera::battery
