// SPDX-License-Identifier: Apache-2.0
// Two processes with two stages each train in micro-batches: with plain random numbers in forward, a layer that is left out
// from the third step on, and a loss that one rank reads alone. Says what differs from one device.
#include <torch/torch.h>

#include <cmath>
#include <iostream>
#include <vector>

#include "tessera/tessera.h"

namespace {

struct NetImpl : torch::nn::Module {
  NetImpl() {
    for (int i = 0; i < 4; ++i) layers->push_back(torch::nn::Linear(6, 6));
    register_module("layers", layers);
    to(torch::kDouble);
    const torch::NoGradGuard no_grad;
    double phase = 0;
    for (at::Tensor& parameter : parameters()) {
      parameter.copy_((torch::arange(parameter.numel(), torch::kDouble) + ++phase).sin().view(parameter.sizes()) * 0.4);
    }
  }
  at::Tensor layer(std::size_t index, const at::Tensor& x) {
    return torch::tanh(layers[index]->as<torch::nn::Linear>()->forward(x));
  }
  torch::nn::ModuleList layers;
};
TORCH_MODULE(Net);

at::Tensor loss_of(Net& net, const at::Tensor& input, int step) {
  const auto options = torch::dtype(torch::kDouble);
  const at::Tensor noise = torch::randn({1, 6}, options);
  at::Tensor x = net->layer(1, net->layer(0, input) + noise);
  const at::Tensor more = torch::rand({1, 6}, options);
  if (step < 2) x = net->layer(2, x + more * noise);
  return (net->layer(3, x) * noise + more).pow(2).mean() + torch::randn({}, options) * x.mean();
}

std::vector<double> train(Net& net, const tessera::StepOptions& options, bool reads) {
  torch::manual_seed(5);
  torch::optim::SGD optimizer(net->parameters(), 0.1);
  std::vector<double> losses;
  for (int step = 0; step < 6; ++step) {
    optimizer.zero_grad();
    const at::Tensor x = torch::randn({9, 6}, torch::kDouble);  // the next numbers of the same generator
    const auto loss = [&](const std::vector<at::Tensor>& parts) { return loss_of(net, parts[0], step); };
    const at::Tensor value = tessera::step(*net, {x}, loss, options);
    optimizer.step();
    if (reads) losses.push_back(value.item<double>());
  }
  return losses;
}

}  // namespace

int main(int argc, char** argv) {
  const tessera::Ranks ranks = tessera::launch(argc, argv, {.threads_per_rank = 1});
  int mistakes = 0;
  for (const tessera::pipeline::ScheduleInfo& info : tessera::pipeline::schedules()) {
    if (info.default_chunks != 2) continue;
    const tessera::Mesh mesh(ranks, {{"pp", -1}});
    const tessera::StepOptions options{.microbatches = 4, .schedule = info.name};
    Net alone;
    const std::vector<double> expected = train(alone, options, true);
    Net net;
    const auto order = tessera::pipeline::stage_order(
        tessera::pipeline::make_schedule(info.name, {.ranks = 2, .chunks = 2, .microbatches = 4}));
    const auto plan = tessera::Plan().stages({{"layers.0"}, {"layers.1"}, {"layers.2"}, {"layers.3"}}, order);
    tessera::distribute(*net, mesh, plan);
    const std::vector<double> found = train(net, options, mesh.rank() == 0);
    for (std::size_t i = 0; i < found.size(); ++i) {
      if (std::abs(found[i] - expected[i]) < 1e-12) continue;
      std::cerr << info.name << ", step " << i << ": loss " << found[i] << ", on one device " << expected[i] << std::endl;
      ++mistakes;
    }
  }
  return mistakes == 0 ? 0 : 1;
}
