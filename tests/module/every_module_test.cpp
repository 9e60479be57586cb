// SPDX-License-Identifier: Apache-2.0
// Every module class of torch::nn, trained for two steps on meshes, against one device: losses, gradients, parameters
// and buffers are equal.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <regex>

#include "module/every_module.h"
#include "support/ranks.h"
#include "tessera/module/distribute.h"
#include "tessera/module/plan.h"
#include "tessera/tensor/mesh_tensor.h"
#include "tessera/tensor/random.h"

namespace tessera {
namespace {

using at::Tensor;
using test::InputSpec;
using test::ModuleCase;
using test::Tensors;

const std::vector<ModuleCase>& cases() {
  static const std::vector<ModuleCase> kCases = [] {
    std::vector<ModuleCase> all;
    for (const auto& table : {test::layer_cases(), test::sequence_cases(), test::elementwise_cases(),
                              test::plane_cases(), test::loss_cases(), test::container_cases()}) {
      all.insert(all.end(), table.begin(), table.end());
    }
    return all;
  }();
  return kCases;
}

/// The module behind a layer along the last dim, so that gradients flow through the module whether it has parameters
/// or not. Integers go to the module as they are.
struct Model : torch::nn::Module {
  explicit Model(const ModuleCase& test) : body(test.make()) {
    const InputSpec& first = test.inputs.front();
    if (first.classes == 0) front = register_module("front", torch::nn::Linear(first.sizes.back(), first.sizes.back()));
    register_module("body", body.module);
    to(torch::kDouble);
    fill();
  }
  Tensors forward(Tensors inputs) {
    if (!front.is_empty()) inputs[0] = front(inputs[0]);
    return body.call(inputs);
  }
  /// Deterministic weights of usual sizes.
  void fill() {
    const at::NoGradGuard no_grad;
    double phase = 0.2;
    for (Tensor& parameter : parameters()) {
      const Tensor ramp = torch::arange(parameter.numel(), torch::kDouble) * 0.41 + (phase += 0.6);
      parameter.copy_(ramp.sin().view(parameter.sizes()) / 2);
    }
  }
  test::Callable body;
  torch::nn::Linear front{nullptr};
};

Tensor values(const InputSpec& spec, std::size_t index, int step) {
  const Tensor ramp = torch::arange(c10::multiply_integers(spec.sizes), torch::kLong);
  const auto shift = static_cast<std::int64_t>(index) + step;
  if (spec.classes > 0) return (ramp * 5 + 3 + shift).remainder(spec.classes).view(spec.sizes);
  return (ramp.to(torch::kDouble) * 0.7 + 0.3 * static_cast<double>(shift)).sin().view(spec.sizes);
}

using Place = std::function<Tensor(const Tensor& value, const InputSpec& spec)>;

Tensors batch(const ModuleCase& test, int step, const Place& place) {
  Tensors inputs;
  for (std::size_t i = 0; i < test.inputs.size(); ++i) {
    inputs.push_back(place(values(test.inputs[i], i, step), test.inputs[i]));
  }
  return inputs;
}

/// One number of all outputs. Elements weigh differently: a softmax that is summed has no gradient.
Tensor objective(const Tensors& outputs) {
  Tensor total;
  for (const Tensor& output : outputs) {
    const Tensor weights = (torch::arange(output.numel(), torch::kDouble) * 1.3 + 0.4).sin().view(output.sizes()).to(output.device());
    const Tensor value = (output * weights + output * output * 0.25).mean();
    total = total.defined() ? total + value : value;
  }
  return total;
}

/// What must be equal, by name.
struct Trained {
  std::map<std::string, Tensor> losses;
  std::map<std::string, Tensor> gradients;
  std::map<std::string, Tensor> values;
};

Tensor kept(const Tensor& tensor) { return full(tensor).detach().to(torch::kCPU, torch::kDouble).clone(); }

constexpr int kSteps = 2;

Trained train(const ModuleCase& test, Model& model, const Place& place) {
  Trained result;
  torch::optim::SGD optimizer(model.parameters(), torch::optim::SGDOptions(0.1));
  for (int step = 0; step < kSteps; ++step) {
    const std::string suffix = " in step " + std::to_string(step);
    optimizer.zero_grad();
    const Tensor loss = objective(model.forward(batch(test, step, place)));
    loss.backward();
    result.losses["loss" + suffix] = kept(loss);
    for (const auto& parameter : model.named_parameters()) {
      const Tensor& gradient = parameter.value().grad();
      if (gradient.defined()) result.gradients["gradient of " + parameter.key() + suffix] = kept(gradient);
    }
    optimizer.step();
  }
  for (const auto& parameter : model.named_parameters()) result.values[parameter.key()] = kept(parameter.value());
  for (const auto& buffer : model.named_buffers()) result.values[buffer.key()] = kept(buffer.value());
  return result;
}

Place on_batch_axes(const Mesh& mesh) {
  return [mesh](const Tensor& value, const InputSpec& spec) {
    Placements placements = mesh.batch_placements();
    for (int axis = 0; axis < placements.size(); ++axis) {
      if (placements[axis].is_shard()) placements[axis] = Shard(spec.batch_dim);
    }
    return distribute(value, mesh, placements);
  };
}

Trained train_on(const ModuleCase& test, const Mesh& mesh, const std::function<Plan(const torch::nn::Module&)>& plan) {
  manual_seed(mesh, 11);
  Model model(test);
  distribute(model, mesh, plan(model));
  return train(test, model, on_batch_axes(mesh));
}

/// On one device: plain LibTorch, or a mesh of one rank where numbers are drawn.
Trained train_alone(const ModuleCase& test) {
  if (test.random) {
    return train_on(test, Mesh(comm::make_single_world(), {}), [](const torch::nn::Module&) { return Plan(); });
  }
  Model model(test);
  return train(test, model, [](const Tensor& value, const InputSpec&) { return value; });
}

double largest(const Tensor& tensor) { return tensor.numel() == 0 ? 0.0 : tensor.abs().max().item<double>(); }

/// Deviations are relative to the tensor's largest absolute value; of what is nearly zero beside the others, such as
/// the gradient of an attention's key bias, to a hundredth of theirs.
void expect_equal(const std::map<std::string, Tensor>& expected, const std::map<std::string, Tensor>& found,
                  const std::string& where) {
  double scale = 0;
  for (const auto& [name, tensor] : expected) scale = std::max(scale, largest(tensor));
  ASSERT_GT(scale, 0) << "nothing but zeros on " << where;
  for (const auto& [name, tensor] : expected) {
    ASSERT_EQ(found.count(name), 1U) << name << " is missing on " << where;
    ASSERT_EQ(found.at(name).sizes(), tensor.sizes()) << name << " on " << where;
    const double apart = largest(found.at(name) - tensor) / std::max(largest(tensor), scale * 1e-2);
    EXPECT_LE(apart, 1e-12) << name << " on " << where;
  }
  ASSERT_EQ(expected.size(), found.size()) << where;
}

/// Each parameter is cut along its largest dim that tp divides.
Plan cut_largest_dims(const torch::nn::Module& module) {
  Plan plan;
  for (const auto& parameter : module.named_parameters()) {
    std::int64_t chosen = -1;
    const at::IntArrayRef sizes = parameter.value().sizes();
    for (std::int64_t dim = 0; dim < parameter.value().dim(); ++dim) {
      const std::int64_t size = sizes[static_cast<std::size_t>(dim)];
      if (size % 2 == 0 && (chosen < 0 || size > sizes[static_cast<std::size_t>(chosen)])) chosen = dim;
    }
    if (chosen >= 0) plan.add(parameter.key(), {{"tp", Shard(chosen)}});
  }
  return plan;
}

struct Layout {
  const char* axes;
  std::function<Plan(const torch::nn::Module&)> plan;
};

const std::vector<Layout>& layouts() {
  static const std::vector<Layout> kLayouts{{"dp=2", [](const torch::nn::Module&) { return Plan(); }},
                                            {"tp=2", cut_largest_dims},
                                            {"dp_shard=2", [](const torch::nn::Module&) { return Plan().zero(3); }},
                                            {"dp=2,tp=2", cut_largest_dims}};
  return kLayouts;
}

class EveryModule : public testing::TestWithParam<std::size_t> {
 protected:
  void SetUp() override {
    if (!test::has_device_of_ranks()) GTEST_SKIP() << "no GPU here";
  }
};

TEST_P(EveryModule, TrainsOnMeshesAsOnOneDevice) {
  const ModuleCase& test = cases()[GetParam()];
  const Trained expected = train_alone(test);
  ASSERT_FALSE(expected.gradients.empty()) << "nothing was trained";
  std::mutex mutex;
  std::set<std::string> fallbacks;
  for (const Layout& layout : layouts()) {
    test::on_mesh(layout.axes, [&](const Mesh& mesh) {
      const Trained found = train_on(test, mesh, layout.plan);
      expect_equal(expected.losses, found.losses, layout.axes);
      expect_equal(expected.gradients, found.gradients, layout.axes);
      expect_equal(expected.values, found.values, layout.axes);
      const std::lock_guard lock(mutex);
      for (const auto& [name, count] : replicated_fallbacks(mesh)) fallbacks.insert(name);
    });
  }
  EXPECT_EQ(fallbacks, test.fallbacks) << "operators that ran replicated for want of a rule";
}

INSTANTIATE_TEST_SUITE_P(TorchNn, EveryModule, testing::Range<std::size_t>(0, cases().size()),
                         [](const auto& chosen) { return cases()[chosen.param].name; });

/// Classes that the headers of torch::nn define as module holders.
std::set<std::string> classes_of_headers() {
  const std::filesystem::path folder = TESSERA_TORCH_NN_MODULES;
  const std::regex holder(R"(\n(?:TORCH_MODULE\((\w+)\);|class (\w+) : public torch::nn::ModuleHolder<))");
  std::set<std::string> classes;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (entry.path().extension() != ".h") continue;
    std::ifstream file(entry.path());
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    for (std::sregex_iterator match(text.begin(), text.end(), holder), end; match != end; ++match) {
      classes.insert((*match)[1].matched ? (*match)[1].str() : (*match)[2].str());
    }
  }
  return classes;
}

TEST(EveryModuleTable, HasEveryClassOfTheHeaders) {
  const std::set<std::string> known = classes_of_headers();
  EXPECT_GT(known.size(), 100U) << "looked in " << TESSERA_TORCH_NN_MODULES;
  std::set<std::string> tried;
  for (const ModuleCase& test : cases()) tried.insert(test.class_name());
  for (const std::string& name : known) EXPECT_EQ(tried.count(name), 1U) << "torch::nn::" << name << " is not trained";
  for (const std::string& name : tried) EXPECT_EQ(known.count(name), 1U) << "torch::nn::" << name << " does not exist";
}

}  // namespace
}  // namespace tessera
