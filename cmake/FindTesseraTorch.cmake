# SPDX-License-Identifier: Apache-2.0
# Finds LibTorch >= 2.11 without TorchConfig.cmake, whose CUDA probe fails on CUDA wheels.
#
# Places, in this order; the first that is complete, new enough and of the C++11 ABI wins:
#   TESSERA_TORCH            a wheel's torch/, the libtorch zip, a conda or virtual environment; if set, nothing else counts
#   CMAKE_PREFIX_PATH        the same, or the share/cmake that torch.utils.cmake_prefix_path names
#   TESSERA_TORCH_HINTS      set by the installed package to the LibTorch that it was built with
#   .venv of the project     what `make setup` makes
#   python3 on the PATH      the wheel that this interpreter would import; Python itself is not linked
#
# Results
#   TesseraTorch_ROOT, TesseraTorch_VERSION
#   Tessera::torch           torch_cpu and c10, their headers as system headers, fmt (which LibTorch ships)
#   Tessera::torch_cuda      torch_cuda and c10_cuda, only if this LibTorch has them
include(FindPackageHandleStandardArgs)

set(TESSERA_TORCH "" CACHE PATH "LibTorch to build against: a wheel's torch/ folder, the libtorch zip or an environment")

# Folders that may hold include/ and lib/, for one place that a user may name.
function(_tessera_torch_roots place result)
  set(roots "${place}")
  # share/cmake and share/cmake/Torch
  list(APPEND roots "${place}/../.." "${place}/../../.." "${place}/torch" "${place}/libtorch")
  file(GLOB wheels "${place}/lib/python3*/site-packages/torch" "${place}/lib64/python3*/site-packages/torch")
  list(APPEND roots ${wheels})
  set(${result} "${roots}" PARENT_SCOPE)
endfunction()

function(_tessera_torch_version root result)
  set(version "")
  foreach(header torch/headeronly/version.h torch/csrc/api/include/torch/version.h)
    if(NOT version AND EXISTS "${root}/include/${header}")
      file(STRINGS "${root}/include/${header}" lines REGEX "define TORCH_VERSION_(MAJOR|MINOR|PATCH) ")
      string(REGEX REPLACE ".*MAJOR ([0-9]+).*MINOR ([0-9]+).*PATCH ([0-9]+).*" "\\1.\\2.\\3" version "${lines}")
    endif()
  endforeach()
  if(NOT version MATCHES "^[0-9]+\\.[0-9]+" AND EXISTS "${root}/version.py")
    file(STRINGS "${root}/version.py" line REGEX "^__version__")
    string(REGEX REPLACE ".*'([0-9]+\\.[0-9]+\\.[0-9]+).*" "\\1" version "${line}")
  endif()
  set(${result} "${version}" PARENT_SCOPE)
endfunction()

# Why `root` cannot be used; empty if it can.
function(_tessera_torch_refusal root result)
  set(refusal "")
  _tessera_torch_version("${root}" version)
  if(NOT EXISTS "${root}/lib/libtorch_cpu.so" OR NOT EXISTS "${root}/lib/libc10.so")
    set(refusal "it has headers but no lib/libtorch_cpu.so and lib/libc10.so")
  elseif(NOT version)
    set(refusal "its version cannot be read")
  elseif(TesseraTorch_FIND_VERSION AND version VERSION_LESS TesseraTorch_FIND_VERSION)
    set(refusal "it is LibTorch ${version}, and ${TesseraTorch_FIND_VERSION} or newer is needed")
  else()
    file(STRINGS "${root}/lib/libc10.so" modern REGEX "NSt7__cxx1112basic_string" LIMIT_COUNT 1)
    if(NOT modern)
      set(refusal "it was built with the pre-C++11 ABI: take a cxx11-abi build")
    endif()
  endif()
  set(${result} "${refusal}" PARENT_SCOPE)
endfunction()

