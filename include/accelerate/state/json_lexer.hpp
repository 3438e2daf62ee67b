#pragma once

#include <accelerate/state/codes.hpp>
#include <accelerate/state/utf8.hpp>
#include <charconv>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

namespace accelerate::state {

/// What a file format calls the ways in which its JSON can be wrong.
struct JsonCodes {
    Code not_utf8, bad_start, bad_json, too_deep;
};

/// A text from a file, and how to complain about a byte of it.
struct Source {
    std::string_view text;
    std::string name;      ///< of the file, with its kind: `safetensors file "x"`
    JsonCodes codes;
    size_t offset = 0;     ///< of the text in the file

    template <class... Parts>
    [[noreturn]] void fail(Code const& code, size_t at, Parts const&... parts) const {
        throw Error(code, concat(name, ", byte ", offset + at, ": ", parts...));
    }
};

/// Cuts strict JSON (RFC 8259) into tokens. Integers stay exact; nothing is built, nothing recurses. For untrusted text that is
/// valid UTF-8; anything else is the format's `bad_json` naming the byte.
class JsonLexer {
public:
    enum class Token { ObjectBegin, ObjectEnd, ArrayBegin, ArrayEnd, Comma, Colon, String, Unsigned, Number, Literal, End };

    explicit JsonLexer(Source const& source) : source_(source), text_(source.text) {}

    /// The next token. `Unsigned` is an integer without sign that fits into 64 bits, `Number` every other number.
    Token next() {
        while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t')) ++at_;
        start_ = at_;
        if (at_ == text_.size()) return Token::End;
        switch (text_[at_]) {
            case '{': return ++at_, Token::ObjectBegin;
            case '}': return ++at_, Token::ObjectEnd;
            case '[': return ++at_, Token::ArrayBegin;
            case ']': return ++at_, Token::ArrayEnd;
            case ',': return ++at_, Token::Comma;
            case ':': return ++at_, Token::Colon;
            case '"': return string();
            case 't': return literal("true");
            case 'f': return literal("false");
            case 'n': return literal("null");
            default: return number();
        }
    }

    size_t start() const { return start_; }               ///< where the last token begins
    std::string const& string_value() const { return string_; }  ///< of the last String, decoded
    uint64_t unsigned_value() const { return unsigned_; }  ///< of the last Unsigned

private:
    template <class... Parts>
    [[noreturn]] void fail(Parts const&... parts) const {
        source_.fail(source_.codes.bad_json, at_, parts...);
    }

    bool digit() const { return at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; }

    Token literal(std::string_view word) {
        if (text_.substr(at_, word.size()) != word) fail("no JSON value begins like this");
        at_ += word.size();
        return Token::Literal;
    }

    void digits() {
        if (!digit()) fail("a digit was expected");
        while (digit()) ++at_;
    }

    Token number() {
        bool plain = text_[at_] != '-';
        if (!plain) ++at_;
        else if (!digit()) fail("no JSON value begins like this");
        if (at_ < text_.size() && text_[at_] == '0') ++at_;
        else digits();
        bool real = false;
        if (at_ < text_.size() && text_[at_] == '.') real = true, ++at_, digits();
        if (at_ < text_.size() && (text_[at_] == 'e' || text_[at_] == 'E')) {
            real = true, ++at_;
            if (at_ < text_.size() && (text_[at_] == '+' || text_[at_] == '-')) ++at_;
            digits();
        }
        auto const* const begin = text_.data() + start_;
        auto const* const end = text_.data() + at_;
        if (real) {
            double value = 0;
            if (std::from_chars(begin, end, value).ec == std::errc::result_out_of_range) fail("the number ending here does not fit into a double");
        } else if (plain && std::from_chars(begin, end, unsigned_).ec == std::errc()) {
            return Token::Unsigned;
        }
        return Token::Number;
    }

    Token string() {
        string_.clear();
        for (++at_;;) {
            auto const from = at_;
            while (at_ < text_.size() && text_[at_] != '"' && text_[at_] != '\\' && static_cast<unsigned char>(text_[at_]) >= 0x20) ++at_;
            string_.append(text_, from, at_ - from);
            if (at_ == text_.size()) fail("the string that begins at byte ", source_.offset + start_, " does not end");
            char const c = text_[at_];
            if (c == '"') return ++at_, Token::String;
            if (c != '\\') fail("a control character inside a string");
            escape();
        }
    }

    void escape() {
        char const kind = ++at_ < text_.size() ? text_[at_] : '\0';
        ++at_;
        switch (kind) {
            case '"': case '\\': case '/': string_ += kind; return;
            case 'b': string_ += '\b'; return;
            case 'f': string_ += '\f'; return;
            case 'n': string_ += '\n'; return;
            case 'r': string_ += '\r'; return;
            case 't': string_ += '\t'; return;
            case 'u': break;
            default: --at_, fail("an unknown escape in a string");
        }
        auto point = hex();
        if (point >= 0xD800 && point < 0xE000) {
            if (point >= 0xDC00 || text_.substr(at_, 2) != "\\u") fail("half of a surrogate pair");
            at_ += 2;
            auto const low = hex();
            if (low < 0xDC00 || low >= 0xE000) fail("half of a surrogate pair");
            point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
        }
        append_utf8(point);
    }

    uint32_t hex() {
        uint32_t value = 0;
        if (text_.size() - at_ < 4) fail("four hexadecimal digits were expected");
        auto const [end, error] = std::from_chars(text_.data() + at_, text_.data() + at_ + 4, value, 16);
        if (error != std::errc() || end != text_.data() + at_ + 4) fail("four hexadecimal digits were expected");
        at_ += 4;
        return value;
    }

    void append_utf8(uint32_t point) {
        auto const add = [&](uint32_t byte) { string_ += static_cast<char>(byte); };
        if (point < 0x80) {
            add(point);
        } else if (point < 0x800) {
            add(0xC0 | (point >> 6)), add(0x80 | (point & 63));
        } else if (point < 0x10000) {
            add(0xE0 | (point >> 12)), add(0x80 | ((point >> 6) & 63)), add(0x80 | (point & 63));
        } else {
            add(0xF0 | (point >> 18)), add(0x80 | ((point >> 12) & 63)), add(0x80 | ((point >> 6) & 63)), add(0x80 | (point & 63));
        }
    }

    Source const& source_;
    std::string_view text_;
    size_t at_ = 0, start_ = 0;
    std::string string_;
    uint64_t unsigned_ = 0;
};

}  // namespace accelerate::state
