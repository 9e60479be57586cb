// SPDX-License-Identifier: Apache-2.0
// Programs that change their mind: a step of a pipeline that does what none before it did trains as on one device.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <torch/torch.h>

#include <numeric>

#include "pipeline/chain.h"
#include "support/ranks.h"
#include "tessera/module/distribute.h"
#include "tessera/pipeline/step.h"
#include "tessera/tensor/mesh_tensor.h"

namespace tessera {
namespace {

using at::Tensor;
using test::Case;
using test::kWidth;

constexpr int kMicrobatches = 4;
/// The first step that does something new, after one that learned and one in schedule order.
constexpr int kChange = 2;
constexpr int kSteps = 5;

struct NetImpl : torch::nn::Module {
  NetImpl() {
    for (int i = 0; i < 4; ++i) layers->push_back(torch::nn::Linear(kWidth, kWidth));
    register_module("layers", layers);
    norm = register_module("norm", torch::nn::BatchNorm1d(kWidth));
    to(torch::kDouble);
    const torch::NoGradGuard no_grad;
    double phase = 0;
    for (Tensor& parameter : parameters()) {
      parameter.copy_((torch::arange(parameter.numel(), torch::kDouble) * 0.7 + ++phase).sin().view(parameter.sizes()) * 0.4);
    }
  }
  Tensor layer(std::size_t index, const Tensor& x) { return torch::tanh(layers[index]->as<torch::nn::Linear>()->forward(x)); }
  torch::nn::ModuleList layers;
  torch::nn::BatchNorm1d norm{nullptr};
};
TORCH_MODULE(Net);

std::vector<std::vector<std::string>> stages_for(int chunks) {
  if (chunks == 1) return {{"layers.0", "layers.1", "norm"}, {"layers.2", "layers.3"}};
  return {{"layers.0"}, {"layers.1", "norm"}, {"layers.2"}, {"layers.3"}};
}

Plan plan_of(const Case& one) {
  return Plan().add("layers.*", {{"tp", Shard(0)}}).stages(stages_for(one.chunks), test::order_of(one)).zero(3);
}

/// One program that changes. Everything that it does in a step is said by these.
struct Program {
  std::string name;
  std::function<void(Net&, int step)> before_step = nullptr;
  /// The loss of a micro-batch; `state` is what it left for the same one of the next step.
  std::function<Tensor(Net&, const Tensor& x, int step, Tensor& state)> loss;
  std::function<std::int64_t(int step)> samples = [](int) { return 10; };
  /// Gradients of all steps add up, and nothing is updated before the last.
  bool accumulates = false;
};

Tensor all_layers(Net& net, const Tensor& x) {
  const Tensor hidden = net->norm(net->layer(1, net->layer(0, x)));
  return net->layer(3, hidden + net->layer(2, hidden)).pow(2).mean();
}

Tensor without_layer_2(Net& net, const Tensor& x) { return net->layer(3, net->norm(net->layer(1, net->layer(0, x)))).pow(2).mean(); }

std::vector<Program> programs() {
  const auto same = [](Net& net, const Tensor& x, int, Tensor&) { return all_layers(net, x); };
  const auto weight = [](Net& net, int layer) { return net->layers[static_cast<std::size_t>(layer)]->as<torch::nn::Linear>()->weight; };
  const auto leaves_out = [](Net& net, const Tensor& x, int step, Tensor&) {
    return step < kChange ? all_layers(net, x) : without_layer_2(net, x);
  };
  return {
      {.name = "unfreezes", .before_step = [=](Net& net, int step) { weight(net, 2).set_requires_grad(step >= kChange); }, .loss = same},
      {.name = "unfreezes the first", .before_step = [=](Net& net, int step) { weight(net, 0).set_requires_grad(step >= kChange); }, .loss = same},
      {.name = "freezes", .before_step = [=](Net& net, int step) { weight(net, 1).set_requires_grad(step < kChange); }, .loss = same},
      {.name = "leaves a layer out", .loss = leaves_out},
      {.name = "leaves a layer out while gradients add up", .loss = leaves_out, .accumulates = true},
      {.name = "does something else in each step",
       .loss = [](Net& net, const Tensor& x, int step, Tensor&) {
         return step % 2 == 0 ? all_layers(net, x) : without_layer_2(net, x) + 0.1 * step * net->layer(0, x).abs().mean();
       }},
      {.name = "adds a term in the middle",
       .loss = [](Net& net, const Tensor& x, int step, Tensor&) {
         const Tensor hidden = net->norm(net->layer(1, net->layer(0, x)));
         const Tensor loss = net->layer(3, hidden + net->layer(2, hidden)).pow(2).mean();
         return step < kChange ? loss : loss + 0.1 * hidden.pow(2).sum(1).mean();
       }},
      {.name = "adds a term of the first stage",
       .loss = [](Net& net, const Tensor& x, int step, Tensor&) {
         return step < kChange ? all_layers(net, x) : all_layers(net, x) + net->layer(0, x).abs().mean();
       }},
      {.name = "carries a state",
       .loss = [](Net& net, const Tensor& x, int, Tensor& state) {
         Tensor hidden = net->layer(0, x);
         if (state.defined()) hidden = hidden + 0.5 * state;
         state = hidden.detach();
         hidden = net->norm(net->layer(1, hidden));
         return net->layer(3, hidden + net->layer(2, hidden)).pow(2).mean();
       }},
      {.name = "has other batch sizes", .loss = same, .samples = [](int step) { return step % 3 == kChange ? 13 : 10; }},
      {.name = "has sizes that depend on values",
       .loss = [](Net& net, const Tensor& x, int step, Tensor&) {
         const Tensor outputs = net->layer(3, net->layer(2, net->norm(net->layer(1, net->layer(0, x)))));
         return step < kChange ? outputs.pow(2).mean() : outputs.index({torch::remainder(x.sum(1) * 10, 2) > 0.5}).pow(2).sum() * 0.01;
       }},
  };
}

struct Outcome {
  std::vector<double> numbers;     ///< losses, parameters, running statistics
  std::vector<int> calls_of_loss;  ///< by step
};

Outcome train_changing(const Program& program, Net& net, const StepOptions& from) {
  Outcome result;
  torch::optim::SGD optimizer(net->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
  std::vector<Tensor> states(kMicrobatches);
  for (int index = 0; index < kSteps; ++index) {
    if (!program.accumulates) optimizer.zero_grad();
    if (program.before_step) program.before_step(net, index);
    const std::vector<Tensor> before = states;
    std::size_t part = 0;
    int calls = 0;
    StepOptions options = from;
    options.before_second_run = [&] {
      states = before;
      part = 0;
    };
    const auto loss = [&](const std::vector<Tensor>& parts) {
      ++calls;
      return program.loss(net, parts[0], index, states[part++]);
    };
    const Tensor x = test::batch(static_cast<int>(program.samples(index)), index);
    result.numbers.push_back(step(*net, {x}, loss, options).item<double>());
    result.calls_of_loss.push_back(calls);
    if (!program.accumulates || index + 1 == kSteps) optimizer.step();
  }
  for (const Tensor& tensor : net->parameters()) result.numbers.push_back(full(tensor.detach()).sum().item<double>());
  for (const Tensor& tensor : net->buffers()) result.numbers.push_back(full(tensor).sum().item<double>());
  return result;
}

class Changes : public testing::TestWithParam<pipeline::ScheduleInfo> {};

TEST_P(Changes, train_as_on_one_device) {
  const Case one{GetParam().name, 2, GetParam().default_chunks, kMicrobatches, ""};
  const StepOptions options{.microbatches = kMicrobatches, .schedule = one.schedule};
  for (const Program& program : programs()) {
    if (program.name == "has sizes that depend on values" && one.chunks > 1) continue;
    Net alone;
    const Outcome expected = train_changing(program, alone, options);
    for (const std::string axes : {"pp=2", "pp=2,dp=2", "pp=2,tp=2"}) {
      SCOPED_TRACE(program.name + ", " + axes);
      test::on_mesh(axes, [&](const Mesh& mesh) {
        Net net;
        distribute(*net, mesh, plan_of(one));
        EXPECT_THAT(train_changing(program, net, options).numbers, testing::Pointwise(testing::DoubleNear(1e-12), expected.numbers));
      });
    }
  }
}

TEST_P(Changes, are_learned_once) {
  const Case one{GetParam().name, 2, GetParam().default_chunks, kMicrobatches, ""};
  const StepOptions options{.microbatches = kMicrobatches, .schedule = one.schedule};
  for (const Program& program : programs()) {
    if (program.name != "adds a term of the first stage") continue;
    std::vector<std::vector<int>> calls(2);
    test::on_mesh("pp=2", [&](const Mesh& mesh) {
      Net net;
      distribute(*net, mesh, plan_of(one));
      calls[static_cast<std::size_t>(mesh.rank())] = train_changing(program, net, options).calls_of_loss;
    });
    EXPECT_GT(calls[0][kChange] + calls[1][kChange], 2 * kMicrobatches);
    for (const std::vector<int>& of_rank : calls) {
      for (int index = 0; index < kSteps; ++index) {
        if (index == kChange) continue;
        EXPECT_EQ(of_rank[static_cast<std::size_t>(index)], kMicrobatches) << index;
      }
    }
  }
}

TEST_P(Changes, random_numbers_are_drawn_again) {
  const Case one{GetParam().name, 2, GetParam().default_chunks, kMicrobatches, ""};
  const StepOptions options{.microbatches = kMicrobatches, .schedule = one.schedule};
  const Program program{.name = "drops", .loss = [](Net& net, const Tensor& x, int step, Tensor&) {
    const Tensor hidden = torch::dropout(net->layer(0, x), 0.5, true);
    const Tensor loss = net->layer(3, net->layer(2, net->layer(1, hidden))).pow(2).mean();
    return step < kChange ? loss : loss + torch::dropout(hidden, 0.2, true).pow(2).mean();
  }};
  Outcome expected;
  test::on_mesh("dp=1", [&](const Mesh& mesh) {
    Net net;
    distribute(*net, mesh, Plan());
    expected = train_changing(program, net, options);
  });
  test::on_mesh("pp=2", [&](const Mesh& mesh) {
    Net net;
    distribute(*net, mesh, plan_of(one));
    EXPECT_THAT(train_changing(program, net, options).numbers, testing::Pointwise(testing::DoubleNear(1e-12), expected.numbers));
  });
}

TEST_P(Changes, that_fail_fail_on_all_ranks_and_leave_nothing_behind) {
  const Case one{GetParam().name, 2, GetParam().default_chunks, kMicrobatches, ""};
  const StepOptions options{.microbatches = kMicrobatches, .schedule = one.schedule};
  const Program program{.name = "", .loss = [](Net& net, const Tensor& x, int, Tensor&) { return without_layer_2(net, x); }};
  Net alone;
  const Outcome expected = train_changing(program, alone, options);
  test::on_mesh("pp=2", [&](const Mesh& mesh) {
    Net net;
    distribute(*net, mesh, plan_of(one));
    const auto layers = [&](const std::vector<Tensor>& parts) { return net->layer(2, net->layer(1, net->layer(0, parts[0]))); };
    const auto good = [&](const auto& parts) { return net->layer(3, layers(parts)).mean(); };
    const auto bad = [&](const auto& parts) { return torch::matmul(layers(parts), torch::ones({kWidth + 1, 2}, torch::kDouble)).mean(); };
    const MicrobatchLoss either = [&, step = 0](const std::vector<Tensor>& parts) mutable {
      return step++ < 2 * kMicrobatches ? good(parts) : bad(parts);
    };
    for (int i = 0; i < 2; ++i) {
      (void)step(*net, {test::batch(10, i)}, either, options);
      net->zero_grad();
    }
    EXPECT_THROW((void)step(*net, {test::batch(10, 3)}, either, options), c10::Error);
    net->zero_grad();
    EXPECT_THAT(train_changing(program, net, options).numbers, testing::Pointwise(testing::DoubleNear(1e-12), expected.numbers));
  });
}

std::string schedule_of(const testing::TestParamInfo<pipeline::ScheduleInfo>& one) {
  std::string name = one.param.name;
  for (char& letter : name) letter = letter == '-' ? '_' : letter;
  return name;
}

INSTANTIATE_TEST_SUITE_P(, Changes, testing::ValuesIn(pipeline::schedules()), schedule_of);

}  // namespace
}  // namespace tessera
