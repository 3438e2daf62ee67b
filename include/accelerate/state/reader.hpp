#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <accelerate/core/log.hpp>
#include <accelerate/state/input_file.hpp>
#include <accelerate/state/safetensors_header.hpp>
#include <algorithm>
#include <bit>
#include <cstring>
#include <span>
#include <unordered_map>

namespace accelerate::state {

static_assert(std::endian::native == std::endian::little, "safetensors files are little-endian, and so is every machine this library runs on");

/// A safetensors file, opened and checked once: lists what is in it and reads tensors one by one. Nothing but regular files is
/// opened, nothing in them is executed, and memory is never more than the header and the tensors that were asked for.
class SafetensorsReader {
public:
    /// Reads and checks the header. Errors: E_IO, E_NOT_REGULAR, and the E_ST_* codes, naming file and byte or tensor.
    explicit SafetensorsReader(std::filesystem::path path) : file_(std::move(path)) {
        auto const size = file_.size();
        check(size >= 8, code::st_too_small, "safetensors file ", name(), " has ", size, " bytes; the length of the header alone takes 8");
        char head[8];
        file_.read_at(head, 8, 0);
        uint64_t length = 0;
        std::memcpy(&length, head, 8);
        auto const too_long = length > safetensors_header_limit || static_cast<int64_t>(length) > size - 8;
        if (too_long) refuse_pickle(std::string_view(head, 8));
        if (length > safetensors_header_limit) {
            throw Error(code::st_header_too_large,
                        concat("safetensors file ", name(), ", byte 0: a header of ", length, " bytes; at most ", safetensors_header_limit, ". Is it a safetensors file?"));
        }
        data_ = 8 + static_cast<int64_t>(length);
        check(!too_long, code::st_bad_length, "safetensors file ", name(), ", byte 0: a header of ", length, " bytes in a file of ", size);
        std::string text(length, '\0');
        file_.read_at(text.data(), static_cast<int64_t>(length), 8);
        header_ = parse_safetensors_header(text, size - data_, file_.path().string());
        if (header_.leading_space) log::warning_once("W_LEADING_SPACE: the header of safetensors file ", name(), " begins with white space, which the format does not allow");
        for (auto const& info : header_.tensors) index_.emplace(info.name, &info);
    }
    SafetensorsReader(SafetensorsReader const&) = delete;
    SafetensorsReader& operator=(SafetensorsReader const&) = delete;

    std::filesystem::path const& path() const { return file_.path(); }
    std::span<TensorInfo const> tensors() const { return header_.tensors; }  ///< in the order of their data
    std::map<std::string, std::string> const& metadata() const { return header_.metadata; }

    /// The entry of that name, or nullptr.
    TensorInfo const* find(std::string_view tensor) const {
        auto const it = index_.find(tensor);
        return it == index_.end() ? nullptr : it->second;
    }

    /// Reads one tensor into new CPU memory. Errors: E_DATA for an unknown name, E_ST_CHANGED, E_ST_BAD_BOOL, E_IO.
    at::Tensor read(std::string_view tensor) const {
        auto const* const info = find(tensor);
        check(info != nullptr, code::data, "safetensors file ", name(), " has no tensor named ", quote(tensor), " among ", header_.tensors.size());
        return read(*info);
    }
    at::Tensor read(TensorInfo const& info) const {
        auto out = at::empty(info.shape, at::TensorOptions().dtype(info.type()).device(at::kCPU));
        file_.read_at(out.mutable_data_ptr(), info.end - info.begin, data_ + info.begin);
        file_.check_unchanged();
        if (info.type() == at::ScalarType::Bool) check_bools(info, static_cast<unsigned char const*>(out.const_data_ptr()));
        return out;
    }

private:
    std::string name() const { return quote(file_.path().string()); }

    void refuse_pickle(std::string_view head) const {
        bool const zip = head.starts_with("PK\x03\x04"), pickle = head[0] == '\x80' && head[1] >= 2 && head[1] <= 5;
        check(!zip && !pickle, code::pickle_refused, name(), " is a ", zip ? "zip archive" : "pickle",
              ", as torch.save writes; those can execute code and are never read. Convert it with Python's safetensors.torch.save_file");
    }

    /// A C++ bool that is neither 0 nor 1 is undefined behaviour in whatever uses it.
    void check_bools(TensorInfo const& info, unsigned char const* bytes) const {
        auto const* const end = bytes + (info.end - info.begin);
        auto const* const bad = std::find_if(bytes, end, [](unsigned char byte) { return byte > 1; });
        if (bad == end) return;
        throw Error(code::st_bad_bool, concat("safetensors file ", name(), ", byte ", data_ + info.begin + (bad - bytes), ": element ", bad - bytes, " of BOOL tensor ",
                                              quote(info.name), " is ", static_cast<int>(*bad)));
    }

    InputFile file_;
    int64_t data_ = 0;
    SafetensorsHeader header_;
    std::unordered_map<std::string_view, TensorInfo const*> index_;
};

}  // namespace accelerate::state
