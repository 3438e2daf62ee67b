#pragma once

#include <accelerate/core/error.hpp>
#include <algorithm>
#include <cerrno>
#include <concepts>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

namespace accelerate::data {

/// How `Lines` are read.
struct lines_options {
    bool skip_empty = false;            ///< an empty line is no sample
    int64_t max_line_bytes = 64 << 20;  ///< a longer one is error E_DATA: the file is no text
};

/// The lines of one or several text files, one std::string each, without their "\n" or "\r\n". A last line needs no "\n"; a file's
/// end ends a line. A `ShardableStream`: part k of n is what begins in the k-th n-th of all bytes, so that ranks read different
/// bytes, all lines are read once whatever n is, and no file is ever in memory as a whole (a part holds 256 KiB and a line).
///
///     data::Lines lines(std::vector<std::filesystem::path>{"a.jsonl", "b.jsonl"}, {.skip_empty = true});
class Lines {
    struct Files {
        std::vector<std::filesystem::path> paths;
        std::vector<int64_t> ends;  ///< of each, in the bytes of all
        lines_options options;
    };

public:
    /// Error E_IO naming a file that is missing or no regular file. The files' sizes are taken here; what is written to them later
    /// is not read.
    explicit Lines(std::vector<std::filesystem::path> files, lines_options o = {}) {
        check(o.max_line_bytes >= 1, code::config, "data::Lines: max_line_bytes is ", o.max_line_bytes, "; it must be at least 1");
        std::vector<int64_t> ends;
        int64_t total = 0;
        for (auto const& file : files) {
            std::error_code failure;
            auto const size = std::filesystem::file_size(file, failure);
            check(!failure, code::io, "data::Lines: ", file, " cannot be read: ", failure.message());
            ends.push_back(total += static_cast<int64_t>(size));
        }
        files_ = std::make_shared<Files const>(Files{std::move(files), std::move(ends), o});
    }
    template <std::convertible_to<std::filesystem::path> Path>
    explicit Lines(Path const& file, lines_options o = {}) : Lines(std::vector<std::filesystem::path>{file}, o) {}

    /// Bytes of all files.
    int64_t bytes() const { return files_->ends.empty() ? 0 : files_->ends.back(); }

    class Part;
    /// Error E_CONFIG unless 0 <= k < n.
    Part open(int64_t k, int64_t n) const;

private:
    std::shared_ptr<Files const> files_;
};

/// Reads a part of `Lines`, for one thread at a time. Errors: E_IO naming a file that cannot be read or became shorter, E_DATA naming
/// file and byte of a line that is too long.
class Lines::Part {
public:
    /// The lines that begin in bytes [begin, end) of all files.
    Part(std::shared_ptr<Files const> files, int64_t begin, int64_t end) : files_(std::move(files)), begin_(begin), end_(end) {}

    std::optional<std::string> next() {
        std::string line;
        return pass(&line) ? std::optional(std::move(line)) : std::nullopt;
    }
    /// Passes over n lines, or what is left, at the speed at which newlines are found.
    void skip(int64_t n) {
        while (n > 0 && pass(nullptr)) --n;
    }
    /// Begins again: every epoch is the same.
    void start(int64_t) {
        file_ = 0;
        in_.reset();
    }

private:
    struct Close {
        void operator()(std::FILE* f) const { std::fclose(f); }
    };

    /// One line, into `line` unless that is nullptr. False when there is none left.
    bool pass(std::string* line) {
        auto const limit = files_->options.max_line_bytes;
        while (in_ || open()) {
            if (at_ >= stop_) {  // the next line begins in another part
                in_.reset();
                ++file_;
                continue;
            }
            auto const from = at_;
            auto const length = to_newline(size_, line, limit);
            check(length <= limit, code::data, "data::Lines: ", files_->paths[file_], " has a line of more than ", limit, " bytes at byte ", from,
                  "; is it text? Else raise max_line_bytes");
            if (length > 0 || !files_->options.skip_empty) return true;
        }
        return false;
    }

    /// Opens the next file that has bytes in this part, at the first line that begins there.
    bool open() {
        for (; file_ < files_->paths.size(); ++file_) {
            auto const base = file_ > 0 ? files_->ends[file_ - 1] : 0;
            auto const first = std::max<int64_t>(begin_ - base, 0);
            size_ = files_->ends[file_] - base;
            stop_ = std::min(end_ - base, size_);
            if (first >= stop_) continue;
            at_ = std::max<int64_t>(first - 1, 0);
            here_ = filled_ = 0;
            errno = 0;
            in_.reset(std::fopen(files_->paths[file_].c_str(), "rbe"));
            require(in_ && ::fseeko(in_.get(), static_cast<off_t>(at_), SEEK_SET) == 0);
            if (first > 0) to_newline(stop_, nullptr, size_);  // the end of a line of the part before
            return true;
        }
        return false;
    }

    /// Goes behind the next newline, or to `stop`. Gives the bytes before it (not counting its '\r'), appended to `line` unless that
    /// is nullptr; or more than `limit` as soon as they are more.
    int64_t to_newline(int64_t stop, std::string* line, int64_t limit) {
        int64_t length = 0;
        for (char last = 0; at_ < stop && length - 1 <= limit;) {
            if (here_ == filled_) fill();
            auto const* const from = buffer_.data() + here_;
            auto const most = std::min(filled_ - here_, static_cast<size_t>(stop - at_));
            auto const* const newline = static_cast<char const*>(std::memchr(from, '\n', most));
            auto const count = newline ? static_cast<size_t>(newline - from) : most;
            if (line) line->append(from, count);
            if (count > 0) last = from[count - 1];
            length += static_cast<int64_t>(count);
            here_ += count + (newline != nullptr);
            at_ += static_cast<int64_t>(count + (newline != nullptr));
            if (!newline) continue;
            if (last != '\r') return length;
            if (line) line->pop_back();
            return length - 1;
        }
        return length;
    }

    void fill() {
        buffer_.resize(size_t{1} << 18);
        errno = 0;
        filled_ = std::fread(buffer_.data(), 1, buffer_.size(), in_.get());
        here_ = 0;
        require(filled_ > 0);
    }
    void require(bool fine) const {
        if (fine) return;
        auto const reason = errno ? std::generic_category().message(errno) : concat("it had ", size_, " bytes and has become shorter");
        throw Error(code::io, concat("data::Lines: ", files_->paths[file_], " cannot be read at byte ", at_, ": ", reason));
    }

    std::shared_ptr<Files const> files_;
    int64_t begin_, end_;
    size_t file_ = 0;  ///< the one that is read, or to be opened
    std::unique_ptr<std::FILE, Close> in_;
    int64_t size_ = 0, stop_ = 0, at_ = 0;  ///< of this file: its bytes, where this part ends, where the next line begins
    std::vector<char> buffer_;
    size_t here_ = 0, filled_ = 0;
};

inline Lines::Part Lines::open(int64_t k, int64_t n) const {
    check(k >= 0 && k < n, code::config, "data::Lines: part ", k, " of ", n, "; parts are counted from 0");
    auto const from = [&](int64_t part) { return bytes() / n * part + bytes() % n * part / n; };
    return {files_, from(k), from(k + 1)};
}

}  // namespace accelerate::data
