// SPDX-License-Identifier: Apache-2.0
// Finds the CUDA plug-in, looks for a GPU, and loads the one only where the other is.
#include "tessera/comm/cuda_plugin.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <filesystem>

#include "comm/cuda_plugin_entry.h"
#include "tessera/base/error.h"
#include "tessera/base/version.h"

namespace tessera::comm {

namespace detail {

namespace {

constexpr const char* kFileName = "libtessera_cuda.so";

// What the loader said last.
std::string loader_error() {
  const char* error = ::dlerror();
  return error == nullptr ? "no reason given" : error;
}

// A function of a loaded library; null if it has none of that name.
template <class Function>
Function find_function(void* library, const char* name) {
  return reinterpret_cast<Function>(::dlsym(library, name));
}

}  // namespace

std::string expected_plugin_versions() {
  const base::TorchVersion torch = base::compiled_torch_version();
  return fmt::format("Tessera {} on LibTorch {}.{}", base::version(), torch.major, torch.minor);
}

std::string cuda_plugin_path() {
  Dl_info self{};
  if (::dladdr(reinterpret_cast<const void*>(&load_cuda_makers), &self) == 0 || self.dli_fname == nullptr) {
    return kFileName;
  }
  const std::filesystem::path beside = std::filesystem::path(self.dli_fname).parent_path() / kFileName;
  std::error_code ignored;
  return std::filesystem::exists(beside, ignored) ? beside.string() : kFileName;
}

int count_gpus() {
  // The driver's own library: the CUDA runtime would bring a gigabyte along before it says no. Never closed, as the
  // driver keeps threads.
  void* driver = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (driver == nullptr) return 0;
  const auto initialise = find_function<int (*)(unsigned)>(driver, "cuInit");
  const auto count = find_function<int (*)(int*)>(driver, "cuDeviceGetCount");
  int num_gpus = 0;
  if (initialise == nullptr || count == nullptr || initialise(0) != 0 || count(&num_gpus) != 0) return 0;
  return num_gpus;
}

std::map<std::string, BackendMaker> load_cuda_plugin(const std::string& path, int num_gpus) {
  check<ConfigError>(num_gpus > 0,
                     "device cuda: the driver shows no GPU to this process (allowed: cpu, or cuda with an NVIDIA GPU and "
                     "driver); use --device cpu, or look at nvidia-smi and CUDA_VISIBLE_DEVICES");
  // Global, as LibTorch's own libraries look each other's symbols up; never closed, as operators stay registered.
  void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL);
  check<ConfigError>(library != nullptr,
                     "device cuda: the plug-in {} cannot be loaded: {} (needed: the plug-in beside libtessera.so or on "
                     "the loader's path, and the NVIDIA libraries of LibTorch); configure with -DTESSERA_WITH_CUDA=ON, "
                     "add the folder of a missing library to LD_LIBRARY_PATH, or use --device cpu",
                     path, loader_error());
  const auto function = find_function<CudaPluginFunction>(library, kCudaPluginSymbol);
  check<ConfigError>(function != nullptr,
                     "device cuda: {} has no symbol {} and is no plug-in of Tessera; remove it, and build the target "
                     "tessera_cuda",
                     path, kCudaPluginSymbol);
  const CudaPluginEntry* entry = function();
  const std::string expected = expected_plugin_versions();
  check<ConfigError>(entry->versions == expected,
                     "device cuda: the plug-in {} is of {}, this library of {}; they must be equal: build and install "
                     "both together",
                     path, entry->versions, expected);
  std::map<std::string, BackendMaker> makers;
  entry->add_makers(makers);
  return makers;
}

}  // namespace detail

std::map<std::string, BackendMaker> load_cuda_makers() {
  static const std::map<std::string, BackendMaker> kMakers =
      detail::load_cuda_plugin(detail::cuda_plugin_path(), detail::count_gpus());
  return kMakers;
}

}  // namespace tessera::comm
