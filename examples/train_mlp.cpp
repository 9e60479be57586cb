// SPDX-License-Identifier: Apache-2.0
// The same program trains alone, on several local ranks and under torchrun:
//
//   train_mlp                                            one device
//   tessera run --nproc 4 -- train_mlp                   four local ranks
//   train_mlp --nproc 4                                  the same, started by the program itself
//   torchrun --nproc-per-node 4 --no-python train_mlp    torch's launcher
#include <tessera/tessera.h>
#include <torch/torch.h>

#include <iostream>

/// An ordinary module: nothing in it knows about ranks.
struct MlpImpl : torch::nn::Module {
  MlpImpl()
      : up(register_module("up", torch::nn::Linear(16, 64))),
        down(register_module("down", torch::nn::Linear(64, 16))),
        out(register_module("out", torch::nn::Linear(16, 4))) {}
  torch::Tensor forward(const torch::Tensor& x) { return out(x + down(torch::gelu(up(x)))); }
  torch::nn::Linear up, down, out;
};
TORCH_MODULE(Mlp);

/// The class of a sample is the largest of its first four numbers.
std::pair<torch::Tensor, torch::Tensor> make_batch(int step) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(static_cast<std::uint64_t>(step));
  const auto x = torch::randn({64, 16}, generator);
  return {x, x.slice(1, 0, 4).argmax(1)};
}

int main(int argc, char** argv) {
  const tessera::Ranks ranks = tessera::launch(argc, argv);
  const int tp = ranks.size() % 2 == 0 ? 2 : 1;
  const tessera::Mesh mesh(ranks, {{"dp", -1}, {"tp", tp}});

  torch::manual_seed(0);
  Mlp model;
  tessera::Plan plan;
  plan.add("up.*", {{"tp", tessera::Shard(0)}}).add("down.weight", {{"tp", tessera::Shard(1)}});
  tessera::distribute(*model, mesh, plan);
  torch::optim::AdamW optimizer(model->parameters(), torch::optim::AdamWOptions(1e-2));

  for (int step = 0; step < 100; ++step) {
    const auto [x, y] = make_batch(step);
    optimizer.zero_grad();
    const auto loss = tessera::step(*model, tessera::shard_batch(mesh, x), tessera::shard_batch(mesh, y),
                                    [](const auto& output, const auto& target) {
                                      return torch::nn::functional::cross_entropy(output, target);
                                    });
    optimizer.step();
    if (ranks.rank() == 0 && step % 20 == 19) {
      std::cout << "mesh " << mesh.to_string() << "  step " << step + 1 << "  loss " << loss.item<double>() << std::endl;
    }
  }
}
