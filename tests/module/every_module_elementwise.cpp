// SPDX-License-Identifier: Apache-2.0
// Activations and dropouts; containers.
#include "module/every_module.h"

namespace tessera::test {

namespace nn = torch::nn;
using at::Tensor;

std::vector<ModuleCase> elementwise_cases() {
  return {
      unary<nn::ELU>("ELU", {4, 3, 6}),
      unary<nn::SELU>("SELU", {4, 3, 6}),
      unary<nn::Hardshrink>("Hardshrink", {4, 3, 6}),
      unary<nn::Hardtanh>("Hardtanh", {4, 3, 6}),
      unary<nn::LeakyReLU>("LeakyReLU", {4, 3, 6}),
      unary<nn::LogSigmoid>("LogSigmoid", {4, 3, 6}),
      unary<nn::Softmax>("Softmax", {4, 3, 6}, nn::SoftmaxOptions(2)),
      unary<nn::Softmax>("Softmax_batch", {4, 3, 6}, nn::SoftmaxOptions(0)),
      unary<nn::Softmin>("Softmin", {4, 3, 6}, nn::SoftminOptions(2)),
      unary<nn::LogSoftmax>("LogSoftmax", {4, 3, 6}, nn::LogSoftmaxOptions(2)),
      unary<nn::Softmax2d>("Softmax2d", {4, 3, 2, 6}),
      unary<nn::ReLU>("ReLU", {4, 3, 6}),
      unary<nn::ReLU>("ReLU_inplace", {4, 3, 6}, nn::ReLUOptions(true)),
      unary<nn::ReLU6>("ReLU6", {4, 3, 6}),
      unary<nn::CELU>("CELU", {4, 3, 6}),
      unary<nn::GLU>("GLU", {4, 3, 6}),
      unary<nn::GELU>("GELU", {4, 3, 6}),
      unary<nn::GELU>("GELU_tanh", {4, 3, 6}, nn::GELUOptions().approximate("tanh")),
      unary<nn::SiLU>("SiLU", {4, 3, 6}),
      unary<nn::Mish>("Mish", {4, 3, 6}),
      unary<nn::Sigmoid>("Sigmoid", {4, 3, 6}),
      unary<nn::Softplus>("Softplus", {4, 3, 6}),
      unary<nn::Softshrink>("Softshrink", {4, 3, 6}),
      unary<nn::Softsign>("Softsign", {4, 3, 6}),
      unary<nn::Tanh>("Tanh", {4, 3, 6}),
      unary<nn::Tanhshrink>("Tanhshrink", {4, 3, 6}),
      unary<nn::Threshold>("Threshold", {4, 3, 6}, nn::ThresholdOptions(0.1, -0.5)),
      drawing(unary<nn::RReLU>("RReLU", {4, 3, 6})),
      drawing(unary<nn::RReLU>("RReLU_inplace", {4, 3, 6}, nn::RReLUOptions().inplace(true))),
      drawing(unary<nn::Dropout>("Dropout", {4, 3, 6})),
      drawing(unary<nn::Dropout2d>("Dropout2d", {4, 3, 2, 6})),
      drawing(unary<nn::Dropout3d>("Dropout3d", {4, 3, 2, 2, 6})),
      drawing(unary<nn::AlphaDropout>("AlphaDropout", {4, 3, 6})),
      drawing(unary<nn::FeatureAlphaDropout>("FeatureAlphaDropout", {4, 3, 6})),
  };
}

namespace {

/// Looks its parts up by index or by name.
template <class Container>
Tensor pass_through(Container& container, Tensor x) {
  for (const auto& part : *container) x = part->template as<nn::Linear>()->forward(x).tanh();
  return x;
}

nn::ModuleList make_list() { return nn::ModuleList(nn::Linear(6, 4), nn::Linear(4, 6)); }

nn::ModuleDict make_dict() {
  nn::ModuleDict dict;
  dict->update({{"first", nn::Linear(6, 4).ptr()}, {"second", nn::Linear(4, 6).ptr()}});
  return dict;
}

nn::ParameterList make_parameter_list() {
  nn::ParameterList list;
  list->append(torch::zeros({6, 4}));
  list->append(torch::zeros({4}));
  return list;
}

nn::ParameterDict make_parameter_dict() {
  nn::ParameterDict dict;
  dict->insert("weight", torch::zeros({6, 4}));
  dict->insert("bias", torch::zeros({4}));
  return dict;
}

}  // namespace

std::vector<ModuleCase> container_cases() {
  return {
      unary<nn::Identity>("Identity", {4, 6}),
      module_case(
          "Functional", {{{4, 6}}}, [] { return nn::Functional(torch::elu, 0.7, 1.0, 1.0); },
          [](nn::Functional& module, const Tensors& x) { return module(x[0]); }),
      module_case(
          "Sequential", {{{4, 6}}}, [] { return nn::Sequential(nn::Linear(6, 8), nn::Tanh(), nn::Linear(8, 3)); },
          [](nn::Sequential& module, const Tensors& x) { return module->forward(x[0]); }),
      module_case("ModuleList", {{{4, 6}}}, make_list,
                  [](nn::ModuleList& module, const Tensors& x) { return pass_through(module, x[0]); }),
      module_case("ModuleDict", {{{4, 6}}}, make_dict,
                  [](nn::ModuleDict& module, const Tensors& x) {
                    const Tensor hidden = (*module)["first"]->as<nn::Linear>()->forward(x[0]).tanh();
                    return (*module)["second"]->as<nn::Linear>()->forward(hidden);
                  }),
      module_case(
          "ParameterList", {{{4, 6}}}, make_parameter_list,
          [](nn::ParameterList& module, const Tensors& x) { return torch::matmul(x[0], (*module)[0]) + (*module)[1]; }),
      module_case("ParameterDict", {{{4, 6}}}, make_parameter_dict,
                  [](nn::ParameterDict& module, const Tensors& x) {
                    return torch::matmul(x[0], (*module)["weight"]) + (*module)["bias"];
                  }),
  };
}

}  // namespace tessera::test
