#pragma once

#include <accelerate/data/mapped_file.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>

namespace accelerate::data::detail {

/// A text in a message: quoted, of at most 40 bytes, without control characters.
inline std::string shown(std::string_view text) {
    std::string out(text.substr(0, 40));
    for (auto& c : out)
        if (static_cast<unsigned char>(c) < 32 || c == 127) c = '?';
    return '"' + out + (text.size() > 40 ? "...\"" : "\"");
}

/// False when a text is no number, or one that T cannot hold.
template <class T>
bool read_number(std::string_view text, T& out) {
    if (text.size() > 1 && text[0] == '+' && text[1] != '-') text.remove_prefix(1);
    double value = 0;
    auto const [end, failure] = std::from_chars(text.data(), text.data() + text.size(), value);
    out = static_cast<T>(value);
    return failure == std::errc() && end == text.data() + text.size() && std::isfinite(out) == std::isfinite(value);
}

/// The fields of a CSV text one after another, by RFC 4180: in quotes a field may have delimiters, line ends and "" for a quote. A
/// line ends with "\n" or "\r\n"; spaces around a field without quotes are not part of it, and neither is a byte order mark. The
/// parser is ours: the distributions' header-only one, fast-cpp-csv-parser, fixes the number of columns when compiling and tells the
/// column of an error by name alone.
class CsvFields {
public:
    /// The file must outlive it.
    CsvFields(MappedFile const& file, char delimiter) : file_(&file), delimiter_(delimiter) {
        if (!file.bytes().empty()) text_ = {reinterpret_cast<char const*>(file.bytes().data()), file.bytes().size()};
        if (text_.starts_with("\xEF\xBB\xBF")) at_ = 3;
    }

    /// Whether there is no further line; asked between lines.
    bool done() const { return at_ >= text_.size(); }
    /// Whether the field that was read is the last one of its line.
    bool last() const { return last_; }

    /// Valid until the next one is read.
    std::string_view next() {
        column_ = last_ ? 1 : column_ + 1;
        line_ = next_line_;
        auto const field = at_ < text_.size() && text_[at_] == '"' ? quoted() : plain();
        last_ = at_ >= text_.size() || text_[at_] == '\n';
        next_line_ += last_;
        ++at_;
        return field;
    }

    /// Error E_DATA about the field that was read, with file, line and column.
    template <class... Parts>
    void require(bool condition, Parts const&... parts) const {
        check(condition, code::data, "data::Csv: ", file_->path(), ", line ", line_, ", column ", column_, ": ", parts...);
    }

private:
    std::string_view plain() {
        auto const from = at_;
        while (at_ < text_.size() && text_[at_] != delimiter_ && text_[at_] != '\n') ++at_;
        auto const field = text_.substr(from, at_ - from);
        auto const first = field.find_first_not_of(" \t\r");
        return first == std::string_view::npos ? std::string_view() : field.substr(first, field.find_last_not_of(" \t\r") - first + 1);
    }

    std::string_view quoted() {
        auto const from = at_++;
        unquoted_.clear();
        for (;; unquoted_ += '"', ++at_) {
            auto const end = text_.find('"', at_);
            require(end != std::string_view::npos, "expected a closing quote, found the end of the file behind ", shown(text_.substr(from)), "; close it");
            unquoted_ += text_.substr(at_, end - at_);
            at_ = end + 1;
            if (at_ >= text_.size() || text_[at_] != '"') break;
        }
        next_line_ += std::ranges::count(unquoted_, '\n');
        auto const behind = text_.substr(at_, 2);
        if (behind == "\r\n" || (behind == "\r" && at_ + 1 == text_.size())) ++at_;
        else
            require(behind.empty() || behind[0] == delimiter_ || behind[0] == '\n', "expected a delimiter behind the closing quote, found ",
                    shown(text_.substr(from)), "; write a quote in quotes as \"\"");
        return unquoted_;
    }

    MappedFile const* file_;
    char delimiter_;
    bool last_ = true;
    std::string_view text_;
    size_t at_ = 0;
    int64_t line_ = 1, next_line_ = 1, column_ = 0;
    std::string unquoted_;  ///< the field, if it had quotes
};

}  // namespace accelerate::data::detail
