// SPDX-License-Identifier: Apache-2.0
// What a state holds: every optimizer, by the names of parameters; and what it refuses.
#include <gtest/gtest.h>
#include <sys/file.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "checkpoint/manifest.h"
#include "checkpoint/programs.h"
#include "checkpoint/save.h"
#include "module/optimizer_maker.h"
#include "tessera/module/apply_in_backward.h"
#include "tessera/module/fused_optimizers.h"
#include "tessera/module/master_weights.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;
using test::maker;
using test::MakeOptimizer;
using test::message_of;
using test::TemporaryFolder;

struct Case {
  std::string name;
  MakeOptimizer make;
};

std::vector<Case> optimizers() {
  using namespace torch::optim;
  return {
      {"Adam", maker<Adam>(AdamOptions(1e-2).amsgrad(true))},
      {"AdamW", maker<AdamW>(AdamWOptions(1e-2))},
      {"FusedAdamW", maker<FusedAdamW>(AdamWOptions(1e-2))},
      {"SGD", maker<SGD>(SGDOptions(1e-2))},
      {"SGD with momentum", maker<SGD>(SGDOptions(1e-2).momentum(0.9).nesterov(true))},
      {"FusedSgd", maker<FusedSgd>(SGDOptions(1e-2).momentum(0.9))},
      {"Adagrad", maker<Adagrad>(AdagradOptions(1e-2))},
      {"RMSprop", maker<RMSprop>(RMSpropOptions(1e-2).momentum(0.5).centered(true))},
      {"LBFGS", maker<LBFGS>(LBFGSOptions(0.1).max_iter(3).history_size(4))},
  };
}

void run_steps(test::Net& net, torch::optim::Optimizer& optimizer, const std::optional<Mesh>& mesh, int first, int last) {
  for (int index = first; index < last; ++index) {
    (void)optimizer.step([&] {
      optimizer.zero_grad();
      const at::Tensor input = test::inputs(index);
      return mesh ? step(*net, shard_batch(*mesh, input), shard_batch(*mesh, test::targets()), test::squared_error)
                  : step(*net, input, test::targets(), test::squared_error);
    });
  }
}

/// Trains two steps, saves, and trains two more; returns how far a program that loads and trains two is from it.
double deviation_after_resume(const MakeOptimizer& make, const fs::path& path, const std::optional<Mesh>& mesh) {
  const auto make_net = [&] {
    test::Net net = test::make_net();
    if (mesh) distribute(*net, *mesh, Plan().add("*", {{"dp_shard", Shard(0)}}));
    return net;
  };
  test::Net straight = make_net();
  const auto optimizer = make(straight->parameters());
  run_steps(straight, *optimizer, mesh, 0, 2);
  State state;
  state.add("net", *straight).add("optimizer", *optimizer);
  save(path, state);
  run_steps(straight, *optimizer, mesh, 2, 4);
  test::Net resumed = make_net();
  const auto again = make(resumed->parameters());
  State loaded;
  loaded.add("net", *resumed).add("optimizer", *again);
  load(path, loaded);
  run_steps(resumed, *again, mesh, 2, 4);
  double deviation = 0;
  for (std::size_t i = 0; i < straight->parameters().size(); ++i) {
    deviation = std::max(deviation, test::difference(straight->parameters()[i], resumed->parameters()[i]));
  }
  return deviation;
}

TEST(OptimizerState, GoesOnBitForBit) {
  const TemporaryFolder folder;
  for (const Case& row : optimizers()) {
    EXPECT_EQ(deviation_after_resume(row.make, folder.path() / row.name, std::nullopt), 0) << row.name;
    test::on_mesh("dp_shard=3", [&](const Mesh& mesh) {
      // Vectors over all parameters come back replicated, so their products are summed in another order.
      const double tolerance = row.name == "LBFGS" ? 1e-12 : 0;
      EXPECT_LE(deviation_after_resume(row.make, folder.path() / (row.name + " on a mesh"), mesh), tolerance) << row.name;
    });
  }
}

