// SPDX-License-Identifier: Apache-2.0
// Losses and distances: the first input comes out of a layer, the others are data.
#include "module/every_module.h"

namespace tessera::test {

namespace nn = torch::nn;
using at::Tensor;

namespace {

InputSpec scores() { return {{4, 6}}; }
InputSpec classes() { return {{4}, 6}; }
/// +1 or -1.
Tensor signs(const Tensor& numbers) { return numbers.sign(); }

template <class Holder>
ModuleCase signed_targets(const std::string& name, const InputSpec& target) {
  return module_case(
      name, {scores(), target}, [] { return Holder(); },
      [](Holder& module, const Tensors& x) { return module(x[0], signs(x[1])); });
}

ModuleCase ctc(const std::string& name, const nn::CTCLossOptions& options) {
  constexpr std::int64_t kBatchSecond = 1;
  return module_case(
      name, {{{6, 4, 8}, 0, kBatchSecond}, {{4, 2}, 7}}, [options] { return nn::CTCLoss(options); },
      [](nn::CTCLoss& module, const Tensors& x) {
        const Tensor lengths = torch::tensor({6, 5, 6, 4});
        const Tensor target_lengths = torch::tensor({2, 2, 1, 2});
        return module(torch::log_softmax(x[0], 2), x[1] + 1, lengths, target_lengths);
      });
}

Tensor cosine_distance(const Tensor& a, const Tensor& b) { return 1 - torch::cosine_similarity(a, b); }

ModuleCase adaptive_softmax() {
  return module_case(
      "AdaptiveLogSoftmaxWithLoss", {{{8, 6}}, {{8}, 10}},
      [] {
        return nn::AdaptiveLogSoftmaxWithLoss(nn::AdaptiveLogSoftmaxWithLossOptions(6, 10, {2, 6}).div_value(2));
      },
      [](nn::AdaptiveLogSoftmaxWithLoss& module, const Tensors& x) { return module(x[0], x[1]).output; });
}

}  // namespace

std::vector<ModuleCase> loss_cases() {
  return {
      binary<nn::L1Loss>("L1Loss", scores(), scores()),
      module_case(
          "KLDivLoss", {scores(), scores()}, [] { return nn::KLDivLoss(); },
          [](nn::KLDivLoss& module, const Tensors& x) {
            return module(torch::log_softmax(x[0], 1), torch::softmax(x[1], 1));
          }),
      module_case(
          "KLDivLoss_batchmean", {scores(), scores()},
          [] { return nn::KLDivLoss(nn::KLDivLossOptions().reduction(torch::kBatchMean)); },
          [](nn::KLDivLoss& module, const Tensors& x) {
            return module(torch::log_softmax(x[0], 1), torch::softmax(x[1], 1));
          }),
      binary<nn::MSELoss>("MSELoss", scores(), scores()),
      binary<nn::SmoothL1Loss>("SmoothL1Loss", scores(), scores()),
      binary<nn::HuberLoss>("HuberLoss", scores(), scores()),
      module_case(
          "BCELoss", {scores(), scores()}, [] { return nn::BCELoss(); },
          [](nn::BCELoss& module, const Tensors& x) { return module(torch::sigmoid(x[0]), torch::sigmoid(x[1])); }),
      module_case(
          "BCEWithLogitsLoss", {scores(), scores()}, [] { return nn::BCEWithLogitsLoss(); },
          [](nn::BCEWithLogitsLoss& module, const Tensors& x) { return module(x[0], torch::sigmoid(x[1])); }),
      signed_targets<nn::HingeEmbeddingLoss>("HingeEmbeddingLoss", scores()),
      signed_targets<nn::SoftMarginLoss>("SoftMarginLoss", scores()),
      module_case(
          "CosineEmbeddingLoss", {scores(), scores(), {{4}}}, [] { return nn::CosineEmbeddingLoss(); },
          [](nn::CosineEmbeddingLoss& module, const Tensors& x) { return module(x[0], x[1], signs(x[2])); }),
      module_case(
          "MarginRankingLoss", {scores(), scores(), scores()}, [] { return nn::MarginRankingLoss(); },
          [](nn::MarginRankingLoss& module, const Tensors& x) { return module(x[0], x[1], signs(x[2])); }),
      module_case(
          "TripletMarginLoss", {scores(), scores(), scores()}, [] { return nn::TripletMarginLoss(); },
          [](nn::TripletMarginLoss& module, const Tensors& x) { return module(x[0], x[1], x[2]); }),
      module_case(
          "TripletMarginWithDistanceLoss", {scores(), scores(), scores()},
          [] {
            return nn::TripletMarginWithDistanceLoss(
                nn::TripletMarginWithDistanceLossOptions().distance_function(cosine_distance));
          },
          [](nn::TripletMarginWithDistanceLoss& module, const Tensors& x) { return module(x[0], x[1], x[2]); }),
      binary<nn::MultiMarginLoss>("MultiMarginLoss", scores(), classes()),
      module_case(
          "MultiLabelMarginLoss", {scores(), {{4, 6}, 6}}, [] { return nn::MultiLabelMarginLoss(); },
          [](nn::MultiLabelMarginLoss& module, const Tensors& x) {
            // Two labels per sample; -1 ends the list.
            return module(x[0], x[1].masked_fill(torch::arange(6).ge(2).to(x[1].device()), -1));
          }),
      module_case(
          "MultiLabelSoftMarginLoss", {scores(), scores()}, [] { return nn::MultiLabelSoftMarginLoss(); },
          [](nn::MultiLabelSoftMarginLoss& module, const Tensors& x) { return module(x[0], x[1].gt(0).to(x[1])); }),
      ctc("CTCLoss", {}),
      ctc("CTCLoss_sum", nn::CTCLossOptions().reduction(torch::kSum).zero_infinity(true)),
      binary<nn::PoissonNLLLoss>("PoissonNLLLoss", scores(), scores()),
      module_case(
          "NLLLoss", {scores(), classes()}, [] { return nn::NLLLoss(); },
          [](nn::NLLLoss& module, const Tensors& x) { return module(torch::log_softmax(x[0], 1), x[1]); }),
      binary<nn::CrossEntropyLoss>("CrossEntropyLoss", scores(), classes()),
      binary<nn::CrossEntropyLoss>("CrossEntropyLoss_smoothed", scores(), classes(),
                                   nn::CrossEntropyLossOptions().label_smoothing(0.1).ignore_index(2)),
      binary<nn::CosineSimilarity>("CosineSimilarity", scores(), scores()),
      binary<nn::PairwiseDistance>("PairwiseDistance", scores(), scores()),
      // Looks for the rows of each cluster: how many there are is known of the whole only.
      gathering(adaptive_softmax(), {"aten::nonzero"}),
  };
}

}  // namespace tessera::test
