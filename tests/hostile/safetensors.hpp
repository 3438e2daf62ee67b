#pragma once
// Malformed (and a few odd but valid) safetensors files, each with the code it must give: rows 1 to 61 of the table that the
// library promises to refuse. Row numbers are kept so that a new file finds its place. Files that need a file system (a FIFO, a
// file that shrinks) are in tests/state.cpp.

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace hostile {

struct Case {
    int row;
    std::string what;
    std::string bytes;
    std::string code;            // "" where the file is valid
    int64_t sparse = 0;          // the file is as long as this: zeros behind the bytes
};

inline std::string length(uint64_t n) {
    std::string out(8, '\0');
    std::memcpy(out.data(), &n, 8);
    return out;
}

inline std::string file(std::string const& header, std::string const& data = "") { return length(header.size()) + header + data; }
inline std::string zeros(size_t n) { return std::string(n, '\0'); }

inline std::string entry(std::string const& name, std::string const& dtype, std::string const& shape, std::string const& offsets) {
    return "\"" + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}

// A file with one tensor "w".
inline std::string one(std::string const& dtype, std::string const& shape, std::string const& offsets, size_t data) {
    return file("{" + entry("w", dtype, shape, offsets) + "}", zeros(data));
}

inline std::string repeat(std::string const& part, size_t n, std::string const& separator = "") {
    std::string out;
    out.reserve(n * (part.size() + separator.size()));
    for (size_t i = 0; i < n; ++i) (i == 0 ? out : out += separator) += part;
    return out;
}

inline std::string many(size_t n, std::string const& dtype, std::string const& shape, std::string const& offsets, size_t data) {
    auto const nameless = entry("", dtype, shape, offsets);  // which begins with two quotation marks
    std::string header = "{";
    header.reserve(n * (nameless.size() + 9));
    for (size_t i = 0; i < n; ++i) {
        header += i == 0 ? "\"" : ",\"";
        header += std::to_string(i);
        header.append(nameless, 1);
    }
    header += '}';
    return file(header, zeros(data));
}

inline std::vector<Case> corpus() {
    std::string const good = entry("w", "U8", "[4]", "[0,4]");
    std::vector<Case> c;
    auto add = [&](int row, std::string const& what, std::string const& bytes, std::string const& code, int64_t sparse = 0) { c.push_back({row, what, bytes, code, sparse}); };

    add(1, "empty file", "", "E_ST_TOO_SMALL");
    for (size_t n = 1; n < 8; ++n) add(2, std::to_string(n) + " bytes", zeros(n), "E_ST_TOO_SMALL");
    add(3, "length 0", length(0), "E_ST_BAD_JSON");
    add(3, "length 0, data", length(0) + zeros(8), "E_ST_BAD_JSON");
    add(4, "length 1, {", file("{"), "E_ST_BAD_JSON");
    add(5, "length one more than the file", length(3) + "{}", "E_ST_BAD_LENGTH");
    add(5, "length 1000 in a short file", length(1000) + "{}", "E_ST_BAD_LENGTH");
    add(6, "length 2^64-1", length(~uint64_t{0}) + "{}", "E_ST_HEADER_TOO_LARGE");
    for (uint64_t n : {~uint64_t{0} - 7, uint64_t{1} << 63, uint64_t{1} << 32}) add(7, "length " + std::to_string(n), length(n) + "{}", "E_ST_HEADER_TOO_LARGE");
    add(8, "length 100000001 in a sparse file", length(100'000'001), "E_ST_HEADER_TOO_LARGE", 200'000'000);
    add(9, "big-endian length", std::string("\0\0\0\0\0\0\0\2", 8) + "{}", "E_ST_HEADER_TOO_LARGE");

    add(10, "header 0xFF", file("\xFF"), "E_ST_NOT_UTF8");
    for (std::string const bad : {"\xC0\xAF", "\xC1\xBF", "\xE0\x80\xAF", "\xE0\x9F\xBF", "\xF0\x80\x80\xAF", "\xF0\x8F\xBF\xBF", "\xED\xA0\x80", "\xED\xBF\xBF", "\xF4\x90\x80\x80",
                                  "\xF5\x80\x80\x80", "\x80", "\xBF", "\xC3", "\xE2\x82", "\xF0\x9F\x98", "\xFE", "\xE2\x28\xA1"})
        add(11, "bad UTF-8 in a key", file("{" + entry("w" + bad, "U8", "[4]", "[0,4]") + "}", zeros(4)), "E_ST_NOT_UTF8");
    add(11, "UTF-8 truncated by the header's end", file("{\"\xE2"), "E_ST_NOT_UTF8");
    add(12, "byte order mark", file("\xEF\xBB\xBF{" + good + "}", zeros(4)), "E_ST_BAD_START");
    for (std::string const space : {" ", "\n", "\t", "\r\n  "}) add(13, "leading space", file(space + "{" + good + "}", zeros(4)), "");
    for (std::string const value : {"[]", "1", "\"x\"", "null", "true", "-1.5", "[{}]"}) add(14, "header " + value, file(value), "E_ST_NOT_OBJECT");
    for (std::string const tail : {"x", "{}", ",", "}", "]", "null", "\"\""}) add(15, "{...}" + tail, file("{" + good + "}" + tail, zeros(4)), "E_ST_BAD_JSON");
    add(16, "NUL padding", file("{" + good + "}" + zeros(4), zeros(4)), "E_ST_BAD_JSON");
    for (std::string const text : {"{/**/}", "{}//", "//\n{}", "#\n{}", "{\"__metadata__\":{},}", "{,}", "{'w':1}", "{w:1}", "{\"w\"}", "{\"w\" 1}", "{\"w\":}", "{\"w\":{\"dtype\":\"U8\",}}",
                                   "{\"w\":{\"shape\":[1,]}}", "{\"w\":{\"shape\":[,1]}}", "{\"w\":{\"shape\":[1 2]}}", "{\"w\":{\"shape\":[01]}}", "{\"w\":{\"shape\":[+1]}}", "{\"w\":{\"shape\":[0x1]}}",
                                   "{\"w\":{\"shape\":[1}}", "{\"w\":{\"shape\":[1.]}}", "{\"w\":{\"shape\":[.5]}}", "{\"w\":{\"shape\":[1e]}}", "{\"w\":{\"shape\":[-]}}", "{\"w\":{\"dtype\":\"U8}}",
                                   "{\"w\":{\"dtype\":\"\\x41\"}}", "{\"w\":{\"dtype\":\"\\u12\"}}", "{\"w\":{\"dtype\":\"\\u+123\"}}", "{\"\\ud800\":1}", "{\"\\udc00\":1}", "{\"\\ud800\\u0041\":1}",
                                   "{\"w\n\":1}", "{\"w\\", "{\"w\\u", "{\"w", "{\"w\":tru}", "{\"w\":nul", "xyz", "\v{}", "\xC2\xA0{}"})
        add(17, text, file(text), "E_ST_BAD_JSON");
    for (std::string const number : {"NaN", "Infinity", "-Infinity", "nan", "1e400", "-1e400", "1E+400"})
        add(18, number, one("U8", "[" + number + "]", "[0,4]", 4), "E_ST_BAD_JSON");
    for (std::string const open : {"[", "{\"a\":", "{\"w\":{\"shape\":[", "{\"__metadata__\":["}) add(19, "nested 10^5 deep", file(open + repeat("[", 100'000)), "E_ST_TOO_DEEP");
    add(19, "nested and closed", file("{\"w\":" + repeat("[", 100'000) + repeat("]", 100'000) + "}"), "E_ST_TOO_DEEP");

    add(20, "a tensor twice", file("{" + good + "," + good + "}", zeros(4)), "E_ST_DUP_KEY");
    add(20, "a tensor twice, side by side", file("{" + good + "," + entry("w", "U8", "[4]", "[4,8]") + "}", zeros(8)), "E_ST_DUP_KEY");
    add(20, "a name twice with another between", file("{" + good + "," + entry("v", "U8", "[4]", "[4,8]") + "," + entry("w", "U8", "[4]", "[8,12]") + "}", zeros(12)), "E_ST_DUP_KEY");
    add(20, "an empty tensor twice", file("{" + entry("w", "U8", "[0]", "[0,0]") + "," + entry("w", "U8", "[0]", "[0,0]") + "}"), "E_ST_DUP_KEY");
    add(21, "a name twice by an escape", file("{" + good + "," + entry("\\u0077", "U8", "[4]", "[4,8]") + "}", zeros(8)), "E_ST_DUP_KEY");
    add(22, "two dtypes", file(R"({"w":{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}})", zeros(4)), "E_ST_DUP_KEY");
    add(22, "two shapes", file(R"({"w":{"dtype":"U8","shape":[4],"shape":[4],"data_offsets":[0,4]}})", zeros(4)), "E_ST_DUP_KEY");
    add(22, "two data_offsets", file(R"({"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4],"data_offsets":[0,4]}})", zeros(4)), "E_ST_DUP_KEY");
    add(22, "two dtypes by an escape", file(R"({"w":{"dtype":"U8","d\u0074ype":"U8","shape":[4],"data_offsets":[0,4]}})", zeros(4)), "E_ST_DUP_KEY");
    add(23, "two __metadata__", file(R"({"__metadata__":{},"__metadata__":{}})"), "E_ST_DUP_KEY");
    add(23, "a metadata key twice", file(R"({"__metadata__":{"a":"1","a":"1"}})"), "E_ST_DUP_KEY");
    for (std::string const value : {"[]", "1", "\"x\"", "null", "true"}) add(24, "metadata " + value, file("{\"__metadata__\":" + value + "}"), "E_ST_BAD_METADATA");
    for (std::string const value : {"{}", "[]", "1", "null", "false"}) add(25, "metadata value " + value, file("{\"__metadata__\":{\"a\":" + value + "}}"), "E_ST_BAD_METADATA");

    add(27, "unknown field", file(R"({"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4],"extra":1}})", zeros(4)), "E_ST_UNKNOWN_FIELD");
    add(27, "field in capitals", file(R"({"w":{"DTYPE":"U8","shape":[4],"data_offsets":[0,4]}})", zeros(4)), "E_ST_UNKNOWN_FIELD");
    add(28, "no dtype", file(R"({"w":{"shape":[4],"data_offsets":[0,4]}})", zeros(4)), "E_ST_MISSING_FIELD");
    add(28, "no shape", file(R"({"w":{"dtype":"U8","data_offsets":[0,4]}})", zeros(4)), "E_ST_MISSING_FIELD");
    add(28, "no data_offsets", file(R"({"w":{"dtype":"U8","shape":[4]}})", zeros(4)), "E_ST_MISSING_FIELD");
    add(28, "nothing", file(R"({"w":{}})"), "E_ST_MISSING_FIELD");
    for (std::string const value : {"1", "null", "[]", "\"x\""}) add(28, "entry " + value, file("{\"w\":" + value + "}"), "E_ST_NOT_OBJECT");
    for (std::string const dtype : {"F128", "f32", "", "F32 ", "float32", "F8_E4M3FN"}) add(29, "dtype " + dtype, one(dtype, "[1]", "[0,4]", 4), "E_ST_BAD_DTYPE");
    for (std::string const dtype : {"1", "null", "[]", "{}", "true"}) add(29, "dtype " + dtype, file(R"({"w":{"dtype":)" + dtype + R"(,"shape":[1],"data_offsets":[0,4]}})", zeros(4)), "E_ST_BAD_DTYPE");
    for (std::string const dtype : {"F6_E2M3", "F6_E3M2"}) add(30, dtype, one(dtype, "[4]", "[0,3]", 3), "E_ST_UNSUPPORTED_DTYPE");

    for (std::string const shape : {"4", "\"4\"", "{}", "null", "[\"4\"]", "[null]", "[true]", "[[4]]", "[{}]"}) add(31, "shape " + shape, one("U8", shape, "[0,4]", 4), "E_ST_BAD_SHAPE");
    for (std::string const dim : {"-1", "-4", "-9223372036854775808"}) add(32, "dim " + dim, one("U8", "[" + dim + "]", "[0,4]", 4), "E_ST_BAD_SHAPE");
    for (std::string const dim : {"4.0", "2.5", "4e0", "1e3", "-0", "-0.0"}) add(33, "dim " + dim, one("U8", "[" + dim + "]", "[0,4]", 4), "E_ST_BAD_SHAPE");
    add(34, "dim 2^53+1 against 2^53 bytes", one("U8", "[9007199254740993]", "[0,9007199254740992]", 4), "E_ST_BAD_OFFSETS");
    add(34, "dim 2^53+1", one("F64", "[9007199254740993,2048]", "[0,4]", 4), "E_ST_OVERFLOW");
    for (std::string const dim : {"18446744073709551616", "1000000000000000000000000000000"}) add(35, "dim " + dim, one("U8", "[" + dim + "]", "[0,4]", 4), "E_ST_BAD_SHAPE");
    add(36, "[2, 2^64-2]", one("I32", "[2,18446744073709551614]", "[0,16]", 16), "E_ST_OVERFLOW");
    add(37, "[2, 2^63-1]", one("I32", "[2,9223372036854775807]", "[0,16]", 16), "E_ST_OVERFLOW");
    add(37, "2^61 of 8 bytes", one("F64", "[2305843009213693952]", "[0,0]", 0), "E_ST_OVERFLOW");
    add(38, "[2^32, 2^32] is 0 in 64 bits", one("U8", "[4294967296,4294967296]", "[0,0]", 0), "E_ST_OVERFLOW");
    add(38, "[2^32, 2^32] with bytes", one("F32", "[4294967296,4294967296]", "[4,4]", 4), "E_ST_OVERFLOW");
    add(39, "[2^33, 2^33] of F32", one("F32", "[8589934592,8589934592]", "[0,16]", 16), "E_ST_OVERFLOW");
    add(40, "zero beside 2^64-1", one("U8", "[0,18446744073709551615,18446744073709551615]", "[0,0]", 0), "E_ST_OVERFLOW");
    add(40, "zero behind an overflow", one("U8", "[4294967296,4294967296,0]", "[0,0]", 0), "E_ST_OVERFLOW");
    add(40, "zero beside 2^62 F64", one("F64", "[0,4611686018427387904]", "[0,0]", 0), "E_ST_OVERFLOW");
    add(41, "2^63 elements", one("U8", "[9223372036854775808]", "[0,4]", 4), "E_ST_OVERFLOW");
    add(41, "2^64-1 elements", one("BOOL", "[18446744073709551615]", "[0,4]", 4), "E_ST_OVERFLOW");
    add(42, "65 dims", one("U8", "[" + repeat("1", 65, ",") + "]", "[0,1]", 1), "E_ST_TOO_MANY_DIMS");
    add(42, "10^6 dims", one("U8", "[" + repeat("1", 1'000'000, ",") + "]", "[0,1]", 1), "E_ST_TOO_MANY_DIMS");
    add(42, "64 dims", one("U8", "[" + repeat("1", 64, ",") + "]", "[0,1]", 1), "");
    for (std::string const offsets : {"[]", "[0]", "[0,4,8]", "[\"0\",\"4\"]", "[null,4]", "[-1,4]", "[0,-4]", "[0.0,4.0]", "[0,4e0]", "4", "{}", "null", "[0,18446744073709551616]", "[-0,4]"})
        add(43, "data_offsets " + offsets, one("U8", "[4]", offsets, 4), "E_ST_BAD_OFFSETS");
    add(44, "end < begin", one("U8", "[4]", "[4,0]", 4), "E_ST_BAD_OFFSETS");
    add(45, "end > data", one("U8", "[4]", "[0,5]", 4), "E_ST_BAD_OFFSETS");
    add(45, "wholly behind the data", one("U8", "[4]", "[1000,1004]", 4), "E_ST_BAD_OFFSETS");
    add(45, "second tensor behind the data", file("{" + good + "," + entry("v", "U8", "[4]", "[8,12]") + "}", zeros(8)), "E_ST_BAD_OFFSETS");
    for (std::string const offsets : {"[18446744073709551615,18446744073709551615]", "[0,18446744073709551615]", "[18446744073709551612,18446744073709551615]", "[9223372036854775808,9223372036854775808]"})
        add(46, "data_offsets " + offsets, one("U8", "[0]", offsets, 4), "E_ST_BAD_OFFSETS");
    add(46, "zero elements far away", one("U8", "[0]", "[9223372036854775807,9223372036854775807]", 4), "E_ST_BAD_OFFSETS");
    add(47, "too few bytes", one("F32", "[2]", "[0,4]", 4), "E_ST_SIZE_MISMATCH");
    add(47, "too many bytes", one("F32", "[1]", "[0,8]", 8), "E_ST_SIZE_MISMATCH");
    add(47, "bytes without elements", one("F32", "[0]", "[0,4]", 4), "E_ST_SIZE_MISMATCH");
    add(47, "elements without bytes", one("F32", "[]", "[0,0]", 0), "E_ST_SIZE_MISMATCH");
    add(48, "3 F4", one("F4", "[3]", "[0,2]", 2), "E_ST_MISALIGNED");
    add(48, "1 F4", one("F4", "[]", "[0,1]", 1), "E_ST_MISALIGNED");
    add(48, "3 F6", one("F6_E2M3", "[3]", "[0,3]", 3), "E_ST_MISALIGNED");
    add(48, "F4 in odd rows", one("F4", "[2,3]", "[0,3]", 3), "E_ST_MISALIGNED");
    add(48, "4 F4", one("F4", "[4]", "[0,2]", 2), "");

    add(49, "leading hole", one("U8", "[4]", "[4,8]", 8), "E_ST_HOLE");
    add(50, "hole", file("{" + good + "," + entry("v", "U8", "[4]", "[5,9]") + "}", zeros(9)), "E_ST_HOLE");
    add(50, "hole before an empty tensor", file("{" + good + "," + entry("v", "U8", "[0]", "[5,5]") + "}", zeros(5)), "E_ST_HOLE");
    add(51, "overlap by a byte", file("{" + good + "," + entry("v", "U8", "[4]", "[3,7]") + "}", zeros(7)), "E_ST_OVERLAP");
    add(51, "overlap in a longer file", file("{" + good + "," + entry("v", "U8", "[4]", "[3,7]") + "}", zeros(9)), "E_ST_OVERLAP");
    add(51, "empty tensor inside another", file("{" + good + "," + entry("v", "U8", "[0]", "[2,2]") + "}", zeros(4)), "E_ST_OVERLAP");
    add(52, "10 tensors on one range", many(10, "U8", "[4]", "[0,4]", 4), "E_ST_OVERLAP");
    add(53, "10^7 tensors on one range: more than a header holds", length(600'000'000), "E_ST_HEADER_TOO_LARGE", 600'000'012);
    add(54, "a zip archive behind", file("{" + good + "}", zeros(4) + "PK\x03\x04 polyglot"), "E_ST_TRAILING");
    add(54, "one byte behind", file("{" + good + "}", zeros(5)), "E_ST_TRAILING");
    add(55, "2 bytes missing", one("I32", "[2,2]", "[0,16]", 14), "E_ST_TRUNCATED");
    add(55, "no data at all", one("I32", "[2,2]", "[0,16]", 0), "E_ST_TRUNCATED");
    add(56, "data without tensors", file("{}", zeros(1)), "E_ST_TRAILING");
    add(57, "{}", file("{}"), "");
    add(57, "padded", file("{}      "), "");
    add(57, "padded with every white space", file("{} \n\r\t"), "");
    add(57, "scalar", one("F32", "[]", "[0,4]", 4), "");
    add(57, "empty tensor", one("F32", "[0]", "[0,0]", 0), "");
    add(57, "empty tensors at both ends of another, in any order",
        file("{" + good + "," + entry("b", "F64", "[3,0]", "[4,4]") + "," + entry("a", "U8", "[0]", "[0,0]") + "," + entry("c", "F64", "[0]", "[4,4]") + "}", zeros(4)), "");
    add(57, "written backwards", file("{" + entry("v", "U8", "[4]", "[4,8]") + "," + good + "}", zeros(8)), "");
    add(57, "fields in any order, spaces everywhere", file("{ \"w\" : { \"data_offsets\" : [ 0 , 4 ] , \"shape\" : [ 4 ] ,\n\"dtype\" : \"U8\" } }", zeros(4)), "");
    add(59, "empty name", file("{" + entry("", "U8", "[4]", "[0,4]") + "}", zeros(4)), "");
    add(59, "64 KB name", file("{" + entry(std::string(65536, 'w'), "U8", "[4]", "[0,4]") + "}", zeros(4)), "E_ST_BAD_NAME");
    add(59, "4096 byte name", file("{" + entry(std::string(4096, 'w'), "U8", "[4]", "[0,4]") + "}", zeros(4)), "");
    for (std::string const name : {"w\\u0000", "w\\n", "\\u001b[31m", "w\\u007f", "w\\u0085"}) add(59, "name " + name, file("{" + entry(name, "U8", "[4]", "[0,4]") + "}", zeros(4)), "E_ST_BAD_NAME");
    add(59, "bidi override", file("{" + entry("w\xE2\x80\xAEtxt", "U8", "[4]", "[0,4]") + "}", zeros(4)), "");
    for (char const byte : {'\x02', '\x80', '\xFF'}) add(60, "BOOL byte", file("{" + entry("w", "BOOL", "[4]", "[0,4]") + "}", std::string("\0\1\1", 3) + byte), "E_ST_BAD_BOOL");
    add(61, "NaN", file("{" + entry("w", "F32", "[1]", "[0,4]") + "}", "\xFF\xFF\xFF\xFF"), "");
    add(61, "infinity", file("{" + entry("w", "F16", "[1]", "[0,2]") + "}", std::string("\0\x7C", 2)), "");

    // pickles and zip archives under a borrowed name
    add(0, "zip archive", "PK\x03\x04" + zeros(100), "E_PICKLE_REFUSED");
    for (char const protocol : {'\2', '\3', '\4', '\5'}) add(0, "pickle", std::string("\x80") + protocol + "}q\1.   " + zeros(20), "E_PICKLE_REFUSED");
    add(0, "a header of exactly the limit, in a short file", length(100'000'000) + "{}", "E_ST_BAD_LENGTH");
    return c;
}

// Those of more than a million tensors, which take seconds to read.
inline std::vector<Case> large_corpus() {
    return {{53, "1600000 tensors on one range", many(1'600'000, "U8", "[4]", "[0,4]", 4), "E_ST_OVERLAP"},
            {58, "1500000 empty tensors", many(1'500'000, "U8", "[0]", "[0,0]", 0), "E_ST_TOO_MANY_TENSORS"}};
}

}  // namespace hostile