TEST(OptimizerState, DoesNotDependOnTheOrderOfGroups) {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "saved";
  using torch::optim::OptimizerParamGroup;
  using torch::optim::SGDOptions;
  const auto make = [](test::Net& net, bool reversed) {
    OptimizerParamGroup first(net->first->parameters(), std::make_unique<SGDOptions>(SGDOptions(0.1).momentum(0.9)));
    OptimizerParamGroup second(net->second->parameters(), std::make_unique<SGDOptions>(SGDOptions(0.2).momentum(0.8)));
    std::vector<OptimizerParamGroup> groups = {reversed ? second : first, reversed ? first : second};
    return torch::optim::SGD(groups, SGDOptions(0.3));
  };
  test::Net net = test::make_net();
  torch::optim::SGD optimizer = make(net, false);
  run_steps(net, optimizer, std::nullopt, 0, 2);
  optimizer.param_groups()[0].options().set_lr(0.05);  // as a schedule does
  State state;
  state.add("net", *net).add("optimizer", optimizer);
  save(path, state);
  test::Net other = test::make_net();
  torch::optim::SGD reversed = make(other, true);
  State loaded;
  loaded.add("net", *other).add("optimizer", reversed);
  load(path, loaded);
  EXPECT_EQ(reversed.param_groups()[1].options().get_lr(), 0.05);
  EXPECT_EQ(reversed.param_groups()[0].options().get_lr(), 0.2);
  run_steps(net, optimizer, std::nullopt, 2, 4);
  run_steps(other, reversed, std::nullopt, 2, 4);
  for (std::size_t i = 0; i < net->parameters().size(); ++i) {
    EXPECT_TRUE(torch::equal(net->parameters()[i], other->parameters()[i]));
  }
}

TEST(OptimizerState, OfMasterWeightsIsTheirCopiesAndWhatIsInside) {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "saved";
  const auto make = [](test::Net& net) {
    net->to(torch::kBFloat16);
    return make_master_weights<torch::optim::AdamW>(net->parameters(), torch::optim::AdamWOptions(1e-3));
  };
  const auto update = [](test::Net& net, torch::optim::Optimizer& optimizer) {
    for (at::Tensor& parameter : net->parameters()) parameter.mutable_grad() = torch::cos(parameter.detach());
    optimizer.step();
  };
  test::Net net = test::make_net();
  const auto optimizer = make(net);
  for (int i = 0; i < 3; ++i) update(net, *optimizer);
  State state;
  state.add("net", *net).add("optimizer", *optimizer);
  save(path, state);
  EXPECT_NE(checkpoint::read_manifest(path).find("optimizer.net.first.weight.master"), nullptr);
  test::Net other = test::make_net();
  const auto again = make(other);
  State loaded;
  loaded.add("net", *other).add("optimizer", *again);
  load(path, loaded);
  for (int i = 0; i < 3; ++i) update(net, *optimizer);
  for (int i = 0; i < 3; ++i) update(other, *again);
  for (std::size_t i = 0; i < net->parameters().size(); ++i) {
    EXPECT_TRUE(torch::equal(optimizer->masters()[i], again->masters()[i]));
  }
}

TEST(OptimizerState, OfApplyInBackwardIsThatOfEachParameter) {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "saved";
  test::Net net = test::make_net();
  ApplyInBackward optimizers =
      apply_in_backward<torch::optim::AdamW>(net->parameters(), torch::optim::AdamWOptions(1e-2));
  test::backward(net, test::inputs(), test::targets());
  State state;
  state.add("net", *net).add("optimizer", optimizers);
  save(path, state);
  test::Net other = test::make_net();
  torch::optim::AdamW one(other->parameters(), torch::optim::AdamWOptions(1e-2));
  State loaded;
  loaded.add("net", *other).add("optimizer", one);
  EXPECT_THROW(load(path, loaded), CheckpointMismatch) << "its groups are others";
  load(path, loaded, {.only = {"net"}});
  EXPECT_TRUE(torch::equal(net->parameters()[0], other->parameters()[0]));
}

TEST(PartialLoad, TakesTheWeightsOrAPartOfThem) {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "saved";
  test::Program saved(std::nullopt, {}, 1);
  saved.update();
  save(path, saved.state);
  test::Program program(std::nullopt, {}, 2);
  const auto before = test::contents(program);
  load(path, program.state, {.only = {"model.first"}});
  EXPECT_EQ(test::different(before, test::contents(program)), "first.bias first.weight ");
  EXPECT_TRUE(torch::equal(program.model->first->weight, saved.model->first->weight));
  torch::nn::Linear part(10, 14);
  part->to(torch::kDouble);
  State small;
  small.add("model.first", *part);
  load(path, small, {.only = {"model.first"}});
  EXPECT_TRUE(torch::equal(part->weight, saved.model->first->weight));
}

