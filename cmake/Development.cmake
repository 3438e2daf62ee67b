# What our own tests, examples and benchmarks are built with; nothing of it reaches a consumer.
#
#   ACCELERATE_SANITIZE         for example "address,undefined" or "thread"
#   ACCELERATE_SINGLE_INCLUDE   build against single_include/accelerate.hpp (regenerated) instead of include/

include(CheckCXXSourceCompiles)

set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)  # tests/misuse.py compiles as these programs do

set(ACCELERATE_SANITIZE "" CACHE STRING "Sanitizers to build our programs with")
option(ACCELERATE_SINGLE_INCLUDE "Build our programs against the amalgamated header" OFF)
if(NOT DEFINED Python3_FIND_STRATEGY)
  set(Python3_FIND_STRATEGY LOCATION)
endif()
find_package(Python3 COMPONENTS Interpreter REQUIRED)

add_library(accelerate_warnings INTERFACE)
target_compile_options(accelerate_warnings INTERFACE -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror)
# clang 14 captures a structured binding by `[&x = x]` only, which later versions call a shadow.
target_compile_options(accelerate_warnings INTERFACE $<$<AND:$<CXX_COMPILER_ID:Clang>,$<VERSION_GREATER_EQUAL:$<CXX_COMPILER_VERSION>,15>>:-Wno-shadow>)

# Link this one: the library with warnings, a fast linker, sanitizers. Flags must be the same wherever a precompiled header is
# shared, so everything that changes them stands here.
add_library(accelerate_development INTERFACE)
target_link_libraries(accelerate_development INTERFACE accelerate_warnings)
if(ACCELERATE_SINGLE_INCLUDE)
  # Every header of the library becomes a door to the single one, so that the same sources run on it.
  set(single_folder "${PROJECT_BINARY_DIR}/single")
  execute_process(COMMAND ${Python3_EXECUTABLE} "${PROJECT_SOURCE_DIR}/tools/amalgamate" --output "${single_folder}/accelerate.hpp" --doors COMMAND_ERROR_IS_FATAL ANY)
  file(GLOB_RECURSE own_headers CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/include/*.hpp")
  set_property(DIRECTORY "${PROJECT_SOURCE_DIR}" APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${own_headers})
  add_library(accelerate_single INTERFACE)
  accelerate_define(accelerate_single "${single_folder}")
  target_link_libraries(accelerate_development INTERFACE accelerate_single)
else()
  target_link_libraries(accelerate_development INTERFACE accelerate)
endif()

if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # g++ walks a precompiled header's gigabyte each time it collects garbage: less often is an eighth less time, for 5 % more memory.
  target_compile_options(accelerate_development INTERFACE --param=ggc-min-expand=200)
endif()

# For programs whose results nobody waits for, only their compiler: -O0, a quarter less than -O1. g++ then calls std::move and its like
# as functions unless told otherwise: a tenth of the time.
add_library(accelerate_unoptimized INTERFACE)
target_compile_options(accelerate_unoptimized INTERFACE -O0 $<$<CXX_COMPILER_ID:GNU>:-ffold-simple-inlines>)

# accelerate/eigen.hpp, which is for who has Eigen.
find_path(EIGEN_INCLUDE_DIR Eigen/Core PATH_SUFFIXES eigen3)
if(EIGEN_INCLUDE_DIR)
  target_include_directories(accelerate_development SYSTEM INTERFACE "${EIGEN_INCLUDE_DIR}")
else()
  message(STATUS "Eigen was not found: what needs it is left out (Debian and Ubuntu: apt install libeigen3-dev)")
endif()

if(ACCELERATE_SANITIZE)
  target_compile_options(accelerate_development INTERFACE -fsanitize=${ACCELERATE_SANITIZE} -fno-omit-frame-pointer -g1)
  # What no sanitizer sees: an index within a vector's capacity but not its size, the front of an empty one, an optional that is not there.
  target_compile_definitions(accelerate_development INTERFACE _GLIBCXX_ASSERTIONS)
  target_link_options(accelerate_development INTERFACE -fsanitize=${ACCELERATE_SANITIZE})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    target_compile_options(accelerate_development INTERFACE -Wno-maybe-uninitialized)  # g++ 12 sees it everywhere in instrumented code
  endif()
endif()

foreach(linker mold lld)
  set(CMAKE_REQUIRED_LINK_OPTIONS -fuse-ld=${linker})
  check_cxx_source_compiles("int main() {}" ACCELERATE_HAS_${linker})
  unset(CMAKE_REQUIRED_LINK_OPTIONS)
  if(ACCELERATE_HAS_${linker})
    target_link_options(accelerate_development INTERFACE -fuse-ld=${linker})
    break()
  endif()
endforeach()

# ccache must be told that a precompiled header's defines and times are in order, and where the tree begins.
find_program(CCACHE ccache)
if(CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env "CCACHE_BASEDIR=${PROJECT_SOURCE_DIR}" CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime ${CCACHE})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    target_compile_options(accelerate_development INTERFACE -fpch-preprocess)
  else()
    target_compile_options(accelerate_development INTERFACE "SHELL:-Xclang -fno-pch-timestamp")  # one from the cache is not refused for a file's time
  endif()
endif()

# How `ranks` processes are started, in `result`: many ranks on few cores, also as root, with nothing bound. Empty without MPI.
set(ACCELERATE_ENVIRONMENT OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1)
set(ACCELERATE_MPIRUN_FLAGS "")
if(ACCELERATE_MPI_FOUND)
  execute_process(COMMAND ${MPIEXEC_EXECUTABLE} --version OUTPUT_VARIABLE mpirun_version ERROR_VARIABLE mpirun_version)
  if(mpirun_version MATCHES "Open MPI|OpenRTE|PRRTE|prterun")
    set(ACCELERATE_MPIRUN_FLAGS --oversubscribe --bind-to none)
  endif()
endif()
function(accelerate_mpirun result ranks)
  set(command "")
  if(ACCELERATE_MPI_FOUND)
    set(command ${MPIEXEC_EXECUTABLE} ${ACCELERATE_MPIRUN_FLAGS} ${MPIEXEC_NUMPROC_FLAG} ${ranks})
  endif()
  set(${result} ${command} PARENT_SCOPE)
endfunction()

# The whole library, precompiled once, for those that are built over it: the examples and tests/misuse.py. An empty source is what it
# is compiled for.
file(CONFIGURE OUTPUT accelerate_header.cpp CONTENT "")
add_library(accelerate_header OBJECT EXCLUDE_FROM_ALL "${CMAKE_CURRENT_BINARY_DIR}/accelerate_header.cpp")
target_link_libraries(accelerate_header PRIVATE accelerate_development accelerate_unoptimized)
target_precompile_headers(accelerate_header PRIVATE <accelerate.hpp>)
