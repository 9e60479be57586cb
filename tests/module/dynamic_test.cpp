// SPDX-License-Identifier: Apache-2.0
// What programs do beside plain training: mixed tensors, parameters that change, several models, saving.
#include <gtest/gtest.h>

#include <sstream>

#include "module/models.h"
#include "tessera/base/error.h"
#include "tessera/module/fused_optimizers.h"
#include "tessera/module/gather.h"

namespace tessera {
namespace {

using at::Tensor;

Tensor weights(std::int64_t rows, std::int64_t columns, double phase = 0.3) {
  return (torch::arange(rows * columns, torch::kDouble) * 0.7 + phase).sin().view({rows, columns});
}

/// Runs `program` on one device and on every layout; it returns what must be equal. `place` distributes a batch.
using Place = std::function<Tensor(const Tensor&)>;
using Program = std::function<std::vector<Tensor>(test::Net& net, const Place& place)>;

void expect_equal(const Program& program) {
  test::Net alone = test::make_net();
  const std::vector<Tensor> expected = program(alone, [](const Tensor& x) { return x; });
  test::on_layouts([&](const Mesh& mesh, test::Net& net) {
    const std::vector<Tensor> found = program(net, [&](const Tensor& x) { return shard_batch(mesh, x); });
    ASSERT_EQ(found.size(), expected.size());
    for (std::size_t i = 0; i < expected.size(); ++i) {
      ASSERT_EQ(found[i].defined(), expected[i].defined()) << i;
      const double apart = expected[i].defined() ? test::difference(found[i], expected[i]) : 0.0;
      EXPECT_LE(apart, 1e-12) << i;
    }
  });
}

std::vector<Tensor> gradients_of(torch::nn::Module& module) {
  std::vector<Tensor> gradients;
  for (const Tensor& parameter : module.parameters()) gradients.push_back(parameter.grad());
  return gradients;
}

TEST(Mixed, PlainTensorsCountAsReplicated) {
  expect_equal([](test::Net& net, const Place& place) {
    const Tensor scale = weights(1, 5).squeeze(0).requires_grad_();
    const Tensor loss = (net->forward(place(test::inputs())) * scale + torch::ones({5}, torch::kDouble)).pow(2).mean();
    loss.backward();
    std::vector<Tensor> result = gradients_of(*net);
    result.push_back(scale.grad());
    return result;
  });
}

TEST(Dynamic, FrozenParametersGetNoGradientAndStay) {
  expect_equal([](test::Net& net, const Place& place) {
    net->first->weight.set_requires_grad(false);
    FusedAdamW optimizer(net->parameters(), torch::optim::AdamWOptions(1e-2));
    for (int index = 0; index < 3; ++index) {
      optimizer.zero_grad();
      test::backward(net, place(test::inputs(index)), place(test::targets()));
      optimizer.step();
      // Thawed for the last step.
      if (index == 1) net->first->weight.set_requires_grad(true);
    }
    return net->parameters();
  });
}

TEST(Dynamic, ParametersThawedAfterDistributeHaveTheirGradientsReduced) {
  for (const int zero : {0, 1, 2, 3}) {
    test::on_mesh("dp_shard=2", [&](const Mesh& mesh) {
      const auto gradients_lie = [&](bool frozen) {
        test::Net net = test::make_net();
        net->first->weight.set_requires_grad(!frozen);
        distribute(*net, mesh, Plan().zero(zero));
        net->first->weight.set_requires_grad(true);
        test::backward(mesh, net);
        std::vector<Placements> found;
        for (const Tensor& gradient : gradients_of(*net)) found.push_back(placements(gradient));
        return found;
      };
      EXPECT_EQ(gradients_lie(/*frozen=*/true), gradients_lie(/*frozen=*/false)) << "zero " << zero;
    });
  }
}

TEST(Dynamic, SharedParametersAddTheirGradientsUp) {
  expect_equal([](test::Net& net, const Place& place) {
    torch::optim::SGD optimizer(net->parameters(), torch::optim::SGDOptions(0.1));
    for (int index = 0; index < 3; ++index) {
      optimizer.zero_grad();
      const Tensor hidden = torch::tanh(net->first(place(test::inputs(index))));
      // The first weight is used twice, once transposed.
      const Tensor back = torch::matmul(hidden, net->first->weight);
      (back - place(test::inputs(index))).pow(2).mean().backward();
      optimizer.step();
    }
    return net->parameters();
  });
}

TEST(Dynamic, ParametersCreatedLateJoinTheOptimizer) {
  expect_equal([](test::Net& net, const Place& place) {
    torch::optim::AdamW optimizer(net->parameters(), torch::optim::AdamWOptions(1e-2));
    test::backward(net, place(test::inputs()), place(test::targets()));
    optimizer.step();
    Tensor late = weights(5, 5);
    const Tensor weight = net->first->weight;
    if (is_mesh_tensor(weight))
      late = distribute(late, mesh_of(weight), Placements::replicated(mesh_of(weight).num_axes()));
    late.set_requires_grad(true);
    optimizer.add_param_group(torch::optim::OptimizerParamGroup({late}));
    for (int index = 0; index < 2; ++index) {
      optimizer.zero_grad();
      test::squared_error(torch::matmul(net->forward(place(test::inputs(index))), late), place(test::targets()))
          .backward();
      optimizer.step();
    }
    std::vector<Tensor> result = net->parameters();
    result.push_back(late);
    return result;
  });
}

TEST(Dynamic, ReplacedParametersTrainOn) {
  expect_equal([](test::Net& net, const Place& place) {
    test::backward(net, place(test::inputs()), place(test::targets()));
    const at::Tensor old = net->second->bias;
    Tensor fresh = torch::full({5}, 0.25, torch::kDouble);
    if (is_mesh_tensor(old)) fresh = distribute(fresh, mesh_of(old), placements(old));
    net->second->bias = fresh.set_requires_grad(true);
    net->zero_grad();
    test::backward(net, place(test::inputs(1)), place(test::targets()));
    std::vector<Tensor> result = gradients_of(*net);
    result.push_back(net->second->bias.grad());
    return result;
  });
}

TEST(Dynamic, ControlFlowOnItemTakesTheSameBranchOnAllRanks) {
  expect_equal([](test::Net& net, const Place& place) {
    Tensor output = net->forward(place(test::inputs()));
    int rounds = 0;
    while (output.abs().mean().item<double>() > 0.05 && rounds < 20) {
      output = output * 0.8;
      ++rounds;
    }
    EXPECT_GT(rounds, 0);
    EXPECT_LT(rounds, 20);
    output.pow(2).sum().backward();
    return gradients_of(*net);
  });
}

TEST(Dynamic, InferenceNeedsNoGraph) {
  expect_equal([](test::Net& net, const Place& place) {
    std::vector<Tensor> outputs;
    {
      const torch::NoGradGuard no_grad;
      outputs.push_back(net->forward(place(test::inputs())));
      EXPECT_FALSE(outputs[0].requires_grad());
    }
    {
      const c10::InferenceMode inference;
      outputs.push_back(net->forward(place(test::inputs(1))).clone());
    }
    return outputs;
  });
}

TEST(Dynamic, DoubleBackwardGivesTheGradientPenalty) {
  expect_equal([](test::Net& net, const Place& place) {
    const Tensor input = place(test::inputs()).requires_grad_();
    const Tensor output = net->forward(input);
    const Tensor gradient = torch::autograd::grad({output.sum()}, {input}, {}, /*retain_graph=*/true,
                                                  /*create_graph=*/true)[0];
    const Tensor penalty = (gradient.norm(2, {1}) - 1).pow(2).mean();
    (output.mean() + 10 * penalty).backward();
    return gradients_of(*net);
  });
}

TEST(Dynamic, AClonedModuleIsIndependentAndLiesAlike) {
  test::on_layouts([](const Mesh& mesh, test::Net& net) {
    // A cloneable module of the same parameters: clone() copies each with Tensor::clone.
    torch::nn::Linear linear(torch::nn::LinearOptions(10, 14));
    linear->to(torch::kDouble);
    test::fill(*linear);
    distribute(*linear, mesh, Plan());
    const auto copy = std::dynamic_pointer_cast<torch::nn::LinearImpl>(linear->clone());
    ASSERT_NE(copy, nullptr);
    EXPECT_EQ(placements(copy->weight), placements(linear->weight));
    EXPECT_EQ(test::difference(copy->weight, linear->weight), 0.0);
    const Tensor input = shard_batch(mesh, test::inputs());
    copy->forward(input).pow(2).mean().backward();
    EXPECT_TRUE(copy->weight.grad().defined());
    EXPECT_FALSE(linear->weight.grad().defined());
    torch::optim::SGD(copy->parameters(), torch::optim::SGDOptions(0.1)).step();
    EXPECT_GT(test::difference(copy->weight, linear->weight), 0.0);
    (void)net;
  });
}

/// Two networks against each other, as in a GAN: each step differentiates through one into the other.
std::vector<Tensor> train_pair(test::Net& generator, torch::nn::Linear& critic, const Place& place,
                               const std::function<Tensor(const Tensor&)>& cross) {
  torch::optim::SGD generator_optimizer(generator->parameters(), torch::optim::SGDOptions(0.05));
  torch::optim::SGD critic_optimizer(critic->parameters(), torch::optim::SGDOptions(0.05));
  for (int index = 0; index < 3; ++index) {
    critic_optimizer.zero_grad();
    const Tensor made = generator->forward(place(test::inputs(index)));
    (critic(cross(made.detach())).mean() - critic(cross(place(test::targets()))).mean()).backward();
    critic_optimizer.step();
    generator_optimizer.zero_grad();
    (-critic(cross(made)).mean()).backward();
    generator_optimizer.step();
  }
  std::vector<Tensor> result = generator->parameters();
  result.push_back(critic->weight);
  return result;
}

torch::nn::Linear make_critic() {
  torch::nn::Linear critic(5, 1);
  critic->to(torch::kDouble);
  test::fill(*critic);
  return critic;
}

TEST(SeveralModels, TrainAgainstEachOtherOnOneMesh) {
  test::Net generator = test::make_net();
  torch::nn::Linear critic = make_critic();
  const auto same = [](const Tensor& x) { return x; };
  const auto expected = train_pair(generator, critic, same, same);
  test::on_layouts([&](const Mesh& mesh, test::Net& net) {
    torch::nn::Linear other = make_critic();
    distribute(*other, mesh, Plan());
    const auto found = train_pair(
        net, other, [&](const Tensor& x) { return shard_batch(mesh, x); }, same);
    for (std::size_t i = 0; i < found.size(); ++i) EXPECT_LE(test::difference(found[i], expected[i]), 1e-12);
  });
}

TEST(SeveralModels, LiveOnDifferentMeshesOfTheSameRanks) {
  // Actor on tp=4, critic on dp=2,tp=2; values cross as whole tensors.
  const auto train = [](test::Net& actor, torch::nn::Linear& critic, const Place& to_actor, const Place& to_critic) {
    for (int index = 0; index < 2; ++index) {
      const Tensor action = actor->forward(to_actor(test::inputs(index)));
      const Tensor seen = to_critic(full(action.detach())).requires_grad_();
      critic(seen).mean().backward();
      action.backward(to_actor(full(seen.grad())));
    }
    std::vector<Tensor> result = gradients_of(*actor);
    result.push_back(critic->weight.grad());
    return result;
  };
  test::Net actor = test::make_net();
  torch::nn::Linear critic = make_critic();
  const auto same = [](const Tensor& x) { return x; };
  const auto expected = train(actor, critic, same, same);
  test::on_ranks(4, [&](const auto& world) {
    const Mesh actor_mesh(world, parse_axes("tp=4"));
    const Mesh critic_mesh(world, parse_axes("dp=2,tp=2"));
    test::Net net = test::make_net();
    distribute(*net, actor_mesh, Plan().add("first.*", {{"tp", Shard(0)}}));
    torch::nn::Linear other = make_critic();
    distribute(*other, critic_mesh, Plan().add("weight", {{"tp", Shard(1)}}));
    const auto found = train(
        net, other, [&](const Tensor& x) { return shard_batch(actor_mesh, x); },
        [&](const Tensor& x) { return shard_batch(critic_mesh, x); });
    for (std::size_t i = 0; i < found.size(); ++i) EXPECT_LE(test::difference(found[i], expected[i]), 1e-12) << i;
  });
}

TEST(SeveralModels, RefuseAnOperatorOverTwoMeshes) {
  test::on_ranks(2, [](const auto& world) {
    const Mesh one(world, parse_axes("dp=2"));
    const Mesh two(world, parse_axes("tp=2"));
    const Tensor a = distribute(weights(4, 4), one, {Shard(0)});
    const Tensor b = distribute(weights(4, 4), two, {Shard(0)});
    EXPECT_THROW((void)(a + b), ShapeError);
  });
}

TEST(Saving, RefusesAMeshTensorAndSaysWhatToDo) {
  test::on_layouts([](const Mesh&, test::Net& net) {
    std::stringstream stream;
    try {
      torch::save(net->first->weight, stream);
      FAIL() << "its memory is not here";
    } catch (const c10::Error& error) {
      EXPECT_NE(std::string(error.what()).find("tessera::full()"), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find("tessera::gather()"), std::string::npos) << error.what();
    }
    std::stringstream file;
    torch::save(full(net->first->weight.detach()), file);
    Tensor read;
    torch::load(read, file);
    EXPECT_TRUE(torch::equal(read, test::make_net()->first->weight.detach()));
    torch::optim::AdamW optimizer(net->parameters());
    for (const Tensor& parameter : net->parameters()) parameter.mutable_grad() = torch::ones_like(parameter);
    optimizer.step();
    try {
      torch::save(optimizer, stream);
      FAIL() << "its state is spread over ranks";
    } catch (const c10::Error& error) {
      EXPECT_NE(std::string(error.what()).find("tessera::save("), std::string::npos) << error.what();
    }
  });
}

void zero(torch::nn::Module& module) {
  const at::NoGradGuard no_grad;
  for (Tensor& parameter : module.parameters()) parameter.zero_();
}

TEST(Saving, AGatheredCloneWritesFullValuesThatAnyModuleReads) {
  test::on_layouts([](const Mesh& mesh, test::Net& net) {
    torch::nn::Linear model(net->first->options);
    model->to(torch::kDouble);
    test::fill(*model);
    const Tensor expected = model->weight.detach().clone();
    distribute(*model, mesh, Plan().add("weight", {{"dp", Shard(0)}, {"dp_shard", Shard(0)}, {"tp", Shard(1)}}));
    torch::nn::Linear copy(std::dynamic_pointer_cast<torch::nn::LinearImpl>(model->clone()));
    gather(*copy);
    EXPECT_FALSE(is_mesh_tensor(copy->weight));
    EXPECT_TRUE(is_mesh_tensor(model->weight));
    std::stringstream stream;
    torch::save(copy, stream);
    torch::nn::Linear plain(net->first->options);
    plain->to(torch::kDouble);
    torch::load(plain, stream);
    EXPECT_TRUE(torch::equal(plain->weight.detach(), expected));
    stream.clear();
    stream.seekg(0);
    zero(*model);
    torch::load(model, stream);
    EXPECT_TRUE(is_mesh_tensor(model->weight));
    EXPECT_EQ(test::difference(model->weight, expected), 0.0);
  });
}

TEST(Gather, KeepsValuesGradientsAndTrainsOn) {
  test::Net alone = test::make_net();
  test::backward(alone, test::inputs(), test::targets());
  test::backward(alone, test::inputs(1), test::targets());
  test::on_layouts([&](const Mesh& mesh, test::Net& net) {
    test::backward(mesh, net);
    gather(*net);
    test::backward(net, test::inputs(1), test::targets());
    const auto parameters = net->parameters();
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      EXPECT_FALSE(is_mesh_tensor(parameters[i]));
      EXPECT_LE(test::difference(parameters[i].grad(), alone->parameters()[i].grad()), 1e-14);
    }
  });
}

/// Two backwards, the first of which throws half way: what it left adds up, as on one device.
void accumulate_over_a_throw(test::Net& net, const Tensor& input) {
  const Tensor hidden = torch::tanh(net->first(input));
  hidden.register_hook([](const Tensor&) -> Tensor { throw std::runtime_error("stop"); });
  EXPECT_THROW(net->second(hidden).sum().backward(), std::runtime_error);
  net->forward(input).sum().backward();
}

/// While one backward runs, others to the same parameters: one that throws, one that does not.
void accumulate_in_nested_backwards(test::Net& net, const Tensor& input) {
  const Tensor hidden = torch::tanh(net->first(input));
  hidden.register_hook([&](const Tensor& gradient) {
    const at::AutoGradMode enable_gradients(true);
    accumulate_over_a_throw(net, input);
    return gradient;
  });
  net->second(hidden).sum().backward();
}

TEST(GradientBuckets, AreSentAfterABackwardThatThrewOrIsNested) {
  for (const auto& accumulate : {accumulate_over_a_throw, accumulate_in_nested_backwards}) {
    test::Net alone = test::make_net();
    accumulate(alone, test::inputs());
    for (const test::Layout& layout : test::layouts()) {
      for (const std::int64_t bucket_bytes : {std::int64_t{1}, std::int64_t{1} << 20}) {
        SCOPED_TRACE(layout.name + ", buckets of " + std::to_string(bucket_bytes) + " bytes");
        test::on_mesh(layout.axes, [&](const Mesh& mesh) {
          test::Net net = test::make_net();
          distribute(*net, mesh, layout.plan, {.bucket_bytes = bucket_bytes, .first_bucket_bytes = bucket_bytes});
          accumulate(net, shard_batch(mesh, test::inputs()));
          for (std::size_t i = 0; i < alone->parameters().size(); ++i) {
            const Tensor parameter = net->parameters()[i];
            EXPECT_EQ(placements(parameter.grad()), placements(parameter)) << i;
            EXPECT_LE(test::difference(parameter.grad(), alone->parameters()[i].grad()), test::kRounding) << i;
          }
        });
      }
    }
  }
}

TEST(Lifetime, TensorsKeepTheirMeshAlive) {
  test::on_ranks(2, [](const auto& world) {
    Tensor tensor;
    test::Net net = test::make_net();
    {
      const Mesh mesh(world, parse_axes("dp=2"));
      tensor = distribute(weights(4, 4), mesh, {Shard(0)});
      distribute(*net, mesh, Plan());
    }
    EXPECT_EQ(tensor.sum().item<double>(), weights(4, 4).sum().item<double>());
    EXPECT_TRUE(torch::allclose(full(tensor), weights(4, 4)));
    test::backward(mesh_of(tensor), net);
    EXPECT_TRUE(net->first->weight.grad().defined());
  });
}

TEST(Lifetime, TensorsOutliveTheirRanks) {
  Tensor kept;
  test::on_ranks(2, [&](const auto& world) {
    const Mesh mesh(world, parse_axes("dp=2"));
    const Tensor tensor = distribute(weights(4, 4), mesh, {Shard(0)});
    if (mesh.rank() == 0) kept = tensor;
  });
  EXPECT_TRUE(torch::equal(local(kept), weights(4, 4).slice(0, 0, 2)));
}

// Autograd adds gradients up in place where it sees but one user of their storage.
TEST(Dynamic, a_gradient_that_two_paths_share_is_not_written_by_one_of_them) {
  expect_equal([](test::Net&, const Place& place) {
    const Tensor x = place(test::inputs()).requires_grad_();
    const Tensor y = place(test::inputs(1)).requires_grad_();
    const Tensor other = y * 3;  // its gradient is read last
    const Tensor first = x * 2;
    const Tensor product = (first * first).sum();  // adds to what the view has left
    const Tensor sum = first.view({8, 5, 2}).transpose(1, 2) + other.view({8, 5, 2}).transpose(1, 2);
    ((sum * sum).sum() + product).backward();
    return std::vector<Tensor>{x.grad(), y.grad()};
  });
}

}  // namespace
}  // namespace tessera
