// SPDX-License-Identifier: Apache-2.0
// The one exception family, and the checks that throw it.
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <stdexcept>
#include <string>

namespace tessera {

/// Base of everything Tessera throws. The message is one line that names the operation, the offending value, what is
/// allowed and what to do.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
  /// Word used as `kind` in the JSON error line, for instance "config".
  [[nodiscard]] virtual const char* kind() const noexcept { return "error"; }
};

/// A flag, key, plan, mesh or environment variable is wrong. Programs exit with code 2.
class ConfigError : public Error {
 public:
  using Error::Error;
  [[nodiscard]] const char* kind() const noexcept override { return "config"; }
};

/// A tensor's shape, dtype, device or placement does not fit the operation.
class ShapeError : public Error {
 public:
  using Error::Error;
  [[nodiscard]] const char* kind() const noexcept override { return "shape"; }
};

/// A peer failed, a deadline passed, or two ranks disagree about the next collective.
class CommunicationError : public Error {
 public:
  using Error::Error;
  [[nodiscard]] const char* kind() const noexcept override { return "communication"; }
};

/// A file is missing, unreadable or malformed.
class FileError : public Error {
 public:
  using Error::Error;
  [[nodiscard]] const char* kind() const noexcept override { return "file"; }
};

/// Throws `E` with an fmt-formatted message unless `condition` holds. On in release builds: for callers' mistakes.
template <class E, class... Args>
void check(bool condition, fmt::format_string<Args...> format, Args&&... args) {
  if (!condition) [[unlikely]] {
    throw E(fmt::format(format, std::forward<Args>(args)...));
  }
}

}  // namespace tessera
