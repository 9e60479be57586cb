// SPDX-License-Identifier: Apache-2.0
// Modules with fused projections train on shards in groups and units as on one device, with Megatron's messages.
#include <gtest/gtest.h>

#include <torch/torch.h>

#include "support/ranks.h"
#include "tessera/module/build.h"
#include "tessera/module/distribute.h"
#include "tessera/module/plan.h"
#include "tessera/tensor/mesh_tensor.h"
#include "tessera/tensor/random.h"

namespace tessera {
namespace {

using at::Tensor;

constexpr std::int64_t kSequences = 2;
constexpr std::int64_t kTokens = 3;
constexpr std::int64_t kHeads = 6;
constexpr std::int64_t kHeadDim = 2;
constexpr std::int64_t kWidth = kHeads * kHeadDim;
constexpr std::int64_t kFeedForward = 18;

/// As Phi-3 and GPT-2 have it: q, k and v in one product, gate and up in another.
struct FusedBlockImpl : torch::nn::Module {
  FusedBlockImpl()
      : qkv_proj(register_module("qkv_proj", torch::nn::Linear(kWidth, 3 * kWidth))),
        o_proj(register_module("o_proj", torch::nn::Linear(kWidth, kWidth))),
        gate_up_proj(register_module("gate_up_proj", torch::nn::Linear(kWidth, 2 * kFeedForward))),
        down_proj(register_module("down_proj", torch::nn::Linear(kFeedForward, kWidth))),
        norm1(register_module("norm1", torch::nn::LayerNorm(torch::nn::LayerNormOptions({kWidth})))),
        norm2(register_module("norm2", torch::nn::LayerNorm(torch::nn::LayerNormOptions({kWidth})))) {
    to(torch::kDouble);
  }
  Tensor forward(Tensor x) {
    const auto heads = [](const Tensor& y) { return y.view({y.size(0), y.size(1), -1, kHeadDim}).transpose(1, 2); };
    const auto parts = qkv_proj(norm1(x)).chunk(3, -1);
    const Tensor attended = torch::scaled_dot_product_attention(heads(parts[0]), heads(parts[1]), heads(parts[2]));
    x = x + o_proj(attended.transpose(1, 2).reshape(x.sizes()));
    const auto gated = gate_up_proj(norm2(x)).chunk(2, -1);
    return x + down_proj(torch::silu(gated[0]) * gated[1]);
  }
  torch::nn::Linear qkv_proj, o_proj, gate_up_proj, down_proj;
  torch::nn::LayerNorm norm1, norm2;
};
TORCH_MODULE(FusedBlock);

Plan fused_plan() {
  return Plan()
      .add("*qkv_proj.*", {{"tp", Shard(0, {.groups = 3, .unit = kHeadDim})}})
      .add("*o_proj.weight", {{"tp", Shard(1, {.unit = kHeadDim})}})
      .add("*gate_up_proj.*", {{"tp", Shard(0, {.groups = 2})}})
      .add("*down_proj.weight", {{"tp", Shard(1)}});
}

void fill_with_sines(torch::nn::Module& module) {
  const at::NoGradGuard no_grad;
  double phase = 0.1;
  for (Tensor& parameter : module.parameters()) {
    parameter.copy_((torch::arange(parameter.numel(), torch::kDouble) * 0.37 + phase).sin().view(parameter.sizes()) / 3);
    phase += 0.5;
  }
}

Tensor sequences() {
  return (torch::arange(kSequences * kTokens * kWidth, torch::kDouble) * 0.11).cos().view({kSequences, kTokens, kWidth});
}

/// Parameters after three steps, by name. Of SGD: Adam would divide the gradient of keys' biases, which is nothing but rounding,
/// by itself.
template <class Module>
std::map<std::string, Tensor> trained(Module& module, const Tensor& x) {
  torch::optim::SGD optimizer(module->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
  for (int step = 0; step < 3; ++step) {
    optimizer.zero_grad();
    module->forward(x).square().mean().backward();
    optimizer.step();
  }
  std::map<std::string, Tensor> result;
  for (const auto& item : module->named_parameters()) result[item.key()] = full(item.value().detach()).clone();
  return result;
}

template <class Make>
void expect_trains_as_alone(const Make& make, const Plan& plan, const std::string& axes) {
  auto alone = make();
  fill_with_sines(*alone);
  const auto expected = trained(alone, sequences());
  test::on_mesh(axes, [&](const Mesh& mesh) {
    auto module = make();
    fill_with_sines(*module);
    distribute(*module, mesh, plan);
    const auto found = trained(module, shard_batch(mesh, sequences()));
    for (const auto& [name, value] : expected) {
      const Tensor& own = found.at(name);
      EXPECT_TRUE(at::allclose(own, value, 1e-11, 1e-12)) << name << " on " << mesh.to_string() << (own - value).abs().max();
    }
    EXPECT_TRUE(replicated_fallbacks(mesh).empty());
  });
}

TEST(Groups, AFusedBlockTrainsAsOnOneDevice) {
  for (const char* axes : {"tp=2", "tp=3", "tp=4", "tp=8", "dp=2,tp=3"}) {
    expect_trains_as_alone([] { return FusedBlock(); }, fused_plan(), axes);
  }
}

TEST(Groups, AFusedBlockTrainsUnderZero) {
  for (const int stage : {1, 2, 3}) {
    for (const char* axes : {"dp_shard=2,tp=2", "dp_shard=3,tp=4"}) {
      expect_trains_as_alone([] { return FusedBlock(); }, fused_plan().zero(stage), axes);
    }
  }
}

/// Calls and bytes of forward and of backward.
template <class Module>
std::pair<comm::Traffic, comm::Traffic> traffic_of_a_pass(Module& module, const Mesh& mesh, const Tensor& x) {
  const auto since = [&](const comm::Traffic& before) {
    return comm::Traffic{mesh.traffic().calls - before.calls, mesh.traffic().bytes - before.bytes};
  };
  const auto start = mesh.traffic();
  const Tensor output = module->forward(x);
  const Tensor loss = output.square().sum();
  const auto forward = since(start);
  const auto middle = mesh.traffic();
  loss.backward();
  return {forward, since(middle)};
}

TEST(Groups, AFusedBlockSendsWhatMegatronSends) {
  for (const int ranks : {2, 3, 6}) {
    test::on_mesh("tp=" + std::to_string(ranks), [](const Mesh& mesh) {
      FusedBlock module;
      fill_with_sines(*module);
      distribute(*module, mesh, fused_plan());
      const Tensor x = distribute(sequences(), mesh, {Replicate()}).requires_grad_();
      const auto bytes = static_cast<std::int64_t>(x.nbytes());
      const auto [forward, backward] = traffic_of_a_pass(module, mesh, x);
      EXPECT_EQ(forward.calls, 2);
      EXPECT_EQ(forward.bytes, 2 * bytes);
      EXPECT_EQ(backward.calls, 2);
      EXPECT_EQ(backward.bytes, 2 * bytes);
    });
  }
}

torch::nn::TransformerEncoder make_encoder() {
  torch::nn::TransformerEncoderLayer layer(
      torch::nn::TransformerEncoderLayerOptions(kWidth, kHeads).dim_feedforward(kFeedForward).dropout(0));
  torch::nn::TransformerEncoder encoder(torch::nn::TransformerEncoderOptions(layer, 2));
  encoder->to(torch::kDouble);
  return encoder;
}

Plan encoder_plan() {
  return Plan()
      .add("*in_proj_*", {{"tp", Shard(0, {.groups = 3, .unit = kHeadDim})}})
      .add("*out_proj.weight", {{"tp", Shard(1, {.unit = kHeadDim})}})
      .add("*linear1.*", {{"tp", Shard(0)}})
      .add("*linear2.weight", {{"tp", Shard(1)}});
}

TEST(Groups, ATransformerEncoderTrainsAsOnOneDevice) {
  for (const char* axes : {"tp=2", "tp=3", "tp=4", "tp=8"}) expect_trains_as_alone(make_encoder, encoder_plan(), axes);
}

TEST(Groups, ATransformerEncoderSendsWhatMegatronSends) {
  for (const int ranks : {2, 3, 6}) {
    test::on_mesh("tp=" + std::to_string(ranks), [](const Mesh& mesh) {
      torch::nn::TransformerEncoder module = make_encoder();
      fill_with_sines(*module);
      distribute(*module, mesh, encoder_plan());
      const Tensor x = distribute(sequences(), mesh, {Replicate()}).requires_grad_();
      const auto bytes = static_cast<std::int64_t>(x.nbytes());
      const auto [forward, backward] = traffic_of_a_pass(module, mesh, x);
      EXPECT_EQ(forward.calls, 4);
      EXPECT_EQ(forward.bytes, 4 * bytes);
      EXPECT_EQ(backward.calls, 4);
      EXPECT_EQ(backward.bytes, 4 * bytes);
    });
  }
}

/// Of names alone: shards fall between heads if there are enough of them, and are right if there are not.
TEST(Groups, TheReadyPlanKnowsFusedProjections) {
  for (const char* axes : {"tp=2", "tp=3", "tp=4"}) {
    expect_trains_as_alone(make_encoder, plan_for_transformer(make_encoder()->named_parameters().keys()), axes);
    expect_trains_as_alone([] { return FusedBlock(); }, plan_for_transformer(FusedBlock()->named_parameters().keys()), axes);
  }
  const auto entries = plan_for_transformer(make_encoder()->named_parameters().keys()).entries();
  EXPECT_EQ(entries[0].placements.at("tp"), Shard(0, {.groups = 3}));
}

template <class Layer>
struct RecurrentImpl : torch::nn::Module {
  explicit RecurrentImpl(Layer made) : layer(register_module("layer", made)) { to(torch::kDouble); }
  Tensor forward(const Tensor& x) { return std::get<0>(layer->forward(x)); }
  Layer layer;
};

TEST(Groups, RecurrentLayersTrainWithTheirGatesAsGroups) {
  for (const char* axes : {"tp=2", "tp=3"}) {
    const auto plan = [](int gates) { return Plan().add("layer.*", {{"tp", Shard(0, {.groups = gates})}}); };
    expect_trains_as_alone(
        [] { return std::make_shared<RecurrentImpl<torch::nn::LSTM>>(torch::nn::LSTM(kWidth, 4)); }, plan(4), axes);
    expect_trains_as_alone(
        [] { return std::make_shared<RecurrentImpl<torch::nn::GRU>>(torch::nn::GRU(kWidth, 4)); }, plan(3), axes);
  }
}

TEST(Groups, ABuiltModuleHasTheBitsOfAnyMesh) {
  const auto parameters_on = [](const std::string& axes) {
    std::map<std::string, Tensor> result;
    test::on_mesh(axes, [&](const Mesh& mesh) {
      manual_seed(mesh, 7);
      const auto module = build(mesh, fused_plan(), [] { return FusedBlock(); });
      for (const auto& item : module->named_parameters()) {
        const Tensor value = full(item.value().detach()).clone();
        if (mesh.rank() == 0) result[item.key()] = value;
      }
    });
    return result;
  };
  const auto expected = parameters_on("dp=1");
  for (const char* axes : {"tp=2", "tp=4", "dp_shard=2,tp=3"}) {
    for (const auto& [name, value] : parameters_on(axes)) EXPECT_TRUE(at::equal(value, expected.at(name))) << name << axes;
  }
}

}  // namespace
}  // namespace tessera
