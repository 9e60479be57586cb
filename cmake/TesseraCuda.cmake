# SPDX-License-Identifier: Apache-2.0
# Whether the CUDA plug-in, libtessera_cuda.so, is built: by default where nvcc and NCCL's header are found. The library
# itself never links CUDA; it loads the plug-in when a GPU is there.
find_program(TESSERA_NVCC nvcc HINTS "$ENV{CUDA_HOME}/bin" /usr/local/cuda/bin)
if(TESSERA_NVCC)
  cmake_path(GET TESSERA_NVCC PARENT_PATH _tessera_cuda_bin)
  cmake_path(GET _tessera_cuda_bin PARENT_PATH _tessera_cuda_root)
endif()
find_path(TESSERA_NCCL_INCLUDE_DIR nccl.h HINTS "${_tessera_cuda_root}/include" "${TesseraTorch_ROOT}/../nvidia/nccl/include")
mark_as_advanced(TESSERA_NVCC TESSERA_NCCL_INCLUDE_DIR)

set(_tessera_cuda_default OFF)
if(TESSERA_NVCC AND TESSERA_NCCL_INCLUDE_DIR AND TARGET Tessera::torch_cuda)
  set(_tessera_cuda_default ON)
endif()
option(TESSERA_WITH_CUDA "CUDA plug-in (needs nvcc, nccl.h and a CUDA build of LibTorch)" ${_tessera_cuda_default})

if(TESSERA_WITH_CUDA)
  foreach(_tessera_need TESSERA_NVCC TESSERA_NCCL_INCLUDE_DIR)
    if(NOT ${_tessera_need})
      message(FATAL_ERROR "TESSERA_WITH_CUDA=ON, but ${_tessera_need} is not found; set it, or TESSERA_WITH_CUDA=OFF")
    endif()
  endforeach()
  if(NOT TARGET Tessera::torch_cuda)
    message(FATAL_ERROR "TESSERA_WITH_CUDA=ON, but ${TesseraTorch_ROOT} is a CPU build of LibTorch")
  endif()
endif()
