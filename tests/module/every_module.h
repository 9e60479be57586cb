// SPDX-License-Identifier: Apache-2.0
// A table of the module classes of torch::nn: how each is made, what it is given and how it is called.
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace tessera::test {

using Tensors = std::vector<at::Tensor>;

/// What a module is given: real numbers, or integers below `classes` if that is not 0. Data-parallel axes cut the
/// batch.
struct InputSpec {
  std::vector<std::int64_t> sizes;
  std::int64_t classes = 0;
  std::int64_t batch_dim = 0;
};

/// A module and how it is called: outputs of the inputs.
struct Callable {
  std::shared_ptr<torch::nn::Module> module;
  std::function<Tensors(const Tensors&)> call;
};

struct ModuleCase {
  std::string name;  ///< the class, or the class and "_variant"
  std::vector<InputSpec> inputs;
  std::function<Callable()> make;
  /// It draws numbers: plain LibTorch draws others, so a mesh of one rank says what is right.
  bool random = false;
  /// Operators that have no rule and run gathered and replicated on some mesh; exactly these, no more and no fewer.
  std::set<std::string> fallbacks = {};

  [[nodiscard]] std::string class_name() const { return name.substr(0, name.find('_')); }
};

/// The tables, one per kind; each is a translation unit.
[[nodiscard]] std::vector<ModuleCase> layer_cases();
[[nodiscard]] std::vector<ModuleCase> sequence_cases();
[[nodiscard]] std::vector<ModuleCase> elementwise_cases();
[[nodiscard]] std::vector<ModuleCase> plane_cases();
[[nodiscard]] std::vector<ModuleCase> loss_cases();
[[nodiscard]] std::vector<ModuleCase> container_cases();

/// One tensor or several -> several.
[[nodiscard]] inline Tensors as_list(at::Tensor output) { return {std::move(output)}; }
[[nodiscard]] inline Tensors as_list(Tensors outputs) { return outputs; }

/// `make` gives a module holder, `call` its outputs of the inputs.
template <class Make, class Call>
[[nodiscard]] ModuleCase module_case(std::string name, std::vector<InputSpec> inputs, Make make, Call call) {
  const auto make_callable = [make, call]() -> Callable {
    auto holder = make();
    return {holder.ptr(), [holder, call](const Tensors& x) mutable { return as_list(call(holder, x)); }};
  };
  return {std::move(name), std::move(inputs), make_callable};
}

/// A module of one input, made from its options.
template <class Holder, class... Options>
[[nodiscard]] ModuleCase unary(std::string name, std::vector<std::int64_t> sizes, const Options&... options) {
  return module_case(
      std::move(name), {{std::move(sizes)}}, [options...] { return Holder(options...); },
      [](Holder& module, const Tensors& x) { return module(x[0]); });
}

/// A module of two inputs.
template <class Holder, class... Options>
[[nodiscard]] ModuleCase binary(std::string name, InputSpec first, InputSpec second, const Options&... options) {
  return module_case(
      std::move(name), {std::move(first), std::move(second)}, [options...] { return Holder(options...); },
      [](Holder& module, const Tensors& x) { return module(x[0], x[1]); });
}

[[nodiscard]] inline ModuleCase drawing(ModuleCase test) {
  test.random = true;
  return test;
}
[[nodiscard]] inline ModuleCase gathering(ModuleCase test, std::set<std::string> operators) {
  test.fallbacks = std::move(operators);
  return test;
}

}  // namespace tessera::test
