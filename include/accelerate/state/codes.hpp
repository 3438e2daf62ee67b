#pragma once

#include <accelerate/core/error.hpp>
#include <array>

namespace accelerate::code {

// Files as such.
inline constexpr Code not_regular{"E_NOT_REGULAR", 65};        ///< a directory, FIFO, socket, device or a file of /proc: never opened for data
inline constexpr Code symlink{"E_SYMLINK", 65};                ///< a symbolic link where none is followed
inline constexpr Code no_space{"E_NO_SPACE", 74};              ///< disk, quota or file-size limit
inline constexpr Code pickle_refused{"E_PICKLE_REFUSED", 65};  ///< a pickle or zip archive: could execute code, never parsed

// safetensors: the file around the header.
inline constexpr Code st_too_small{"E_ST_TOO_SMALL", 65};              ///< shorter than the 8 bytes of the header's length
inline constexpr Code st_header_too_large{"E_ST_HEADER_TOO_LARGE", 65};  ///< more than 100,000,000 bytes
inline constexpr Code st_bad_length{"E_ST_BAD_LENGTH", 65};            ///< the header would end behind the file
inline constexpr Code st_changed{"E_ST_CHANGED", 65};                  ///< the file changed while it was read

// safetensors: the header's text.
inline constexpr Code st_not_utf8{"E_ST_NOT_UTF8", 65};
inline constexpr Code st_bad_start{"E_ST_BAD_START", 65};              ///< a byte order mark
inline constexpr Code st_bad_json{"E_ST_BAD_JSON", 65};
inline constexpr Code st_too_deep{"E_ST_TOO_DEEP", 65};
inline constexpr Code st_not_object{"E_ST_NOT_OBJECT", 65};            ///< the header, or the entry of a tensor, is not a JSON object
inline constexpr Code st_dup_key{"E_ST_DUP_KEY", 65};
inline constexpr Code st_bad_metadata{"E_ST_BAD_METADATA", 65};
inline constexpr Code st_too_many_tensors{"E_ST_TOO_MANY_TENSORS", 65};

// safetensors: the entry of one tensor.
inline constexpr Code st_bad_name{"E_ST_BAD_NAME", 65};                ///< longer than 4096 bytes, or with control characters
inline constexpr Code st_reserved_name{"E_ST_RESERVED_NAME", 65};      ///< `__metadata__` is not a tensor's name
inline constexpr Code st_unknown_field{"E_ST_UNKNOWN_FIELD", 65};
inline constexpr Code st_missing_field{"E_ST_MISSING_FIELD", 65};
inline constexpr Code st_bad_dtype{"E_ST_BAD_DTYPE", 65};
inline constexpr Code st_unsupported_dtype{"E_ST_UNSUPPORTED_DTYPE", 65};  ///< the format or LibTorch has it, the other has not
inline constexpr Code st_bad_shape{"E_ST_BAD_SHAPE", 65};
inline constexpr Code st_too_many_dims{"E_ST_TOO_MANY_DIMS", 65};
inline constexpr Code st_overflow{"E_ST_OVERFLOW", 65};                ///< elements or bytes do not fit into 63 bits
inline constexpr Code st_bad_offsets{"E_ST_BAD_OFFSETS", 65};
inline constexpr Code st_size_mismatch{"E_ST_SIZE_MISMATCH", 65};      ///< shape times item size is not end - begin
inline constexpr Code st_misaligned{"E_ST_MISALIGNED", 65};            ///< elements smaller than a byte that do not fill bytes

// safetensors: the data as a whole.
inline constexpr Code st_hole{"E_ST_HOLE", 65};
inline constexpr Code st_overlap{"E_ST_OVERLAP", 65};
inline constexpr Code st_trailing{"E_ST_TRAILING", 65};
inline constexpr Code st_truncated{"E_ST_TRUNCATED", 65};
inline constexpr Code st_bad_bool{"E_ST_BAD_BOOL", 65};

// safetensors: what cannot be written.
inline constexpr Code st_bad_tensor{"E_ST_BAD_TENSOR", 65};            ///< undefined, sparse, quantised, or on the meta device
inline constexpr Code st_shared_memory{"E_ST_SHARED_MEMORY", 65};      ///< two names for the same memory

// The index of a sharded model.
inline constexpr Code ix_bad_json{"E_IX_BAD_JSON", 65};
inline constexpr Code ix_too_large{"E_IX_TOO_LARGE", 65};              ///< more than 100,000,000 bytes
inline constexpr Code ix_too_many{"E_IX_TOO_MANY", 65};                ///< files or tensors
inline constexpr Code ix_schema{"E_IX_SCHEMA", 65};                    ///< JSON, but not an index
inline constexpr Code ix_dup_key{"E_IX_DUP_KEY", 65};
inline constexpr Code ix_path{"E_IX_PATH", 65};                        ///< a shard is not a plain file name beside the index
inline constexpr Code ix_total_size{"E_IX_TOTAL_SIZE", 65};            ///< it is not a number of bytes, or not that of the tensors
inline constexpr Code ix_missing_shard{"E_IX_MISSING_SHARD", 65};
inline constexpr Code ix_missing_tensor{"E_IX_MISSING_TENSOR", 65};    ///< in the index, but not in its shard
inline constexpr Code ix_extra_tensor{"E_IX_EXTRA_TENSOR", 65};        ///< in a shard, but not in the index
inline constexpr Code ix_conflict{"E_IX_CONFLICT", 65};                ///< a tensor in two shards, or two names that some file systems take for one
inline constexpr Code ix_ambiguous{"E_IX_AMBIGUOUS", 65};              ///< a folder in which more than one thing could be meant

// Checkpoints.
inline constexpr Code ck_keys{"E_CK_KEYS", 65};                        ///< names or shapes of a file and a model differ
inline constexpr Code ck_incomplete{"E_CK_INCOMPLETE", 65};            ///< there is no manifest: a save that did not end
inline constexpr Code ck_bad_manifest{"E_CK_BAD_MANIFEST", 65};        ///< it is not JSON, or says what cannot be
inline constexpr Code ck_version{"E_CK_VERSION", 65};                  ///< of a format that this build does not know
inline constexpr Code ck_file_set{"E_CK_FILE_SET", 65};                ///< a file is missing, superfluous or of another size
inline constexpr Code ck_hash{"E_CK_HASH", 65};                        ///< a file has other bytes than were written
inline constexpr Code ck_mesh{"E_CK_MESH", 65};                        ///< the number of ranks cannot be, or does not fit
inline constexpr Code ck_slices{"E_CK_SLICES", 65};                    ///< parts of a tensor overlap, have gaps or lie outside
inline constexpr Code ck_accum{"E_CK_ACCUM", 65};                      ///< an accumulation window that cannot be gone on with
inline constexpr Code ck_rng{"E_CK_RNG", 65};                          ///< the state of a random generator does not fit
inline constexpr Code ck_mixed{"E_CK_MIXED", 65};                      ///< its ranks were at different steps
inline constexpr Code ck_optim{"E_CK_OPTIM", 65};                      ///< an optimizer's state that does not fit
inline constexpr Code ck_sched{"E_CK_SCHED", 65};                      ///< a schedule's
inline constexpr Code ck_scaler{"E_CK_SCALER", 65};                    ///< the gradient scaler's
inline constexpr Code ck_loader{"E_CK_LOADER", 65};                    ///< a loader's: another data set, or a position that cannot be
inline constexpr Code ck_precision{"E_CK_PRECISION", 65};              ///< a precision's, or of another precision
inline constexpr Code ck_latest{"E_CK_LATEST", 65};                    ///< the file `latest` names no checkpoint
inline constexpr Code requeue{"E_REQUEUE", 75};                        ///< a signal asked to stop; a checkpoint has been written
inline constexpr Code exists{"E_EXISTS", 74};                          ///< there is something under that name already

/// All of the above.
inline constexpr std::array of_files{
    not_regular, symlink, no_space, pickle_refused, st_too_small, st_header_too_large, st_bad_length, st_changed, st_not_utf8, st_bad_start,
    st_bad_json, st_too_deep, st_not_object, st_dup_key, st_bad_metadata, st_too_many_tensors, st_bad_name, st_reserved_name, st_unknown_field,
    st_missing_field, st_bad_dtype, st_unsupported_dtype, st_bad_shape, st_too_many_dims, st_overflow, st_bad_offsets, st_size_mismatch,
    st_misaligned, st_hole, st_overlap, st_trailing, st_truncated, st_bad_bool, st_bad_tensor, st_shared_memory, ix_bad_json, ix_too_large,
    ix_too_many, ix_schema, ix_dup_key, ix_path, ix_total_size, ix_missing_shard, ix_missing_tensor, ix_extra_tensor, ix_conflict, ix_ambiguous,
    ck_keys, ck_incomplete, ck_bad_manifest, ck_version, ck_file_set, ck_hash, ck_mesh, ck_slices, ck_accum, ck_rng,
    ck_mixed, ck_optim, ck_sched, ck_scaler, ck_loader, ck_precision, ck_latest, requeue, exists};

}  // namespace accelerate::code