/// The message of loading `path` into a state that `change` made; the folder's name is left out.
template <class E = CheckpointMismatch>
std::string refusal(const fs::path& path, State& state, const LoadOptions& options = {}) {
  const std::string message = message_of<E>([&] { load(path, state, options); });
  EXPECT_EQ(message.find('\n'), std::string::npos);
  EXPECT_EQ(message.rfind(path.string(), 0), 0U) << message;
  return message.substr(std::min(message.size(), path.string().size()));
}

TEST(LoadRefuses, EveryDifferenceWithBothSides) {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "saved";
  at::Tensor weight = torch::ones({2, 3});
  at::Tensor bias = torch::ones({3});
  std::int64_t step = 3;
  State saved;
  saved.add("weight", weight).add("bias", bias).add("step", step);
  save(path, saved);
  const auto against = [&](const auto& fill) {
    State state;
    fill(state);
    return refusal(path, state);
  };
  at::Tensor other = torch::ones({3, 2});
  at::Tensor doubles = torch::ones({3}, torch::kDouble);
  double real = 0;
  EXPECT_EQ(against([&](State& s) { s.add("weight", other).add("bias", bias).add("step", step); }),
            ": 1 of its contents do not fit the program: weight is F32 [2, 3] in the checkpoint, F32 [3, 2] in the program");
  EXPECT_EQ(against([&](State& s) { s.add("weight", weight).add("bias", doubles).add("step", step); }),
            ": 1 of its contents do not fit the program: bias is F32 [3] in the checkpoint, F64 [3] in the program");
  EXPECT_EQ(against([&](State& s) { s.add("weigth", weight).add("bias", bias).add("step", step); }),
            ": 2 of its contents do not fit the program: weigth is not in the checkpoint (is weight meant?); weight is only "
            "in the checkpoint (is weigth meant?)");
  EXPECT_EQ(against([&](State& s) { s.add("weight", weight).add("bias", bias).add("step", real); }),
            ": 1 of its contents do not fit the program: step is an integer in the checkpoint, a real number in the program");
  EXPECT_EQ(against([&](State& s) { s.add("weight", weight).add("bias", bias); }),
            ": 1 of its contents do not fit the program: step is only in the checkpoint");
  State same;
  same.add("weight", weight).add("bias", bias).add("step", step);
  EXPECT_EQ(refusal(path, same, {.only = {"wieght"}}),
            ": 1 of its contents do not fit the program: only = \"wieght\" chooses nothing of the program; it has weight and "
            "others");
}

TEST(LoadRefuses, AnotherOptimizerAndOtherTies) {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "saved";
  test::Net net = test::make_net();
  torch::optim::AdamW adam(net->parameters(), torch::optim::AdamWOptions(1e-2));
  State saved;
  saved.add("net", *net).add("optimizer", adam);
  save(path, saved);
  torch::optim::SGD sgd(net->parameters(), torch::optim::SGDOptions(1e-2));
  State state;
  state.add("net", *net).add("optimizer", sgd);
  const std::string message = refusal(path, state);
  EXPECT_NE(message.find("kind is \"adamw\" in the checkpoint, \"sgd\" in the program"), std::string::npos) << message;
  at::Tensor a = torch::ones({2});
  at::Tensor b = torch::ones({2});
  State apart;
  apart.add("a", a).add("b", b);
  save(folder.path() / "apart", apart);
  State tied;
  tied.add("a", a).add("b", a);
  EXPECT_NE(refusal(folder.path() / "apart", tied).find("b is the same tensor as a in the program, another one in the"),
            std::string::npos);
}

