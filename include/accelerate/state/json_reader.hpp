#pragma once

#include <accelerate/state/json_lexer.hpp>
#include <accelerate/state/quote.hpp>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

namespace accelerate::state {

/// Walks through the JSON text of an untrusted file, member by member, for parsers that derive from it. Nothing is built, so duplicate names
/// are seen; memory is that of one string. Errors have the codes of the format.
class JsonReader {
protected:
    using Token = JsonLexer::Token;

    explicit JsonReader(Source source) : source_(std::move(source)), lexer_(source_) {}
    JsonReader(JsonReader const&) = delete;
    JsonReader& operator=(JsonReader const&) = delete;
    ~JsonReader() = default;

    Source const& source() const { return source_; }
    std::string const& string_value() const { return lexer_.string_value(); }  ///< of the last String
    uint64_t unsigned_value() const { return lexer_.unsigned_value(); }        ///< of the last Unsigned
    size_t start() const { return lexer_.start(); }                            ///< where the last token begins

    template <class... Parts>
    [[noreturn]] void fail(Code const& code, Parts const&... parts) const {
        source_.fail(code, lexer_.start(), parts...);
    }

    /// Looks at encoding and depth, before anything is stored; gives the number of members of the outermost object.
    int64_t scan() const {
        auto const text = source_.text;
        if (auto const valid = utf8_end(text); valid != text.size()) source_.fail(source_.codes.not_utf8, valid, "this is not UTF-8");
        if (text.starts_with("\xEF\xBB\xBF")) source_.fail(source_.codes.bad_start, 0, "it begins with a byte order mark; expected {");
        int64_t depth = 0, members = 0;
        bool quoted = false;
        for (size_t i = 0; i < text.size(); ++i) {
            char const c = text[i];
            if (c == '"') quoted = !quoted;
            else if (quoted) i += c == '\\' ? 1 : 0;
            else if (c == '{' || c == '[') {
                if (++depth > 64) source_.fail(source_.codes.too_deep, i, "more than 64 nested objects and arrays");
            } else if (c == '}' || c == ']') --depth;
            else if (c == ':' && depth == 1) ++members;
        }
        return members;
    }

    Token next() { return lexer_.next(); }

    /// The first token of a value.
    Token value() { return begins_value(next()); }
    Token begins_value(Token token) const {
        if (token == Token::Comma || token == Token::Colon || token == Token::End || token == Token::ObjectEnd || token == Token::ArrayEnd) fail(source_.codes.bad_json, "a value was expected");
        return token;
    }

    /// Reads the members of an object whose brace has been read; `value` must consume the member's value.
    template <class Value>
    void members(std::string_view what, Value value) {
        auto token = next();
        if (token == Token::ObjectEnd) return;
        for (;; token = next()) {
            if (token != Token::String) fail(source_.codes.bad_json, "in ", what, ", a name in double quotes was expected");
            auto const key = lexer_.string_value();
            if (next() != Token::Colon) fail(source_.codes.bad_json, "a colon was expected behind ", quote(key));
            value(key);
            token = next();
            if (token == Token::ObjectEnd) return;
            if (token != Token::Comma) fail(source_.codes.bad_json, "a comma or } was expected behind the value of ", quote(key));
        }
    }

    /// Reads the elements of an array whose bracket has been read; `element(token)` is given each one's first token.
    template <class Element>
    void elements(std::string_view what, Element element) {
        auto token = next();
        if (token == Token::ArrayEnd) return;
        for (begins_value(token);; token = value()) {
            element(token);
            token = next();
            if (token == Token::ArrayEnd) return;
            if (token != Token::Comma) fail(source_.codes.bad_json, "a comma or ] was expected in ", what);
        }
    }

    /// Reads the rest of a value of which the first token has been read, and forgets it. `scan` has bounded the depth.
    void skip(Token first) {
        if (first == Token::ObjectBegin) members("an object", [&](std::string const&) { skip(value()); });
        if (first == Token::ArrayBegin) elements("an array", [&](Token token) { skip(token); });
    }

    /// Nothing may follow the outermost object.
    void end(std::string_view what) {
        if (next() != Token::End) fail(source_.codes.bad_json, "something follows ", what, "'s JSON object");
    }

private:
    Source source_;
    JsonLexer lexer_;
};

}  // namespace accelerate::state
