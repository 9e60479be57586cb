# SPDX-License-Identifier: Apache-2.0
# One precompiled <torch/torch.h> per build folder, shared by every target that needs it.

# tessera_torch_pch(TARGET): compiles TARGET with the precompiled <torch/torch.h>. For training, the command
# line, examples and their tests. Loading it costs about 5 s, so files that include single ATen headers (everything in
# libtessera) are faster without.
function(tessera_torch_pch target)
  if(NOT TESSERA_PCH)
    return()
  endif()
  target_precompile_headers(${target} REUSE_FROM tessera_pch)
  # A precompiled header only fits code compiled with the same flags: programs become -fPIC like the library, and
  # -Wpedantic counts, since it changes a predefined macro.
  set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
  target_compile_options(${target} PRIVATE -fPIC $<$<CXX_COMPILER_ID:GNU>:-fpch-preprocess>)
  target_link_libraries(${target} PRIVATE
    Tessera::torch Threads::Threads $<BUILD_INTERFACE:tessera_warnings> $<BUILD_INTERFACE:tessera_sanitizers>)
endfunction()

if(TESSERA_PCH)
  set(_tessera_pch_source "${PROJECT_BINARY_DIR}/pch/torch.cpp")
  file(CONFIGURE OUTPUT "${_tessera_pch_source}" CONTENT "// The precompiled header needs a source to belong to.\n")
  add_library(tessera_pch OBJECT EXCLUDE_FROM_ALL "${_tessera_pch_source}")
  target_link_libraries(tessera_pch PRIVATE Tessera::torch Threads::Threads tessera_warnings tessera_sanitizers)
  target_precompile_headers(tessera_pch PRIVATE <torch/torch.h>)
  set_target_properties(tessera_pch PROPERTIES POSITION_INDEPENDENT_CODE OFF)
  # -fpch-preprocess: without it ccache cannot see through the header and never hits.
  target_compile_options(tessera_pch PRIVATE -fPIC $<$<CXX_COMPILER_ID:GNU>:-fpch-preprocess>)
endif()
