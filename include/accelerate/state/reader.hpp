#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <accelerate/core/log.hpp>
#include <accelerate/state/input_file.hpp>
#include <accelerate/state/mapping.hpp>
#include <accelerate/state/safetensors_header.hpp>
#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <span>
#include <unordered_map>

namespace accelerate::state {

static_assert(std::endian::native == std::endian::little, "safetensors files are little-endian, and so is every machine this library runs on");

/// A safetensors file, opened and checked once: lists what is in it and reads tensors one by one. Nothing but regular files is
/// opened, nothing in them is executed, and memory is never more than the header and the tensors that were asked for.
class SafetensorsReader {
public:
    /// Reads and checks the header. Errors: E_IO, E_NOT_REGULAR, and the E_ST_* codes, naming file and byte or tensor.
    explicit SafetensorsReader(std::filesystem::path path) : SafetensorsReader(InputFile(std::move(path))) {}
    explicit SafetensorsReader(InputFile file) : file_(std::move(file)) {
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
    int64_t size() const { return file_.size(); }  ///< bytes
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
    at::Tensor read(TensorInfo const& info) const { return read_elements(info, 0, numel(info)).view(info.shape); }

    /// Elements [from, to) of a tensor in the order of the file, which is row-major, as a 1-D tensor; only their bytes are read.
    at::Tensor read_elements(TensorInfo const& info, int64_t from, int64_t to) const {
        check_range(info, "elements", from, to, numel(info));
        auto out = at::empty({to - from}, options(info));
        read_bytes(info, static_cast<char*>(out.mutable_data_ptr()), from, to);
        file_.check_unchanged();
        return out;
    }

    /// Reads one tensor into memory that is there: of the tensor's dtype and shape, row-major, on the CPU.
    void read_into(TensorInfo const& info, at::Tensor const& out) const {
        bool const fits = out.device().is_cpu() && out.is_contiguous() && out.scalar_type() == info.type() && out.sizes() == at::IntArrayRef(info.shape);
        check(fits, code::data, "safetensors file ", name(), ": tensor ", quote(info.name), " does not fit into ", out.toString(), " ", out.sizes());
        read_bytes(info, static_cast<char*>(out.mutable_data_ptr()), 0, numel(info));
        out.unsafeGetTensorImpl()->bump_version();  // as an operation would have done: what was made of the old values is old
        file_.check_unchanged();
    }

    /// The stretch [from, to) of dimension `dim` (Python's `get_slice`); only its bytes are read. Error E_DATA for what lies outside.
    at::Tensor read_slice(TensorInfo const& info, int64_t dim, int64_t from, int64_t to) const {
        check(dim >= 0 && dim < static_cast<int64_t>(info.shape.size()), code::data, "safetensors file ", name(), ": tensor ", quote(info.name), " has ", info.shape.size(), " dimensions, no number ", dim);
        auto shape = info.shape;
        auto& rows = shape[static_cast<size_t>(dim)];
        check_range(info, "rows", from, to, rows);
        int64_t outer = 1, inner = 1;
        for (size_t d = 0; d < shape.size(); ++d) (static_cast<int64_t>(d) < dim ? outer : inner) *= static_cast<int64_t>(d) == dim ? 1 : shape[d];
        auto const stride = rows * inner, length = (to - from) * inner;
        rows = to - from;
        auto out = at::empty(shape, options(info));
        auto* bytes = static_cast<char*>(out.mutable_data_ptr());
        for (int64_t o = 0; o < outer && length > 0; ++o, bytes += length * static_cast<int64_t>(out.element_size())) read_bytes(info, bytes, o * stride + from * inner, o * stride + from * inner + length);
        file_.check_unchanged();
        return out;
    }

    /// The tensor as a view of the file, mapped into memory: nothing is read before it is used, and what is written stays in memory. Lives
    /// on without the reader. Who shortens the file meanwhile ends the process by SIGBUS; `read` has no such risk. A tensor that the file
    /// does not align, and one of no bytes, is read.
    at::Tensor map(TensorInfo const& info) {
        auto const item = static_cast<int64_t>(c10::elementSize(info.type()));
        if (info.begin == info.end || (data_ + info.begin) % item != 0) return read(info);
        if (!mapping_) mapping_ = std::make_shared<Mapping>(file_);
        auto* const bytes = mapping_->data() + data_ + info.begin;
        if (info.type() == at::ScalarType::Bool) check_bools(info, reinterpret_cast<unsigned char const*>(bytes), 0, info.end - info.begin);
        return at::from_blob(bytes, info.shape, [mapping = mapping_](void*) {}, options(info));
    }

private:
    std::string name() const { return quote_path(file_.path()); }

    static at::TensorOptions options(TensorInfo const& info) { return at::TensorOptions().dtype(info.type()).device(at::kCPU); }
    static int64_t numel(TensorInfo const& info) { return (info.end - info.begin) / static_cast<int64_t>(c10::elementSize(info.type())); }

    void check_range(TensorInfo const& info, char const* what, int64_t from, int64_t to, int64_t size) const {
        check(from >= 0 && from <= to && to <= size, code::data, "safetensors file ", name(), ": ", what, " [", from, ", ", to, ") of tensor ", quote(info.name), ", which has ", size);
    }

    /// Elements [from, to) to where `out` points.
    void read_bytes(TensorInfo const& info, char* out, int64_t from, int64_t to) const {
        auto const item = static_cast<int64_t>(c10::elementSize(info.type()));
        file_.read_at(out, (to - from) * item, data_ + info.begin + from * item);
        if (info.type() == at::ScalarType::Bool) check_bools(info, reinterpret_cast<unsigned char const*>(out), from, to);
    }

    void refuse_pickle(std::string_view head) const {
        char last = 0;
        file_.read_at(&last, 1, size() - 1);
        // Protocols 2 to 5 have a mark; 0 and 1 begin with one of a few opcodes. All end with a full stop.
        bool const zip = head.starts_with("PK\x03\x04"), marked = head[0] == '\x80' && head[1] >= 2 && head[1] <= 5;
        bool const pickle = marked || (last == '.' && std::string_view("(]})cIFSVKJMUXN").find(head[0]) != std::string_view::npos);
        check(!zip && !pickle, code::pickle_refused, name(), " is a ", zip ? "zip archive" : "pickle",
              ", as torch.save writes; those can execute code and are never read. Convert it with Python's safetensors.torch.save_file");
    }

    /// A C++ bool that is neither 0 nor 1 is undefined behaviour in whatever uses it.
    void check_bools(TensorInfo const& info, unsigned char const* bytes, int64_t from, int64_t to) const {
        auto const* const end = bytes + (to - from);
        auto const* const bad = std::find_if(bytes, end, [](unsigned char byte) { return byte > 1; });
        if (bad == end) return;
        throw Error(code::st_bad_bool, concat("safetensors file ", name(), ", byte ", data_ + info.begin + from + (bad - bytes), ": element ", from + (bad - bytes), " of BOOL tensor ",
                                              quote(info.name), " is ", static_cast<int>(*bad)));
    }

    InputFile file_;
    std::shared_ptr<Mapping> mapping_;
    int64_t data_ = 0;
    SafetensorsHeader header_;
    std::unordered_map<std::string_view, TensorInfo const*> index_;
};

}  // namespace accelerate::state
