#pragma once
// Malformed (and a few odd but valid) folders of sharded models, each with the code it must give: rows 64 to 83 of the table that the library
// promises to refuse. Links, FIFOs and files of hundreds of megabytes are in tests/state.cpp.

#include <map>
#include <string>
#include <vector>

#include "hostile/safetensors.hpp"

namespace hostile {

struct FolderCase {
    int row;
    std::string what;
    std::map<std::string, std::string> files;  // name -> bytes
    std::string code;                          // "" where the folder is valid
};

inline std::string const index_name = "model.safetensors.index.json";
inline std::string const shard_1 = "model-00001-of-00002.safetensors", shard_2 = "model-00002-of-00002.safetensors";

/// A file with tensors of four bytes each.
inline std::string shard(std::vector<std::string> const& names, std::string const& shape = "[4]") {
    std::string header = "{";
    for (size_t i = 0; i < names.size(); ++i) header += (i == 0 ? "" : ",") + entry(names[i], "U8", shape, "[" + std::to_string(4 * i) + "," + std::to_string(4 * i + 4) + "]");
    return file(header + "}", zeros(4 * names.size()));
}

inline std::string quoted(std::string const& text) { return "\"" + text + "\""; }

inline std::string index(std::string const& weight_map, std::string const& metadata = R"({"total_size":8})") { return R"({"metadata":)" + metadata + R"(,"weight_map":)" + weight_map + "}"; }

inline std::vector<FolderCase> folders() {
    std::vector<FolderCase> c;
    std::string const map = R"({"a":")" + shard_1 + R"(","b":")" + shard_2 + R"("})";
    std::map<std::string, std::string> const shards{{shard_1, shard({"a"})}, {shard_2, shard({"b"})}};
    auto add = [&](int row, std::string const& what, std::string const& code, std::string const& index, std::map<std::string, std::string> files = {}, bool with_shards = true) {
        if (with_shards) files.insert(shards.begin(), shards.end());
        if (!index.empty()) files.emplace(index_name, index);
        c.push_back({row, what, files, code});
    };
    auto names = [&](int row, std::string const& shard, std::string const& code) { add(row, "the shard " + shard, code, index(R"({"a":)" + quoted(shard) + "}")); };

    add(0, "a valid model in two files", "", index(map));
    add(0, "no metadata", "", R"({"weight_map":)" + map + "}");
    add(0, "metadata of any kind", "", index(map, R"({"total_size":8,"total_parameters":3,"by":{"x":[1,{"y":null}],"z":-1.5e3}})"));
    add(0, "white space", "", " \n" + index(map) + "\n");
    add(0, "one file under an index", "", index(R"({"a":"model-00001-of-00001.safetensors"})", R"({"total_size":4})"), {{"model-00001-of-00001.safetensors", shard({"a"})}}, false);
    add(0, "no tensors at all", "", index("{}", R"({"total_size":0})"), {}, false);
    add(0, "only model.safetensors", "", "", {{"model.safetensors", shard({"a", "b"})}}, false);
    add(0, "one file under another name", "", "", {{"adapter.safetensors", shard({"a", "b"})}}, false);
    add(64, "no weight_map", "E_IX_SCHEMA", R"({"metadata":{}})");
    for (auto const* value : {"[]", "1", "null", "\"x\"", "true"}) add(64, std::string("weight_map ") + value, "E_IX_SCHEMA", index(value));
    for (auto const* value : {"[\"a\"]", "1", "null", "{}"}) add(64, std::string("the file ") + value, "E_IX_SCHEMA", index(std::string(R"({"a":)") + value + "}"));
    for (auto const* value : {"[]", "1", "\"x\""}) add(64, std::string("metadata ") + value, "E_IX_SCHEMA", index(map, value));
    for (auto const* text : {"[]", "1", "null", "\"x\""}) add(64, text, "E_IX_SCHEMA", text);
    add(64, "an unknown field", "E_IX_SCHEMA", R"({"weight_map":)" + map + R"(,"weights":{}})");
    names(65, "../x.safetensors", "E_IX_PATH");
    names(66, "/etc/passwd", "E_IX_PATH");
    for (auto const* name : {"a/../../x", "./../x", "a//../..", "sub/x.safetensors"}) names(67, name, "E_IX_PATH");
    for (auto const* name : {R"(..\\x)", R"(C:\\x)", R"(C:x)", R"(\\\\host\\x)", "file://x", "%2e%2e/x", R"(\u002e\u002e\u002fx)"}) names(68, name, "E_IX_PATH");
    for (auto const& name : {std::string(), std::string("."), std::string(".."), std::string("x/"), std::string(R"(x\u0000y)"), std::string(R"(x\u001by)"), std::string(256, 'x')}) names(69, name, "E_IX_PATH");
    add(72, "a tensor in two files", "E_IX_DUP_KEY", index(R"({"a":")" + shard_1 + R"(","a":")" + shard_2 + R"("})"));
    add(72, "the same by an escape", "E_IX_DUP_KEY", index(R"({"a":")" + shard_1 + R"(","\u0061":")" + shard_2 + R"("})"));
    add(72, "two weight_maps", "E_IX_DUP_KEY", R"({"weight_map":)" + map + R"(,"weight_map":)" + map + "}");
    add(72, "two total_sizes", "E_IX_DUP_KEY", index(map, R"({"total_size":8,"total_size":8})"));
    add(73, "a tensor that is not in its file", "E_IX_MISSING_TENSOR", index(R"({"a":")" + shard_1 + R"(","b":")" + shard_2 + R"(","c":")" + shard_2 + R"("})"));
    add(74, "a tensor that is not in the index", "E_IX_EXTRA_TENSOR", index(map), {{shard_2, shard({"b", "c"})}});
    add(75, "a tensor in two files, of two shapes", "E_IX_CONFLICT", index(map), {{shard_2, file("{" + entry("a", "U8", "[2,2]", "[0,4]") + "," + entry("b", "U8", "[4]", "[4,8]") + "}", zeros(8))}});
    add(75, "a tensor in the other file", "E_IX_CONFLICT", index(R"({"a":")" + shard_2 + R"(","b":")" + shard_1 + R"("})"));
    add(76, "a file that is not there", "E_IX_MISSING_SHARD", index(map), {{shard_1, shard({"a"})}}, false);
    add(76, "an empty file", "E_IX_MISSING_SHARD", index(map), {{shard_2, ""}});
    for (auto const* size : {"7", "9", "0", "-8", "\"8\"", "1180591620717411303424", "9223372036854775808", "8.5", "8e0", "null", "[]", "true"})
        add(77, std::string("total_size ") + size, "E_IX_TOTAL_SIZE", index(map, std::string(R"({"total_size":)") + size + "}"));
    add(78, "nested deeply", "E_IX_BAD_JSON", index(map, R"({"x":)" + repeat("[", 100'000) + repeat("]", 100'000) + "}"));
    add(78, "not UTF-8", "E_IX_BAD_JSON", index("{\"\xFF\":\"x\"}"));
    add(78, "gzip", "E_IX_BAD_JSON", std::string("\x1F\x8B\x08\0\0\0\0\0\0\3", 10));
    add(78, "a byte order mark", "E_IX_BAD_JSON", "\xEF\xBB\xBF" + index(map));
    for (auto const* text : {"{", "{}}", "{\"weight_map\":{}", "{\"weight_map\":{},}", "{'weight_map':{}}", "{\"weight_map\":{\"a\" \"b\"}}", "{\"weight_map\":{}} x", "{\"metadata\":{\"x\":[1,]},\"weight_map\":{}}", "{\"metadata\":{\"x\":NaN},\"weight_map\":{}}",
                             "{\"metadata\":{\"x\":{\"y\"}},\"weight_map\":{}}", "{\"metadata\":{\"x\":},\"weight_map\":{}}", " "})
        add(78, text, "E_IX_BAD_JSON", text);
    std::string many = "{";
    for (int i = 0; i < 1'000'000; ++i) many += (i == 0 ? "\"" : ",\"") + std::to_string(i) + R"(":")" + std::to_string(i) + "\"";
    add(79, "a million files", "E_IX_TOO_MANY", index(many + "}"));
    add(80, "two indexes", "E_IX_AMBIGUOUS", index(map), {{"model.fp16.safetensors.index.json", index(map)}});
    add(80, "an index and the whole", "E_IX_AMBIGUOUS", index(map), {{"model.safetensors", shard({"a", "b"})}});
    add(80, "two files and no index", "E_IX_AMBIGUOUS", "");
    for (auto const* suffix : {".bin", ".pt", ".pth", ".ckpt", ".pkl"}) names(81, std::string("model-00001-of-00002") + suffix, "E_PICKLE_REFUSED");
    add(81, "only pickles", "E_PICKLE_REFUSED", "", {{"pytorch_model.bin", "PK\x03\x04"}}, false);
    add(81, "only an index of pickles", "E_PICKLE_REFUSED", "", {{"pytorch_model.bin.index.json", index(map)}}, false);
    add(82, "a file of an earlier save", "", index(map), {{"model-00003-of-00003.safetensors", shard({"c"})}});
    add(83, "names that differ by case", "E_IX_CONFLICT", index(R"({"a":"x.safetensors","b":"X.safetensors"})"), {{"x.safetensors", shard({"a"})}, {"X.safetensors", shard({"b"})}}, false);
    add(83, "an accent, composed and not", "E_IX_CONFLICT", index(R"({"a":"\u00e9.safetensors","b":"e\u0301.safetensors"})"), {{"\u00e9.safetensors", shard({"a"})}, {"e\u0301.safetensors", shard({"b"})}}, false);
    add(83, "other letters", "", index(R"({"a":"\u4f60.safetensors","b":"\u4f61.safetensors"})"), {{"\u4f60.safetensors", shard({"a"})}, {"\u4f61.safetensors", shard({"b"})}}, false);
    add(0, "a name that is too long", "E_ST_BAD_NAME", index(R"({")" + std::string(5000, 'x') + R"(":"x.safetensors"})"));
    return c;
}

}  // namespace hostile
