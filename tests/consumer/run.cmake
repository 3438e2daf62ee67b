# cmake -DWAY=.. -DTREE=.. -DBUILD=.. -DWORK=.. -DGENERATOR=.. -DCOMPILER=.. -DTORCH=.. -DWITH_MPI=.. -P run.cmake
# Configures, builds and runs the consumer in WORK, with the package installed from BUILD where it wants one.
file(REMOVE_RECURSE "${WORK}")
set(options -DWAY=${WAY} -DLIBTORCH_ROOT=${TORCH} -DACCELERATE_WITH_MPI=${WITH_MPI} -DACCELERATE_FETCH_TORCH=OFF -DCMAKE_CXX_COMPILER=${COMPILER})
if(WAY STREQUAL "find_package")
  execute_process(COMMAND ${CMAKE_COMMAND} --install "${BUILD}" --prefix "${WORK}/prefix" OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
  list(APPEND options -DCMAKE_PREFIX_PATH=${WORK}/prefix)
else()
  list(APPEND options -DACCELERATE_SOURCE=${TREE})
endif()
execute_process(COMMAND ${CMAKE_COMMAND} -S "${CMAKE_CURRENT_LIST_DIR}" -B "${WORK}/build" -G ${GENERATOR} ${options} COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${CMAKE_COMMAND} --build "${WORK}/build" COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND "${WORK}/build/consumer" COMMAND_ERROR_IS_FATAL ANY)
file(REMOVE_RECURSE "${WORK}")
