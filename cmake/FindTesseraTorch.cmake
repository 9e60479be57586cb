# SPDX-License-Identifier: Apache-2.0
# Finds LibTorch without TorchConfig.cmake, whose CUDA probe fails on CUDA wheels, and makes the imported target
# Tessera::torch (libtorch_cpu + libc10). Looks at TESSERA_TORCH, CMAKE_PREFIX_PATH, then the project's own .venv.
file(GLOB _tessera_venv "${PROJECT_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch")
find_path(TesseraTorch_INCLUDE_DIR ATen/core/Tensor.h
  HINTS ${TESSERA_TORCH} PATHS ${_tessera_venv} PATH_SUFFIXES include)
cmake_path(GET TesseraTorch_INCLUDE_DIR PARENT_PATH TesseraTorch_ROOT)
find_library(TesseraTorch_CPU_LIBRARY torch_cpu HINTS "${TesseraTorch_ROOT}/lib" NO_DEFAULT_PATH)
find_library(TesseraTorch_C10_LIBRARY c10 HINTS "${TesseraTorch_ROOT}/lib" NO_DEFAULT_PATH)

if(TesseraTorch_INCLUDE_DIR AND EXISTS "${TesseraTorch_INCLUDE_DIR}/torch/headeronly/version.h")
  file(STRINGS "${TesseraTorch_INCLUDE_DIR}/torch/headeronly/version.h" _version REGEX "#define TORCH_VERSION_M[AI][JN]OR|#define TORCH_VERSION_PATCH")
  string(REGEX REPLACE ".*MAJOR ([0-9]+).*MINOR ([0-9]+).*PATCH ([0-9]+).*" "\\1.\\2.\\3" TesseraTorch_VERSION "${_version}")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(TesseraTorch
  REQUIRED_VARS TesseraTorch_CPU_LIBRARY TesseraTorch_C10_LIBRARY TesseraTorch_INCLUDE_DIR
  VERSION_VAR TesseraTorch_VERSION
  REASON_FAILURE_MESSAGE "name a LibTorch >= 2.11 with -DTESSERA_TORCH=.../torch, or run `make setup`")

if(TesseraTorch_FOUND AND NOT TARGET Tessera::torch)
  # CUDA wheels need these two even on machines without a GPU.
  file(GLOB _tessera_cuda_runtime
    "${TesseraTorch_ROOT}/../nvidia/cu13/lib" /usr/local/cuda/lib64 /usr/local/cuda/extras/CUPTI/lib64)
  add_library(Tessera::torch INTERFACE IMPORTED)
  target_include_directories(Tessera::torch SYSTEM INTERFACE
    "${TesseraTorch_INCLUDE_DIR}" "${TesseraTorch_INCLUDE_DIR}/torch/csrc/api/include")
  target_compile_definitions(Tessera::torch INTERFACE _GLIBCXX_USE_CXX11_ABI=1 USE_DISTRIBUTED USE_C10D_GLOO)
  target_link_libraries(Tessera::torch INTERFACE
    -Wl,--push-state,--no-as-needed "${TesseraTorch_CPU_LIBRARY}" "${TesseraTorch_C10_LIBRARY}" -Wl,--pop-state)
  target_link_options(Tessera::torch INTERFACE "-Wl,-rpath,${TesseraTorch_ROOT}/lib")
  foreach(_dir IN LISTS _tessera_cuda_runtime)
    target_link_options(Tessera::torch INTERFACE "-Wl,-rpath-link,${_dir}")
  endforeach()
endif()