# The wheel of the interpreter on the PATH, found without importing it.
function(_tessera_torch_of_python result)
  set(${result} "" PARENT_SCOPE)
  find_program(TESSERA_PYTHON NAMES python3 python)
  mark_as_advanced(TESSERA_PYTHON)
  if(TESSERA_PYTHON)
    execute_process(
      COMMAND "${TESSERA_PYTHON}" -c
              "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
      OUTPUT_VARIABLE place ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
    set(${result} "${place}" PARENT_SCOPE)
  endif()
endfunction()

function(_tessera_torch_search root_result refused_result)
  if(TESSERA_TORCH)
    set(places "${TESSERA_TORCH}")
  else()
    file(TO_CMAKE_PATH "$ENV{CMAKE_PREFIX_PATH}" environment_prefixes)
    _tessera_torch_of_python(wheel)
    set(places ${CMAKE_PREFIX_PATH} ${environment_prefixes} ${TESSERA_TORCH_HINTS} ${wheel})
  endif()
  set(refused "")
  foreach(place IN LISTS places)
    _tessera_torch_roots("${place}" roots)
    foreach(root IN LISTS roots)
      if(EXISTS "${root}/include/ATen/core/Tensor.h")
        cmake_path(NORMAL_PATH root)
        string(REGEX REPLACE "/$" "" root "${root}")
        _tessera_torch_refusal("${root}" refusal)
        if(NOT refusal)
          set(${root_result} "${root}" PARENT_SCOPE)
          return()
        endif()
        string(APPEND refused "\n  ${root}: ${refusal}")
      endif()
    endforeach()
  endforeach()
  set(${refused_result} "${refused}" PARENT_SCOPE)
endfunction()

# CUDA builds need libcudart and libcupti even on machines without a GPU. Lists their folders, or says what is missing.
function(_tessera_cuda_runtime root folders_result missing_result)
  set(${missing_result} "" PARENT_SCOPE)
  set(${folders_result} "" PARENT_SCOPE)
  find_program(TESSERA_READELF NAMES readelf llvm-readelf)
  mark_as_advanced(TESSERA_READELF)
  if(NOT TESSERA_READELF)
    return()
  endif()
  execute_process(COMMAND "${TESSERA_READELF}" -d "${root}/lib/libtorch_cpu.so" OUTPUT_VARIABLE dynamic ERROR_QUIET)
  string(REGEX MATCHALL "lib(cudart|cupti)[-.a-z0-9]*\\.so\\.?[0-9]*" libraries "${dynamic}")
  file(GLOB candidates LIST_DIRECTORIES true
    "${root}/lib" "${root}/../nvidia/cu*/lib" "${root}/../nvidia/cuda_*/lib"
    /usr/local/cuda/lib64 /usr/local/cuda/extras/CUPTI/lib64
    /usr/local/cuda-*/lib64 /usr/local/cuda-*/extras/CUPTI/lib64 /usr/local/lib /usr/lib/*-linux-gnu)
  list(APPEND candidates $ENV{CUDA_HOME}/lib64 $ENV{CUDA_HOME}/extras/CUPTI/lib64)
  set(folders "")
  set(missing "")
  foreach(library IN LISTS libraries)
    set(home "")
    foreach(folder IN LISTS candidates)
      if(NOT home AND EXISTS "${folder}/${library}")
        set(home "${folder}")
      endif()
    endforeach()
    if(home)
      list(APPEND folders "${home}")
    else()
      list(APPEND missing "${library}")
    endif()
  endforeach()
  list(REMOVE_DUPLICATES folders)
  set(${folders_result} "${folders}" PARENT_SCOPE)
  set(${missing_result} "${missing}" PARENT_SCOPE)
endfunction()

# The pip packages that bring the missing libraries, for one CUDA major version.
function(_tessera_cuda_runtime_remedy missing result)
  if(missing MATCHES "\\.so\\.12")
    set(packages "nvidia-cuda-runtime-cu12 nvidia-cuda-cupti-cu12")
  else()
    set(packages "\"nvidia-cuda-runtime==13.0.*\" \"nvidia-cuda-cupti==13.0.*\"")
  endif()
  set(${result} "pip install --no-deps ${packages}" PARENT_SCOPE)
endfunction()

set(TesseraTorch_ROOT "")
set(_tessera_reason "")
_tessera_torch_search(TesseraTorch_ROOT _tessera_refused)
if(TesseraTorch_ROOT)
  _tessera_torch_version("${TesseraTorch_ROOT}" TesseraTorch_VERSION)
  string(REGEX MATCH "^([0-9]+)\\.([0-9]+)" _tessera_match "${TesseraTorch_VERSION}")
  set(TesseraTorch_VERSION_MAJOR "${CMAKE_MATCH_1}")
  set(TesseraTorch_VERSION_MINOR "${CMAKE_MATCH_2}")
  _tessera_cuda_runtime("${TesseraTorch_ROOT}" _tessera_cuda_folders _tessera_cuda_missing)
  if(_tessera_cuda_missing)
    _tessera_cuda_runtime_remedy("${_tessera_cuda_missing}" _tessera_remedy)
    list(JOIN _tessera_cuda_missing ", " _tessera_missing_text)
    set(_tessera_reason "${TesseraTorch_ROOT} is a CUDA build and needs ${_tessera_missing_text} to start, even on a \
machine without a GPU. Into the environment of that wheel: ${_tessera_remedy}")
    set(TesseraTorch_ROOT "")
    unset(TesseraTorch_VERSION)
  endif()
else()
  if(TESSERA_TORCH)
    set(_tessera_reason "no usable LibTorch below TESSERA_TORCH=${TESSERA_TORCH}.")
  else()
    set(_tessera_reason "no usable LibTorch in CMAKE_PREFIX_PATH, the project's .venv or python3's packages.")
  endif()
  string(APPEND _tessera_reason " Run `make setup`, or name one with -DTESSERA_TORCH=/path/to/torch.")
  if(_tessera_refused)
    string(APPEND _tessera_reason " Looked at and refused:${_tessera_refused}")
  endif()
endif()

# A semicolon, from a list of folders, would be taken for the next argument.
string(REPLACE ";" "," _tessera_reason "${_tessera_reason}")
find_package_handle_standard_args(TesseraTorch
  REQUIRED_VARS TesseraTorch_ROOT VERSION_VAR TesseraTorch_VERSION REASON_FAILURE_MESSAGE "${_tessera_reason}")

if(TesseraTorch_FOUND AND NOT TARGET Tessera::torch)
  add_library(Tessera::torch INTERFACE IMPORTED GLOBAL)
  target_include_directories(Tessera::torch SYSTEM INTERFACE
    "${TesseraTorch_ROOT}/include" "${TesseraTorch_ROOT}/include/torch/csrc/api/include")
  target_compile_definitions(Tessera::torch INTERFACE _GLIBCXX_USE_CXX11_ABI=1 USE_DISTRIBUTED)
  # Operators register themselves from static objects: torch_cpu must be linked even if no symbol of it is named.
  target_link_libraries(Tessera::torch INTERFACE
    -Wl,--push-state,--no-as-needed
    "${TesseraTorch_ROOT}/lib/libtorch_cpu.so" "${TesseraTorch_ROOT}/lib/libc10.so"
    -Wl,--pop-state)
  target_link_options(Tessera::torch INTERFACE "LINKER:-rpath,${TesseraTorch_ROOT}/lib")
  foreach(_tessera_folder IN LISTS _tessera_cuda_folders)
    target_link_options(Tessera::torch INTERFACE "LINKER:-rpath-link,${_tessera_folder}")
  endforeach()

  # fmt is part of Tessera's public headers. LibTorch ships its headers, and they come first on the include path, so a
  # distribution's compiled fmt must not meet them: header-only, from whichever place has it.
  target_compile_definitions(Tessera::torch INTERFACE FMT_HEADER_ONLY=1)
  if(NOT EXISTS "${TesseraTorch_ROOT}/include/fmt/format.h")
    find_package(fmt REQUIRED)
    target_link_libraries(Tessera::torch INTERFACE fmt::fmt-header-only)
  endif()
endif()

if(TesseraTorch_FOUND AND NOT TARGET Tessera::torch_cuda AND EXISTS "${TesseraTorch_ROOT}/lib/libtorch_cuda.so")
  add_library(Tessera::torch_cuda INTERFACE IMPORTED GLOBAL)
  # torch_cuda needs a dozen NVIDIA libraries that only GPU machines have; they are resolved when the plug-in is loaded.
  target_link_libraries(Tessera::torch_cuda INTERFACE
    Tessera::torch
    -Wl,--push-state,--no-as-needed
    "${TesseraTorch_ROOT}/lib/libtorch_cuda.so" "${TesseraTorch_ROOT}/lib/libc10_cuda.so"
    -Wl,--pop-state)
  target_link_options(Tessera::torch_cuda INTERFACE "LINKER:--unresolved-symbols=ignore-in-shared-libs")
endif()
