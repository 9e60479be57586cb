// SPDX-License-Identifier: Apache-2.0
// Recurrent modules, attention and transformers: [sequence, batch, features] unless they are told otherwise.
#include "module/every_module.h"

namespace tessera::test {

namespace nn = torch::nn;
using at::Tensor;

namespace {

constexpr std::int64_t kBatchSecond = 1;

/// RNN and GRU: the output and the last state.
template <class Holder, class Options>
ModuleCase recurrent(const std::string& name, const Options& options, std::int64_t batch_dim) {
  return module_case(
      name, {{{4, 4, 6}, 0, batch_dim}}, [options] { return Holder(options); },
      [](Holder& module, const Tensors& x) {
        const auto [output, state] = module->forward(x[0]);
        return Tensors{output, state};
      });
}

ModuleCase lstm(const std::string& name, const nn::LSTMOptions& options, std::int64_t batch_dim) {
  return module_case(
      name, {{{4, 4, 6}, 0, batch_dim}}, [options] { return nn::LSTM(options); },
      [](nn::LSTM& module, const Tensors& x) {
        const auto [output, states] = module->forward(x[0]);
        return Tensors{output, std::get<0>(states), std::get<1>(states)};
      });
}

/// Lengths [N] of sequences that are packed, longest first.
ModuleCase packed_lstm() {
  return module_case(
      "LSTM_packed", {{{4, 4, 6}, 0, kBatchSecond}}, [] { return nn::LSTM(nn::LSTMOptions(6, 4)); },
      [](nn::LSTM& module, const Tensors& x) {
        const auto packed = nn::utils::rnn::pack_padded_sequence(x[0], torch::tensor({4, 3, 3, 1}));
        const auto [output, states] = module->forward_with_packed_input(packed);
        return Tensors{std::get<0>(nn::utils::rnn::pad_packed_sequence(output)), std::get<0>(states)};
      });
}

template <class Holder, class Options>
ModuleCase cell(const std::string& name, const Options& options) {
  return module_case(
      name, {{{4, 6}}, {{4, 4}}}, [options] { return Holder(options); },
      [](Holder& module, const Tensors& x) {
        return module->forward(module->forward(x[0], x[1]).repeat({1, 2}).narrow(1, 0, 6), x[1]);
      });
}

ModuleCase lstm_cell() {
  return module_case(
      "LSTMCell", {{{4, 6}}, {{4, 4}}}, [] { return nn::LSTMCell(nn::LSTMCellOptions(6, 4)); },
      [](nn::LSTMCell& module, const Tensors& x) {
        const auto first = module->forward(x[0], std::make_tuple(x[1], x[1] * 0.5));
        const auto second = module->forward(x[0] * 2, first);
        return Tensors{std::get<0>(second), std::get<1>(second)};
      });
}

ModuleCase attention(const std::string& name, const nn::MultiheadAttentionOptions& options, const Tensor& mask) {
  return module_case(
      name, {{{4, 4, 8}, 0, kBatchSecond}, {{6, 4, 8}, 0, kBatchSecond}},
      [options] { return nn::MultiheadAttention(options); },
      [mask](nn::MultiheadAttention& module, const Tensors& x) {
        const auto [output, weights] = module->forward(x[0], x[1], x[1] * 0.5, {}, true, mask.defined() ? mask.to(x[0].device()) : mask);
        return Tensors{output, weights};
      });
}

nn::TransformerEncoderLayerOptions encoder_options(double dropout) {
  return nn::TransformerEncoderLayerOptions(8, 2).dim_feedforward(12).dropout(dropout);
}
nn::TransformerDecoderLayerOptions decoder_options(double dropout) {
  return nn::TransformerDecoderLayerOptions(8, 2).dim_feedforward(12).dropout(dropout);
}
nn::TransformerOptions transformer_options(double dropout) {
  return nn::TransformerOptions(8, 2).num_encoder_layers(1).num_decoder_layers(2).dim_feedforward(12).dropout(dropout);
}

InputSpec source() { return {{6, 4, 8}, 0, kBatchSecond}; }
InputSpec target() { return {{4, 4, 8}, 0, kBatchSecond}; }

std::vector<ModuleCase> transformers(const std::string& suffix, double dropout) {
  return {
      module_case(
          "TransformerEncoderLayer" + suffix, {source()},
          [=] { return nn::TransformerEncoderLayer(encoder_options(dropout)); },
          [](nn::TransformerEncoderLayer& module, const Tensors& x) { return module(x[0]); }),
      module_case(
          "TransformerDecoderLayer" + suffix, {target(), source()},
          [=] { return nn::TransformerDecoderLayer(decoder_options(dropout)); },
          [](nn::TransformerDecoderLayer& module, const Tensors& x) { return module(x[0], x[1]); }),
      module_case(
          "TransformerEncoder" + suffix, {source()},
          [=] { return nn::TransformerEncoder(nn::TransformerEncoderOptions(encoder_options(dropout), 2)); },
          [](nn::TransformerEncoder& module, const Tensors& x) { return module(x[0]); }),
      module_case(
          "TransformerDecoder" + suffix, {target(), source()},
          [=] { return nn::TransformerDecoder(nn::TransformerDecoderOptions(decoder_options(dropout), 2)); },
          [](nn::TransformerDecoder& module, const Tensors& x) { return module(x[0], x[1]); }),
      module_case(
          "Transformer" + suffix, {source(), target()}, [=] { return nn::Transformer(transformer_options(dropout)); },
          [](nn::Transformer& module, const Tensors& x) {
            return module->forward(x[0], x[1], {},
                                   nn::TransformerImpl::generate_square_subsequent_mask(4).to(x[0].device(), torch::kDouble));
          }),
  };
}

}  // namespace

std::vector<ModuleCase> sequence_cases() {
  std::vector<ModuleCase> cases{
      recurrent<nn::RNN>("RNN", nn::RNNOptions(6, 4), kBatchSecond),
      recurrent<nn::RNN>("RNN_relu", nn::RNNOptions(6, 4).nonlinearity(torch::kReLU).num_layers(2), kBatchSecond),
      recurrent<nn::GRU>("GRU", nn::GRUOptions(6, 4), kBatchSecond),
      recurrent<nn::GRU>("GRU_bidirectional", nn::GRUOptions(6, 4).bidirectional(true).batch_first(true), 0),
      lstm("LSTM", nn::LSTMOptions(6, 4), kBatchSecond),
      lstm("LSTM_bidirectional", nn::LSTMOptions(6, 4).bidirectional(true).num_layers(2).batch_first(true), 0),
      lstm("LSTM_projected", nn::LSTMOptions(6, 4).proj_size(2), kBatchSecond),
      drawing(lstm("LSTM_dropout", nn::LSTMOptions(6, 4).num_layers(2).dropout(0.3), kBatchSecond)),
      packed_lstm(),
      cell<nn::RNNCell>("RNNCell", nn::RNNCellOptions(6, 4)),
      cell<nn::GRUCell>("GRUCell", nn::GRUCellOptions(6, 4)),
      lstm_cell(),
      attention("MultiheadAttention", nn::MultiheadAttentionOptions(8, 2), {}),
      attention("MultiheadAttention_masked", nn::MultiheadAttentionOptions(8, 2),
                torch::arange(24, torch::kDouble).view({4, 6}).sin()),
      attention("MultiheadAttention_extended",
                nn::MultiheadAttentionOptions(8, 2).add_bias_kv(true).add_zero_attn(true), {}),
      drawing(attention("MultiheadAttention_dropout", nn::MultiheadAttentionOptions(8, 2).dropout(0.2), {})),
  };
  for (ModuleCase& test : transformers("_sure", 0)) cases.push_back(std::move(test));
  // As they come: a tenth is dropped.
  for (ModuleCase& test : transformers("", 0.1)) cases.push_back(drawing(std::move(test)));
  return cases;
}

}  // namespace tessera::test
