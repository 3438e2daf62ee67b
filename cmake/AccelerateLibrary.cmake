# The library as a CMake target and what it stands on. One file for the source tree and for an installed package: both define
# accelerate::accelerate by it, each with the back ends that are there.
#
#   ACCELERATE_WITH_MPI       AUTO (when an MPI is found), ON (it must be), OFF (everything is one process)
#   ACCELERATE_INCLUDE_DIR    the folder with accelerate.hpp, set by the includer

set(ACCELERATE_WITH_MPI AUTO CACHE STRING "Communicate over MPI: AUTO, ON or OFF")
set_property(CACHE ACCELERATE_WITH_MPI PROPERTY STRINGS AUTO ON OFF)

list(APPEND CMAKE_MODULE_PATH "${CMAKE_CURRENT_LIST_DIR}")
find_package(LibTorch REQUIRED)
list(REMOVE_ITEM CMAKE_MODULE_PATH "${CMAKE_CURRENT_LIST_DIR}")

find_package(Threads REQUIRED)
find_path(ACCELERATE_JSON_INCLUDE_DIR nlohmann/json.hpp DOC "Folder of nlohmann/json.hpp")
find_path(ACCELERATE_XXHASH_INCLUDE_DIR xxhash.h DOC "Folder of xxhash.h")
find_library(ACCELERATE_XXHASH_LIBRARY xxhash DOC "The xxHash library")
foreach(_needed "JSON_INCLUDE_DIR;nlohmann/json.hpp;nlohmann-json3-dev" "XXHASH_INCLUDE_DIR;xxhash.h;libxxhash-dev" "XXHASH_LIBRARY;libxxhash.so;libxxhash-dev")
  list(GET _needed 0 _variable)
  list(GET _needed 1 _file)
  list(GET _needed 2 _package)
  if(NOT ACCELERATE_${_variable})
    message(FATAL_ERROR "accelerate: ${_file} was not found; install it (Debian and Ubuntu: apt install ${_package}) or set ACCELERATE_${_variable}")
  endif()
endforeach()

set(ACCELERATE_MPI_FOUND FALSE)
if(ACCELERATE_WITH_MPI)
  set(MPI_CXX_SKIP_MPICXX ON)  # the C++ bindings of MPI-2, which MPI-3 dropped
  set(_mpi_was_there FALSE)
  if(TARGET MPI::MPI_CXX)
    set(_mpi_was_there TRUE)
  endif()
  find_package(MPI 3.0 QUIET COMPONENTS CXX)
  set(ACCELERATE_MPI_FOUND ${MPI_CXX_FOUND})
  if(MPI_CXX_FOUND AND NOT _mpi_was_there)
    set_target_properties(MPI::MPI_CXX PROPERTIES IMPORTED_GLOBAL TRUE)
  elseif(NOT MPI_CXX_FOUND AND NOT ACCELERATE_WITH_MPI STREQUAL "AUTO")
    message(FATAL_ERROR "accelerate: ACCELERATE_WITH_MPI is ${ACCELERATE_WITH_MPI} and no MPI of version 3 was found; install one (Debian and Ubuntu: apt install libopenmpi-dev openmpi-bin), "
                        "put its mpicxx on the PATH, or set ACCELERATE_WITH_MPI=OFF")
  endif()
endif()
if(ACCELERATE_MPI_FOUND)
  message(STATUS "MPI: ${MPI_CXX_COMPILER}, version ${MPI_CXX_VERSION} of the standard")
else()
  message(STATUS "MPI: none (ACCELERATE_WITH_MPI is ${ACCELERATE_WITH_MPI}); everything runs as one process")
endif()

# Gives `target`, an INTERFACE library, the headers in `folder` and everything they need.
function(accelerate_define target folder)
  target_compile_features(${target} INTERFACE cxx_std_20)
  target_include_directories(${target} INTERFACE "${folder}")
  target_include_directories(${target} SYSTEM INTERFACE "${ACCELERATE_JSON_INCLUDE_DIR}" "${ACCELERATE_XXHASH_INCLUDE_DIR}")
  target_link_libraries(${target} INTERFACE LibTorch::cpu "${ACCELERATE_XXHASH_LIBRARY}" Threads::Threads)
  if(ACCELERATE_MPI_FOUND)
    target_compile_definitions(${target} INTERFACE ACCELERATE_WITH_MPI=1)
    target_link_libraries(${target} INTERFACE MPI::MPI_CXX)
  else()
    target_compile_definitions(${target} INTERFACE ACCELERATE_WITH_MPI=0)
  endif()
endfunction()
