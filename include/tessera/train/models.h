// SPDX-License-Identifier: Apache-2.0
// The built-in models as ordinary torch::nn modules, with no word about ranks.
//
// Each one is a torch::nn::Sequential of named blocks, so that a pipeline can cut it between any two, and its parameter
// names are those that the same model has in Python. Parameters, in the order of named_parameters():
//
//   mlp   layer{i}.linear.{weight,bias}                                   ReLU between layers
//   cnn   stem.conv.weight, stem.norm.{weight,bias},
//         block{i}.conv1.weight, .norm1.{weight,bias}, .conv2.weight, .norm2.{weight,bias},
//             [.skip.weight where the shape changes],
//         head.out.{weight,bias}                                          GroupNorm(4), never BatchNorm
//   resnet  stem.layer.conv.weight, stem.layer.norm.{weight,bias},
//         block{i}.layer1.conv.weight, .layer1.norm.{weight,bias}, .layer2..., [.skip... where the shape changes],
//         head.out.{weight,bias}                                          BatchNorm over the whole batch
//   gpt   embed.tok.weight [V,D], embed.pos.weight [T,D],
//         block{i}.ln1.{weight,bias}, .qkv.{weight,bias} [3D,D], .proj.{weight,bias} [D,D],
//             .ln2.{weight,bias}, .up.{weight,bias} [F,D], .down.{weight,bias} [D,F],
//         head.norm.{weight,bias}, head.out.weight [V,D]                  the last is absent when tied to embed.tok
//
// Shapes: B samples, T tokens, D width, H heads, K = D / H, F feed-forward width, V vocabulary, C channels.
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <vector>

namespace tessera::train {

struct MlpOptions {
  /// Widths from input to output; at least two.
  std::vector<std::int64_t> sizes;
  /// Probability with which an activation between two layers is dropped in training.
  double dropout = 0.0;
};

struct CnnOptions {
  /// Width of the first half of the blocks; the second half has twice as many. A multiple of 4 (GroupNorm's groups).
  std::int64_t channels = 32;
  /// Residual blocks: half of them at full resolution, half at half resolution.
  std::int64_t blocks = 4;
  std::int64_t classes = 10;
};

struct ResnetOptions {
  /// Width of the first of three stages; each has twice the width and half the resolution of the one before.
  std::int64_t channels = 32;
  /// Residual blocks, at least 3, spread evenly over the stages.
  std::int64_t blocks = 4;
  std::int64_t classes = 10;
};

struct GptOptions {
  std::int64_t layers = 4;
  std::int64_t hidden = 160;
  /// Divides `hidden`.
  std::int64_t heads = 4;
  /// Feed-forward width; 0 stands for 4 * hidden.
  std::int64_t ffn = 0;
  std::int64_t vocab = 256;
  /// Longest sequence: rows of the position embedding.
  std::int64_t seq_len = 128;
  /// The output projection uses the token embedding's parameter and registers none of its own.
  bool tie = false;
  /// Probability with which embeddings, attention probabilities and what enters the residual stream are dropped in
  /// training.
  double dropout = 0.0;
};

/// Shapes  [B, sizes.front()] -> logits [B, sizes.back()]
[[nodiscard]] torch::nn::Sequential build_mlp(const MlpOptions& options);

/// Residual network. Shapes  [B, 1, side, side] -> logits [B, classes], for any side
[[nodiscard]] torch::nn::Sequential build_cnn(const CnnOptions& options);

/// Residual network with batch norm. Shapes  [B, 1, side, side] -> logits [B, classes], for any side
[[nodiscard]] torch::nn::Sequential build_resnet(const ResnetOptions& options);

/// GPT-2: pre-norm blocks, causal attention, tanh GELU, learned positions.
///
/// Shapes  token ids int64 [B, T], T <= seq_len -> logits [B, T, V]
/// The rows of `qkv` are ordered (head, q|k|v, K), so that a contiguous share of the rows is whole heads.
[[nodiscard]] torch::nn::Sequential build_gpt(const GptOptions& options);

}  // namespace tessera::train