TEST(LoadRefuses, WhatIsNoCheckpointAndANewerFormat) {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "saved";
  at::Tensor weight = torch::ones({2, 3});
  State state;
  state.add("weight", weight);
  EXPECT_EQ(refusal<FileError>(path, state), ": there is no such folder; name that of a checkpoint");
  fs::create_directory(path);
  EXPECT_EQ(refusal<FileError>(path, state), ": has no manifest.json; name the folder of a checkpoint");
  save(path, state);
  std::ifstream in(path / "manifest.json");
  std::string text{std::istreambuf_iterator<char>(in), {}};
  text.replace(text.find("\"format\":1"), 10, "\"format\":2");
  std::ofstream(path / "manifest.json") << text;
  std::ofstream(path / "manifest.json.xxh3") << checkpoint::digest_of(text.data(), text.size()) << '\n';
  EXPECT_EQ(refusal(path, state),
            "/manifest.json: format 2; allowed: 1; read it with the version of Tessera that wrote it");
}

TEST(SaveRefuses, WhatItCannotHold) {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "saved";
  State state;
  at::Tensor complex = torch::ones({2}, torch::kComplexDouble);
  state.add("z", complex);
  EXPECT_EQ(message_of<ConfigError>([&] { save(path, state); }).find("save: tensor \"z\" is of ComplexDouble; allowed: F64"),
            0U);
  test::Net net = test::make_net();
  torch::optim::SGD sgd(net->parameters(), torch::optim::SGDOptions(1e-2));
  State early;
  early.add("optimizer", sgd).add("net", *net);
  EXPECT_NE(message_of<ConfigError>([&] { save(path, early); }).find("add its module before it"), std::string::npos);
  at::Tensor x = torch::ones({2});
  EXPECT_NE(message_of<ConfigError>([&] { early.add("net", x); }).find("\"net\""), std::string::npos);
  EXPECT_THROW(early.add("net.first", x), ConfigError);
  EXPECT_THROW(early.add("", x), ConfigError);
  State bytes;
  std::string text = "\xFF";
  bytes.add("text", text);
  EXPECT_NE(message_of<ConfigError>([&] { save(path, bytes); }).find("not UTF-8"), std::string::npos);
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

TEST(SaveRefuses, ToReplaceWhatIsNoCheckpoint) {
  const TemporaryFolder folder;
  at::Tensor x = torch::ones({2});
  State state;
  state.add("x", x);
  fs::create_directory(folder.path() / "mine");
  folder.write("mine/thesis.txt", "words");
  EXPECT_NE(message_of<ConfigError>([&] { save(folder.path() / "mine", state); }).find("\"thesis.txt\""), std::string::npos);
  folder.write("file", "words");
  EXPECT_THROW(save(folder.path() / "file", state), ConfigError);
  EXPECT_THROW(save(folder.path() / "file" / "below", state), FileError);
  EXPECT_THROW(save("..", state), ConfigError);
}

TEST(SaveRefuses, AFolderThatAnotherJobWrites) {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "saved";
  at::Tensor x = torch::ones({2});
  State state;
  state.add("x", x);
  {
    const auto other = checkpoint::begin_folder(checkpoint::real_files(), path);
    EXPECT_NE(message_of<CheckpointBusy>([&] { save(path, state); }).find("another job is writing it"), std::string::npos);
    save(folder.path() / "another", state);
    EXPECT_TRUE(fs::exists(other.path));
  }
  save(path, state);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 2);
}

TEST(SaveRefuses, AReadOnlyFolder) {
  if (::geteuid() == 0) GTEST_SKIP() << "root may write everywhere";
  const TemporaryFolder folder;
  fs::permissions(folder.path(), fs::perms::owner_read | fs::perms::owner_exec);
  at::Tensor x = torch::ones({2});
  State state;
  state.add("x", x);
  EXPECT_NE(message_of<FileError>([&] { save(folder.path() / "saved", state); }).find("Permission denied"), std::string::npos);
  fs::permissions(folder.path(), fs::perms::owner_all);
}

TEST(SaveRefuses, RanksThatDisagreeAndAllOfThemSaySo) {
  const TemporaryFolder folder;
  test::on_mesh("dp=2", [&](const Mesh& mesh) {
    at::Tensor x = torch::ones({2 + mesh.rank()});
    State state;
    state.add("mesh", mesh).add("x", x);
    EXPECT_EQ(message_of<ConfigError>([&] { save(folder.path() / "saved", state); }),
              "save: rank 1 has other tensors in its state than rank 0; add the same parts on every rank");
  });
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

}  // namespace
}  // namespace tessera
