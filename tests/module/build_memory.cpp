// SPDX-License-Identifier: Apache-2.0
// One rank of a job whose ranks may each take half the memory of the model's parameters: builds it, and takes a step of
// SGD if asked to. Fails if memory does not suffice, or if it would have sufficed for the whole parameters.
//
//   build_memory --nproc 4                      parameters only
//   build_memory --nproc 8 train                parameters, gradients, and a step after backward
//   build_memory --nproc 4 train_in_backward    parameters, each updated as soon as its gradient is there
#include <malloc.h>
#include <sys/resource.h>

#include <tessera/tessera.h>
#include <torch/torch.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iostream>
#include <optional>
#include <string>

namespace {

constexpr std::int64_t kWidth = 1024;
constexpr int kLayers = 48;
constexpr rlim_t kParameterBytes = rlim_t{kLayers} * kWidth * kWidth * sizeof(float);
constexpr rlim_t kAllowance = kParameterBytes / 2;

torch::nn::Sequential make_model(int layers) {
  torch::nn::Sequential model;
  for (int i = 0; i < layers; ++i) {
    model->push_back(torch::nn::Linear(torch::nn::LinearOptions(kWidth, kWidth).bias(false)));
    model->push_back(torch::nn::Tanh());
  }
  return model;
}

/// Private memory that this process may write, in bytes: what RLIMIT_DATA limits.
rlim_t data_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmData:")) return std::stoull(line.substr(7)) * 1024;
  }
  throw std::runtime_error("build_memory: /proc/self/status has no VmData");
}

void limit_data(rlim_t bytes) {
  const rlimit limit{bytes, bytes};
  if (setrlimit(RLIMIT_DATA, &limit) != 0) {
    throw std::runtime_error(std::string("build_memory: setrlimit: ") + std::strerror(errno));
  }
}

enum class Update { kNone, kAfterBackward, kInBackward };

Update update_named(const std::string& name) {
  if (name == "train") return Update::kAfterBackward;
  return name == "train_in_backward" ? Update::kInBackward : Update::kNone;
}

double train_step(torch::nn::Sequential& model, const tessera::Mesh& mesh, Update update) {
  const torch::optim::SGDOptions options(0.1);
  torch::optim::SGD optimizer(model->parameters(), options);
  std::optional<tessera::ApplyInBackward> updates;
  if (update == Update::kInBackward)
    updates.emplace(tessera::apply_in_backward<torch::optim::SGD>(model->parameters(), options));
  const auto x = tessera::shard_batch(mesh, torch::linspace(-1, 1, 2 * mesh.size() * kWidth).view({-1, kWidth}));
  const auto loss = tessera::step(*model, x, x * 0.5,
                                  [](const auto& y, const auto& target) { return torch::mse_loss(y, target); });
  if (update == Update::kAfterBackward) optimizer.step();
  return loss.template item<double>();
}

/// True if the whole model fits, which would make the limit pointless.
bool fits_whole() {
  try {
    (void)make_model(kLayers);
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

int run(const tessera::Mesh& mesh, Update update) {
  const tessera::Plan plan = tessera::Plan().zero(3);
  // What libraries and transports keep from their first use is no part of the model.
  torch::nn::Sequential small = tessera::build(mesh, plan, [] { return make_model(1); });
  (void)train_step(small, mesh, update);
  const rlim_t before = data_bytes();
  limit_data(before + kAllowance);
  torch::nn::Sequential model = tessera::build(mesh, plan, [] { return make_model(kLayers); });
  const rlim_t built = data_bytes();
  const double loss = update == Update::kNone ? 0 : train_step(model, mesh, update);
  const rlim_t trained = data_bytes();
  if (mesh.rank() == 0) {
    std::cout << (kParameterBytes >> 20) << " MiB of parameters over " << mesh.size() << " ranks that may take "
              << (kAllowance >> 20) << " MiB each: " << ((built - before) >> 20) << " MiB after building, "
              << ((trained - before) >> 20) << " MiB after the step, loss " << loss << std::endl;
  }
  if (fits_whole()) {
    std::cerr << "build_memory: the limit lets the whole model in, so this proves nothing" << std::endl;
    return 1;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  // What is freed goes back to the system, so that the limit is about what is held and not about a heap's holes.
  mallopt(M_MMAP_THRESHOLD, 1 << 16);
  const tessera::Ranks ranks = tessera::launch(argc, argv, {.threads_per_rank = 1});
  const tessera::Mesh mesh(ranks, {{"dp_shard", -1}});
  return run(mesh, update_named(argc > 1 ? argv[1] : ""));
}
