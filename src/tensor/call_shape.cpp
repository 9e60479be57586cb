// SPDX-License-Identifier: Apache-2.0
// Shapes of results as words.
#include "tensor/call_shape.h"

#include <bit>

#include "tessera/base/error.h"

namespace tessera::tensor {
namespace {

enum Number : std::int64_t { kNoNumber, kInteger, kReal, kBoolean, kComplex };

ResultShape shape_of(const at::Tensor& tensor) {
  if (!tensor.defined()) return {};
  return {true, tensor.scalar_type(), Sizes(tensor.sizes().begin(), tensor.sizes().end()),
          Sizes(tensor.strides().begin(), tensor.strides().end()), tensor.storage_offset()};
}

void add_words(std::vector<std::int64_t>& words, const ResultShape& shape) {
  words.push_back(shape.defined ? static_cast<std::int64_t>(shape.sizes.size()) : -1);
  if (!shape.defined) return;
  words.push_back(static_cast<std::int64_t>(shape.dtype));
  words.push_back(shape.offset);
  words.insert(words.end(), shape.sizes.begin(), shape.sizes.end());
  words.insert(words.end(), shape.strides.begin(), shape.strides.end());
}

void add_words(std::vector<std::int64_t>& words, const c10::IValue& number) {
  const auto bits = [](double value) { return std::bit_cast<std::int64_t>(value); };
  if (number.isInt()) {
    words.insert(words.end(), {kInteger, number.toInt(), 0});
  } else if (number.isDouble()) {
    words.insert(words.end(), {kReal, bits(number.toDouble()), 0});
  } else if (number.isBool()) {
    words.insert(words.end(), {kBoolean, number.toBool() ? 1 : 0, 0});
  } else if (number.isComplexDouble()) {
    const auto value = number.toComplexDouble();
    words.insert(words.end(), {kComplex, bits(value.real()), bits(value.imag())});
  } else {
    words.insert(words.end(), {kNoNumber, 0, 0});
  }
}

/// Reads words one by one; asking for more than there are is an error.
struct Reader {
  std::span<const std::int64_t> words;

  std::int64_t next() {
    check<CommunicationError>(!words.empty(),
                              "stages: a message about the shape of a result is too short; run the same "
                              "build of the program on every rank");
    const std::int64_t word = words.front();
    words = words.subspan(1);
    return word;
  }
  Sizes sizes(std::int64_t count) {
    Sizes result;
    for (std::int64_t i = 0; i < count; ++i) result.push_back(next());
    return result;
  }
  ResultShape shape() {
    const std::int64_t dims = next();
    if (dims < 0) return {};
    ResultShape shape{true, static_cast<at::ScalarType>(next()), {}, {}, next()};
    shape.sizes = sizes(dims);
    shape.strides = sizes(dims);
    return shape;
  }
  c10::IValue number() {
    const std::int64_t kind = next();
    const std::int64_t first = next();
    const std::int64_t second = next();
    const auto real = [](std::int64_t bits) { return std::bit_cast<double>(bits); };
    switch (kind) {
      case kInteger:
        return first;
      case kReal:
        return real(first);
      case kBoolean:
        return first != 0;
      case kComplex:
        return c10::complex<double>(real(first), real(second));
      default:
        return {};
    }
  }
};

}  // namespace

std::vector<OutputShape> shapes_of(c10::ArrayRef<c10::IValue> outputs, const std::string& operator_name) {
  std::vector<OutputShape> result;
  for (const c10::IValue& value : outputs) {
    OutputShape& output = result.emplace_back();
    if (value.isTensor()) {
      output.tensors.push_back(shape_of(value.toTensor()));
    } else if (value.isTensorList()) {
      output.is_list = true;
      for (const c10::IValue& item : value.toListRef()) output.tensors.push_back(shape_of(item.toTensor()));
    } else if (value.isScalar()) {
      output.number = value;
    } else if (!value.isNone()) {
      throw ShapeError(
          fmt::format("{} gives a {}, which cannot be told to ranks of other pipeline stages; call it on "
                      "tessera::full of its tensors",
                      operator_name, value.tagKind()));
    }
  }
  return result;
}

std::vector<std::int64_t> to_words(const CallShape& shape) {
  std::vector<std::int64_t> words{shape.num_draws, static_cast<std::int64_t>(shape.outputs.size())};
  for (const OutputShape& output : shape.outputs) {
    words.push_back(output.is_list ? 1 : 0);
    words.push_back(static_cast<std::int64_t>(output.tensors.size()));
    for (const ResultShape& tensor : output.tensors) add_words(words, tensor);
    add_words(words, output.number);
  }
  return words;
}

CallShape from_words(std::span<const std::int64_t> words) {
  Reader reader{words};
  CallShape result;
  result.num_draws = reader.next();
  result.outputs.resize(static_cast<std::size_t>(reader.next()));
  for (OutputShape& output : result.outputs) {
    output.is_list = reader.next() != 0;
    output.tensors.resize(static_cast<std::size_t>(reader.next()));
    for (ResultShape& tensor : output.tensors) tensor = reader.shape();
    output.number = reader.number();
  }
  return result;
}

}  // namespace tessera::tensor
