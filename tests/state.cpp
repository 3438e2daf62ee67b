// Files of tensors: safetensors as Python writes and reads it, and everything that must be refused.
#include "support/catch.hpp"
#include "support/folder.hpp"
#include "support/locale.hpp"

#include <torch/torch.h>

#include <accelerate/state/load_model.hpp>
#include <accelerate/state/rename_regex.hpp>
#include <accelerate/state/safetensors.hpp>
#include <accelerate/state/save.hpp>
#include <accelerate/state/save_model.hpp>

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <random>
#include <set>
#include <thread>

#include "hostile/index.hpp"

namespace acc = accelerate;
namespace state = accelerate::state;
namespace fs = std::filesystem;

namespace {

std::string slurp(fs::path const& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}

void spill(fs::path const& path, std::string const& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

/// The code of what `f` throws, "" when it throws nothing; the message is left in `message`.
template <class F>
std::string code_of(F f, std::string* message = nullptr) {
    try {
        f();
    } catch (acc::Error const& e) {
        if (message != nullptr) *message = e.what();
        return std::string(e.code().name);
    }
    return "";
}

bool same_bits(at::Tensor const& a, at::Tensor const& b) {
    return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() && (a.nbytes() == 0 || std::memcmp(a.contiguous().const_data_ptr(), b.contiguous().const_data_ptr(), a.nbytes()) == 0);
}

/// The tensors of tests/data/python_safetensors.py.
at::Tensor patterned(at::ScalarType type, std::vector<int64_t> const& shape) {
    auto out = at::empty(shape, type);
    auto* bytes = static_cast<unsigned char*>(out.mutable_data_ptr());
    for (size_t i = 0; i < out.nbytes(); ++i) bytes[i] = static_cast<unsigned char>((37 * i + 11) % (type == at::kBool ? 2 : 251));
    return out;
}

acc::TensorMap python_tensors() {
    using T = at::ScalarType;
    return {{"z", patterned(T::Float, {3, 5})},
            {"a", patterned(T::Float, {2})},
            {"scalar", patterned(T::Float, {})},
            {"empty", patterned(T::Float, {0, 4})},
            {"half", patterned(T::Half, {7})},
            {"brain", patterned(T::BFloat16, {3})},
            {"double", patterned(T::Double, {2, 2})},
            {"complex", patterned(T::ComplexFloat, {3})},
            {"mask", patterned(T::Bool, {5})},
            {"u8", patterned(T::Byte, {3})},
            {"u16", patterned(T::UInt16, {3})},
            {"u32", patterned(T::UInt32, {3})},
            {"u64", patterned(T::UInt64, {3})},
            {"i8", patterned(T::Char, {3})},
            {"i16", patterned(T::Short, {3})},
            {"i32", patterned(T::Int, {3})},
            {"i64", patterned(T::Long, {3})},
            {"e4m3", patterned(T::Float8_e4m3fn, {3})},
            {"e5m2", patterned(T::Float8_e5m2, {3})},
            {"e4m3fnuz", patterned(T::Float8_e4m3fnuz, {3})},
            {"e5m2fnuz", patterned(T::Float8_e5m2fnuz, {3})},
            {"e8m0", patterned(T::Float8_e8m0fnu, {3})},
            {"packed", patterned(T::Float4_e2m1fn_x2, {2, 3})},
            {"gr\u00fc\u00dfe \"quoted\" \\ \u4f60\u597d", patterned(T::Float, {1, 1, 1, 1})}};
}

std::map<std::string, std::string> python_metadata() {
    return {{"no\u0001te", "tab\t newline\n quote\" slash/ bell\u0007 delete\u007f gr\u00fc\u00dfe"}};
}

fs::path data() { return ACCELERATE_TEST_DATA; }

}  // namespace

// ---- against Python --------------------------------------------------------------------------------------------------------

TEST_CASE("what Python wrote is read, every dtype, to the bit", "[load_file][safetensors][dtype]") {
    auto const loaded = acc::load_file(data() / "python.safetensors");
    auto const expected = python_tensors();
    REQUIRE(loaded.size() == expected.size());
    for (auto const& item : expected) {
        INFO(item.first);
        CHECK(same_bits(loaded.at(item.first), item.second));
    }
    CHECK(state::SafetensorsReader(data() / "python.safetensors").metadata() == python_metadata());
}

TEST_CASE("the same tensors give the bytes that Python writes, in whatever order they come", "[save_file][safetensors]") {
    Folder folder;
    auto const tensors = python_tensors();
    acc::save_file(tensors, folder / "a.safetensors", python_metadata());
    CHECK(slurp(folder / "a.safetensors") == slurp(data() / "python.safetensors"));
    acc::TensorMap backwards;
    for (auto it = tensors.end(); it != tensors.begin();) backwards.insert(*--it);
    acc::save_file(backwards, folder / "b.safetensors", python_metadata());
    CHECK(slurp(folder / "b.safetensors") == slurp(data() / "python.safetensors"));
    for (auto const& entry : fs::directory_iterator(data() / "golden")) {
        if (entry.path().extension() != ".safetensors") continue;
        acc::save_file(acc::load_file(entry.path()), folder / "c.safetensors");
        CHECK(slurp(folder / "c.safetensors") == slurp(entry.path()));
    }
}

TEST_CASE("every dtype of the table has LibTorch's size, and the table is in Python's order", "[dtype]") {
    for (size_t i = 0; i < state::dtypes.size(); ++i) {
        auto const& d = state::dtypes[i];
        CHECK(state::find_dtype(d.name) == static_cast<int64_t>(i));
        if (d.type == at::ScalarType::Undefined) continue;
        CHECK(state::find_dtype(d.type) == static_cast<int64_t>(i));
        CHECK(d.bits * (d.bits == 4 ? 2 : 1) == static_cast<int64_t>(8 * c10::elementSize(d.type)));
    }
    CHECK(state::find_dtype(at::ScalarType::ComplexDouble) == -1);
    CHECK(state::find_dtype(at::ScalarType::Undefined) == -1);
    CHECK(std::ranges::is_sorted(std::span(state::dtypes).subspan(4), {}, &state::Dtype::bits));
}

// ---- writing ---------------------------------------------------------------------------------------------------------------

TEST_CASE("tensors come back by dtype and name, whatever they were", "[save_file][load_file]") {
    Folder folder;
    auto const base = torch::arange(24, torch::kFloat).view({4, 6});
    auto const weight = torch::randn({3, 3}, torch::requires_grad());
    auto const conjugate = torch::conj(torch::complex(torch::randn({3}), torch::randn({3})));
    std::map<std::string, torch::Tensor> const given{{"transposed", base.t().clone(at::MemoryFormat::Preserve)}, {"step", torch::arange(20).slice(0, 0, 20, 3)}, {"expanded", torch::ones({1}).expand({5})},
                                                     {"weight", weight}, {"conjugate", conjugate}, {"negative", torch::_neg_view(torch::ones({2}))},
                                                     {"scalar", torch::tensor(3.5)}, {"none", torch::empty({2, 0, 3})}, {"nhwc", torch::randn({2, 3, 4, 5}).contiguous(at::MemoryFormat::ChannelsLast)}};
    REQUIRE_FALSE(given.at("transposed").is_contiguous());
    acc::save_file(given, folder / "deep" / "er" / "x.safetensors", {{"k", "v"}});
    auto const back = acc::load_file(folder / "deep" / "er" / "x.safetensors");
    std::vector<std::string> order;
    for (auto const& item : back) order.push_back(item.first);
    CHECK(order == std::vector<std::string>{"step", "conjugate", "expanded", "negative", "nhwc", "none", "scalar", "transposed", "weight"});
    for (auto const& item : given) {
        INFO(item.first);
        CHECK(torch::equal(back.at(item.first), item.second));
        CHECK(back.at(item.first).is_contiguous());
        CHECK_FALSE(back.at(item.first).requires_grad());
    }
    acc::save_file({}, folder / "empty.safetensors");
    CHECK(acc::load_file(folder / "empty.safetensors").empty());
    CHECK(slurp(folder / "empty.safetensors") == hostile::file("{}      "));
}

TEST_CASE("larger than every buffer, and many small ones", "[output_file][save_file]") {
    Folder folder;
    acc::TensorMap tensors;
    tensors.insert("big", torch::randn({1 << 20}));
    for (int i = 0; i < 3000; ++i) tensors.insert("t" + std::to_string(i), torch::full({i % 70}, i));
    acc::save_file(tensors, folder / "x");
    auto const back = acc::load_file(folder / "x");
    REQUIRE(back.size() == tensors.size());
    for (auto const& item : tensors) CHECK(same_bits(back.at(item.first), item.second));
    CHECK(folder.files() == 1);
}

TEST_CASE("what the format cannot hold is refused before anything is written", "[save_file]") {
    Folder folder;
    auto const save = [&](acc::TensorMap const& t, std::map<std::string, std::string> const& metadata = {}) { return code_of([&] { acc::save_file(t, folder / "x", metadata); }); };
    auto const t = torch::ones({4});
    CHECK(save({{"__metadata__", t}}) == "E_ST_RESERVED_NAME");  // row 26
    CHECK(save({{"w\n", t}}) == "E_ST_BAD_NAME");
    CHECK(save({{std::string(5000, 'w'), t}}) == "E_ST_BAD_NAME");
    CHECK(save({{"w\xFF", t}}) == "E_ST_NOT_UTF8");
    CHECK(save({{"w", t}}, {{"k\xFF", "v"}}) == "E_ST_NOT_UTF8");
    CHECK(save({{"w", t}}, {{"k", "\xC0\xAF"}}) == "E_ST_NOT_UTF8");
    CHECK(save({{"w", torch::Tensor()}}) == "E_ST_BAD_TENSOR");
    CHECK(save({{"w", torch::ones({2}, torch::kMeta)}}) == "E_ST_BAD_TENSOR");
    CHECK(save({{"w", t.to_sparse()}}) == "E_ST_BAD_TENSOR");
    CHECK(save({{"w", torch::quantize_per_tensor(t, 0.1, 0, torch::kQInt8)}}) == "E_ST_BAD_TENSOR");
    CHECK(save({{"w", torch::zeros({2}, torch::kComplexDouble)}}) == "E_ST_UNSUPPORTED_DTYPE");
    CHECK(save({{"a", t}, {"b", t}}) == "E_ST_SHARED_MEMORY");
    CHECK(save({{"a", t.slice(0, 0, 3)}, {"b", t.slice(0, 2, 4)}}) == "E_ST_SHARED_MEMORY");
    CHECK(save({{"a", t.view({2, 2}).t()}, {"b", t.slice(0, 3, 4)}}) == "E_ST_SHARED_MEMORY");
    CHECK(folder.files() == 0);
    CHECK(save({{"a", t.slice(0, 0, 2)}, {"b", t.slice(0, 2, 4)}, {"c", t.slice(0, 2, 2)}}) == "");  // side by side in one buffer
    std::string message;
    code_of([&] { acc::save_file({{"first", t}, {"second", t}}, folder / "x"); }, &message);
    CHECK(message.find("\"first\" and \"second\"") != std::string::npos);
}

TEST_CASE("files are the same whatever the locale writes numbers like", "[save_file][split_state_dict]") {
    Folder folder;
    acc::TensorMap const tensors{{"w", torch::arange(12'345).to(at::kFloat)}, {"v", torch::ones({2'000, 3})}};
    auto const save_all = [&](fs::path const& to) {
        fs::create_directories(to);
        acc::save_file(tensors, to / "x.safetensors", {{"k", "v"}});
        state::save_shards({tensors, {}}, to / "sharded", {.max_shard_size = 20'000});
    };
    save_all(folder / "classic");
    {
        ForeignLocale const foreign;
        save_all(folder / "foreign");
        CHECK(same_bits(acc::load_file(folder / "foreign/x.safetensors").at("w"), tensors.at("w")));
        CHECK(same_bits(acc::load_file(folder / "foreign/sharded").at("v"), tensors.at("v")));
    }
    int files = 0;
    for (auto const& entry : fs::recursive_directory_iterator(folder / "classic")) {
        if (!entry.is_regular_file()) continue;
        CHECK(slurp(entry.path()) == slurp(folder / "foreign" / fs::relative(entry.path(), folder / "classic")));
        ++files;
    }
    CHECK(files == 4);
}

TEST_CASE("what a program prints on streams that it has closed goes into no file", "[output_file][input_file]") {
    Folder folder;
    int const saved = ::dup(STDERR_FILENO);
    ::close(STDERR_FILENO);
    {
        state::OutputFile file(folder / "x", 0);
        file.write("whole");
        CHECK(::write(STDERR_FILENO, "printed", 7) < 0);
        file.commit();
        CHECK(state::InputFile(folder / "x").descriptor() > STDERR_FILENO);
    }
    ::dup2(saved, STDERR_FILENO);
    ::close(saved);
    CHECK(slurp(folder / "x") == "whole");
}

TEST_CASE("a file appears whole or not at all", "[output_file][save_file]") {
    Folder folder;
    acc::save_file({{"w", torch::ones({2})}}, folder / "x");
    auto const before = slurp(folder / "x");

    SECTION("a limit on file sizes, met before and while writing") {
        auto const large = torch::ones({1'000'000});  // here: a child has none of the threads that LibTorch may compute with
        auto const pid = ::fork();
        if (pid == 0) {
            // A child, so that the limit is its own. Its verdict is the exit code.
            ::signal(SIGXFSZ, SIG_IGN);
            rlimit const limit{100'000, 100'000};
            ::setrlimit(RLIMIT_FSIZE, &limit);
            bool good = true;
            try {
                acc::save_file({{"w", large}}, folder / "x");
                good = false;
            } catch (acc::Error const& e) {
                good = e.code() == acc::code::no_space && e.exit_code() == 74 && std::string(e.what()).find((folder / "x").string()) != std::string::npos;
            }
            try {
                state::OutputFile file(folder / "x", 0);  // nothing reserved: the write itself fails
                std::string const half(60'000, 'a');
                for (int i = 0; i < 10; ++i) file.write(half);
                file.commit();
                good = false;
            } catch (acc::Error const& e) {
                good = good && e.code() == acc::code::no_space;
            }
            ::_exit(good ? 0 : 1);
        }
        int status = 1;
        ::waitpid(pid, &status, 0);
        CHECK(status == 0);
    }
    SECTION("an exception in the middle") {
        try {
            state::OutputFile file(folder / "x", 100);
            file.write("half");
            throw std::runtime_error("no");
        } catch (std::runtime_error const&) {
        }
    }
    SECTION("no permission, no folder, a name that is none") {
        spill(folder / "file", "");
        CHECK(code_of([&] { acc::save_file({}, folder / "file" / "x"); }) == "E_IO");
        CHECK(code_of([&] { acc::save_file({}, folder / "x/"); }) == "E_IO");
        CHECK(code_of([&] { acc::save_file({}, ""); }) == "E_IO");
        CHECK(code_of([&] { acc::save_file({}, "/proc/accelerate/x"); }) == "E_IO");
        fs::create_directory(folder / "folder");
        CHECK(code_of([&] { acc::save_file({}, folder / "folder"); }) == "E_NOT_REGULAR");
        CHECK(code_of([&] { acc::save_file({}, "/dev/null"); }) == "E_NOT_REGULAR");
        CHECK(::mkfifo((folder / "fifo").c_str(), 0600) == 0);
        CHECK(code_of([&] { acc::save_file({}, folder / "fifo"); }) == "E_NOT_REGULAR");
        for (auto const* name : {"file", "folder", "fifo"}) fs::remove(folder / name);
    }
    CHECK(slurp(folder / "x") == before);
    CHECK(folder.files() == 1);
}

TEST_CASE("a link under the name is replaced, not followed", "[output_file]") {
    Folder folder;
    spill(folder / "target", "mine");
    fs::create_symlink("target", folder / "x");
    acc::save_file({{"w", torch::ones({2})}}, folder / "x");
    CHECK(slurp(folder / "target") == "mine");
    CHECK(fs::is_regular_file(fs::symlink_status(folder / "x")));
    CHECK(acc::load_file(folder / "x").size() == 1);
}

TEST_CASE("a kill at any moment leaves the old file or the new one", "[output_file]") {
    Folder folder;
    std::mt19937 random(7);
    auto tensors = std::vector<acc::TensorMap>();
    for (int i = 0; i < 2; ++i) tensors.push_back({{"a", torch::full({20'000}, i)}, {"b", torch::full({30'000}, i)}});
    acc::save_file(tensors[0], folder / "x");
    for (int trial = 0; trial < 30; ++trial) {
        auto const pid = ::fork();
        if (pid == 0)
            for (size_t i = 0;; ++i) acc::save_file(tensors[i % 2], folder / "x");
        std::this_thread::sleep_for(std::chrono::microseconds(500 + random() % 8000));
        ::kill(pid, SIGKILL);
        ::waitpid(pid, nullptr, 0);
        auto const back = acc::load_file(folder / "x");
        auto const value = back.at("a")[0].item<float>();
        CHECK((value == 0 || value == 1));
        CHECK((back.at("a").eq(value).all().item<bool>() && back.at("b").eq(value).all().item<bool>()));
    }
}

// ---- reading what is hostile -----------------------------------------------------------------------------------------------

/// Loads each of these files, which must give its code and name itself; how many there are of each row.
std::map<int, int> refuse(std::vector<hostile::Case> const& cases) {
    Folder folder;
    std::map<int, int> rows;
    for (auto const& c : cases) {
        INFO("row " << c.row << ": " << c.what.substr(0, 100));
        auto const path = folder / "hostile file.safetensors";
        spill(path, c.bytes);
        if (c.sparse > 0) fs::resize_file(path, static_cast<uintmax_t>(c.sparse));
        std::string message;
        CHECK(code_of([&] { acc::load_file(path); }, &message) == c.code);
        if (!c.code.empty()) CHECK(message.find("hostile file.safetensors\"") != std::string::npos);
        CHECK(state::utf8_end(message) == message.size());
        ++rows[c.row];
    }
    return rows;
}

TEST_CASE("every malformed file gives its code and names itself", "[safetensors_header][reader][codes]") {
    auto const rows = refuse(hostile::corpus());
    for (int row = 1; row <= 61; ++row) CHECK((rows.contains(row) || row == 26 || row == 58));  // 26 is about writing, 58 below
}

TEST_CASE("malformed files of more than a million tensors give their code", "[safetensors_header]") { CHECK(refuse(hostile::large_corpus()).contains(58)); }

TEST_CASE("messages name byte or tensor, and exit codes are those of data errors", "[safetensors_header][codes]") {
    Folder folder;
    std::string message;
    auto const load = [&](std::string const& bytes) {
        spill(folder / "x", bytes);
        return code_of([&] { acc::load_file(folder / "x"); }, &message);
    };
    CHECK(load(hostile::file("{\"w\"; 1}")) == "E_ST_BAD_JSON");
    CHECK(message.find("byte 12") != std::string::npos);  // 8 + the semicolon's place
    CHECK(load(hostile::one("U8", "[-1]", "[0,4]", 4)) == "E_ST_BAD_SHAPE");
    CHECK(message.find("tensor \"w\"") != std::string::npos);
    CHECK(load(hostile::file("{" + hostile::entry("a\xE2\x80\xAE\\\"", "U8", "[3]", "[0,4]") + "}", "1234")) == "E_ST_SIZE_MISMATCH");
    CHECK(message.find("\"a\\xe2\\x80\\xae\\\"\"") != std::string::npos);
    CHECK(load(hostile::file("{" + hostile::entry("w", "BOOL", "[4]", "[0,4]") + "}", std::string("\0\1\7\1", 4))) == "E_ST_BAD_BOOL");
    CHECK(message.find("element 2") != std::string::npos);
    try {
        acc::load_file(folder / "x");
    } catch (acc::Error const& e) {
        CHECK(e.exit_code() == 65);
    }
    CHECK(code_of([&] { acc::load_file(folder / "absent"); }, &message) == "E_IO");
    CHECK(message.find("absent") != std::string::npos);
}

TEST_CASE("a million tensors are read; a header at its limit is", "[safetensors_header]") {
    auto const bytes = hostile::many(1'000'000, "U8", "[0]", "[0,0]", 0);
    auto const header = state::parse_safetensors_header(std::string_view(bytes).substr(8), 0, "x");
    CHECK(header.tensors.size() == 1'000'000);
}

TEST_CASE("not a number, where it is not wanted", "[load_file]") {
    Folder folder;
    for (auto const type : {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16, at::kFloat8_e4m3fn, at::kFloat8_e5m2, at::kComplexFloat}) {
        auto t = torch::ones({600'000}).to(type);
        acc::save_file({{"good", torch::ones({3})}, {"w", t}}, folder / "x");
        CHECK(code_of([&] { acc::load_file(folder / "x", {.check_finite = true}); }) == "");
        t = torch::cat({torch::ones({599'999}), torch::tensor({NAN})}).to(type);
        acc::save_file({{"good", torch::ones({3})}, {"w", t}}, folder / "x");
        CHECK(code_of([&] { acc::load_file(folder / "x"); }) == "");
        CHECK(code_of([&] { acc::load_file(folder / "x", {.check_finite = true}); }) == "E_NONFINITE");
    }
}

TEST_CASE("a file that changes while it is read is noticed", "[input_file][reader]") {
    Folder folder;
    auto const path = folder / "x";
    auto const save = [&] { acc::save_file({{"a", torch::ones({5000})}, {"b", torch::ones({5000})}}, path); };
    save();
    {
        state::SafetensorsReader const reader(path);
        fs::resize_file(path, 30'000);
        CHECK(code_of([&] { reader.read("b"); }) == "E_ST_CHANGED");
    }
    save();
    {
        state::SafetensorsReader const reader(path);
        reader.read("a");
        std::ofstream(path, std::ios::app) << "more";
        CHECK(code_of([&] { reader.read("a"); }) == "E_ST_CHANGED");
    }
    save();
    {
        state::SafetensorsReader const reader(path);
        save();  // a new file under the old name: the reader still has the old one, whole
        CHECK(reader.read("b").eq(1).all().item<bool>());
    }
    {  // large enough for two threads, of which either may come to the file's new end
        auto const large = folder / "large";
        auto const values = torch::arange(3 << 20);
        acc::save_file({{"a", values}}, large);
        state::SafetensorsReader const reader(large);
        CHECK(reader.read("a").equal(values));
        for (uintmax_t const size : {20'000'000u, 5'000'000u}) {
            fs::resize_file(large, size);
            std::string message;
            CHECK(code_of([&] { reader.read("a"); }, &message) == "E_ST_CHANGED");
            CHECK(message.find("ends at byte " + std::to_string(size)) != std::string::npos);
        }
    }
    // A writer that shrinks and grows the file meanwhile: either outcome, never a signal, never half a tensor.
    std::atomic<bool> begun = false, stop = false;
    std::thread writer([&] {
        while (!stop) {
            std::error_code ignored;
            fs::resize_file(path, 20'000, ignored);
            begun = true;
            fs::resize_file(path, 41'000, ignored);
        }
    });
    while (!begun) std::this_thread::yield();
    for (int i = 0; i < 300; ++i) {
        auto const code = code_of([&] { acc::load_file(path); });
        CHECK((code == "E_ST_CHANGED" || code == "E_ST_TRUNCATED" || code == "E_ST_TRAILING"));
    }
    stop = true;
    writer.join();
}

TEST_CASE("only regular files are opened, and nothing blocks", "[input_file]") {
    Folder folder;
    CHECK(code_of([&] { acc::load_file(folder.path); }) == "E_NOT_REGULAR");
    REQUIRE(::mkfifo((folder / "fifo").c_str(), 0600) == 0);
    CHECK(code_of([&] { acc::load_file(folder / "fifo"); }) == "E_NOT_REGULAR");
    auto const fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, (folder / "s").c_str(), sizeof address.sun_path - 1);
    REQUIRE(::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
    CHECK(code_of([&] { acc::load_file(folder / "s"); }) == "E_NOT_REGULAR");
    ::close(fd);
    for (auto const* path : {"/dev/null", "/dev/zero", "/dev/tty", "/proc/self/mem", "/proc/self/maps", "/sys/kernel/mm/transparent_hugepage/enabled"})
        if (fs::exists(path)) CHECK(code_of([&] { acc::load_file(path); }) == "E_NOT_REGULAR");
    acc::save_file({{"w", torch::ones({2})}}, folder / "x");
    fs::create_symlink("x", folder / "link");  // the user's own path may be a link
    CHECK(acc::load_file(folder / "link").size() == 1);
}

TEST_CASE("a reader lists and reads one tensor at a time", "[reader]") {
    Folder folder;
    acc::save_file({{"b", torch::arange(6.).view({2, 3})}, {"a", torch::arange(3)}}, folder / "x", {{"k", "v"}});
    state::SafetensorsReader const reader(folder / "x");
    REQUIRE(reader.tensors().size() == 2);
    CHECK(reader.tensors()[0].name == "a");
    CHECK(reader.tensors()[0].type() == at::kLong);
    CHECK(reader.tensors()[1].shape == std::vector<int64_t>{2, 3});
    CHECK(reader.metadata().at("k") == "v");
    CHECK(reader.find("c") == nullptr);
    CHECK(torch::equal(reader.read("b"), torch::arange(6.).view({2, 3})));
    CHECK(code_of([&] { reader.read("c"); }) == "E_DATA");
}

TEST_CASE("slices and mapped tensors are those of the whole", "[reader][mapping]") {
    Folder folder;
    auto const t = torch::arange(60.).view({3, 4, 5});
    auto const b = torch::arange(6).remainder(2).to(torch::kBool);
    acc::save_file({{"t", t}, {"b", b}, {"empty", torch::ones({0, 3})}, {"one", torch::tensor(7)}}, folder / "x");
    state::SafetensorsReader reader(folder / "x");
    auto const& info = *reader.find("t");
    for (int64_t dim = 0; dim < 3; ++dim)
        for (int64_t from = 0; from <= t.size(dim); ++from)
            for (int64_t to = from; to <= t.size(dim); ++to) CHECK(same_bits(reader.read_slice(info, dim, from, to), t.slice(dim, from, to)));
    CHECK(same_bits(reader.read_elements(info, 13, 29), t.view({-1}).slice(0, 13, 29)));
    CHECK(same_bits(reader.read_slice(*reader.find("b"), 0, 2, 5), b.slice(0, 2, 5)));
    CHECK(reader.read_slice(*reader.find("empty"), 1, 1, 2).sizes() == at::IntArrayRef{0, 1});
    for (auto const& [from, to] : {std::pair<int64_t, int64_t>{-1, 1}, {2, 1}, {0, 61}}) CHECK(code_of([&, from = from, to = to] { reader.read_elements(info, from, to); }) == "E_DATA");
    CHECK(code_of([&] { reader.read_slice(info, 3, 0, 1); }) == "E_DATA");
    CHECK(code_of([&] { reader.read_slice(*reader.find("one"), 0, 0, 1); }) == "E_DATA");
    CHECK(code_of([&] { reader.read_slice(info, 0, 0, 4); }) == "E_DATA");

    auto const mapped = acc::load_file(folder / "x", {.mapped = true}), read = acc::load_file(folder / "x");
    for (auto const& [name, value] : read) CHECK(same_bits(mapped.at(name), value));
    mapped.at("t").add_(1);  // stays in this process
    CHECK(same_bits(acc::load_file(folder / "x").at("t"), t));
    spill(folder / "odd", hostile::file("{" + hostile::entry("b", "U8", "[1]", "[0,1]") + "," + hostile::entry("d", "F64", "[1]", "[1,9]") + "}", hostile::zeros(9)));
    CHECK(acc::load_file(folder / "odd", {.mapped = true}).at("d").item<double>() == 0);  // not aligned: read
    spill(folder / "bool", hostile::file("{" + hostile::entry("w", "BOOL", "[4]", "[0,4]") + "}", std::string("\0\1\7\1", 4)));
    CHECK(code_of([&] { acc::load_file(folder / "bool", {.mapped = true}); }) == "E_ST_BAD_BOOL");
    state::SafetensorsReader bools(folder / "bool");
    CHECK(code_of([&] { bools.read_elements(*bools.find("w"), 0, 2); }) == "");
    CHECK(code_of([&] { bools.read_elements(*bools.find("w"), 2, 3); }) == "E_ST_BAD_BOOL");
}

TEST_CASE("pickles are refused by name and by content, unread", "[reader][weights_reader]") {
    Folder folder;
    for (auto const* name : {"x.bin", "x.pt", "x.pth", "x.ckpt", "x.pkl"}) {
        acc::save_file({{"w", torch::ones({2})}}, folder / name);
        CHECK(code_of([&] { acc::load_file(folder / name); }) == "E_PICKLE_REFUSED");
    }
    for (auto const* pickle : {"(dp0\nS'a'\np1\nI1\ns.", "(lp0\nI1\na.", "ccollections\nOrderedDict\np0\n(tp1\nRp2\n.", "}q\x01X\x01\x01\x01\x01""aq\x02K\x01s.", "\x80\x04\x95\x10" "aaaaaa."}) {
        spill(folder / "x.safetensors", pickle);
        CHECK(code_of([&] { acc::load_file(folder / "x.safetensors"); }) == "E_PICKLE_REFUSED");
    }
}

// ---- small parts -----------------------------------------------------------------------------------------------------------

TEST_CASE("UTF-8 is what the standard says", "[utf8]") {
    std::string const good = "a\x7F \u0080 \u07FF \u0800 \uD7FF \uE000 \uFFFF \U00010000 \U0010FFFF";
    CHECK(state::utf8_end(good) == good.size());
    for (size_t cut = 0; cut < good.size(); ++cut) {
        auto const end = state::utf8_end(std::string_view(good).substr(0, cut));
        CHECK((end == cut || (end < cut && (static_cast<unsigned char>(good[end]) & 0x80u) != 0)));
    }
    CHECK(state::utf8_end("12345678\xFF") == 8);
    // Every code point and every surrogate, encoded by hand.
    int64_t wrong = 0;
    for (uint32_t p = 0x80; p < 0x120000; ++p) {
        std::string s;
        auto const add = [&](uint32_t byte) { s += static_cast<char>(byte); };
        if (p < 0x800) add(0xC0 | (p >> 6));
        else if (p < 0x10000) add(0xE0 | (p >> 12)), add(0x80 | ((p >> 6) & 63));
        else add(0xF0 | (p >> 18)), add(0x80 | ((p >> 12) & 63)), add(0x80 | ((p >> 6) & 63));
        add(0x80 | (p & 63));
        bool const valid = (p < 0xD800 || p > 0xDFFF) && p < 0x110000;
        wrong += (state::utf8_sequence(s) == s.size()) != valid;
    }
    CHECK(wrong == 0);
}

TEST_CASE("names from files are quoted for a terminal", "[quote]") {
    CHECK(state::quote("layers.0.weight") == "\"layers.0.weight\"");
    CHECK(state::quote("a\"b\\c\n\x1B[31m\x7F") == "\"a\\\"b\\\\c\\x0a\\x1b[31m\\x7f\"");
    CHECK(state::quote("gr\u00fc\u00df \u4f60 \U0001F600") == "\"gr\u00fc\u00df \u4f60 \U0001F600\"");
    CHECK(state::quote("\u0085\u202E\u2028\uFEFF") == "\"\\xc2\\x85\\xe2\\x80\\xae\\xe2\\x80\\xa8\\xef\\xbb\\xbf\"");
    CHECK(state::quote("\xFF\xC3") == "\"\\xff\\xc3\"");
    CHECK(state::quote(std::string(1000, 'x')).size() == 105);
    // A path is there whole, wherever it is from.
    Folder const folder;
    auto const deep = folder / (std::string(90, 'd') + "/" + std::string(90, 'e'));
    std::filesystem::create_directories(deep);
    auto const whole = [&](std::string const& opened, std::string const& named) {
        std::string message;
        code_of([&] { acc::load_file(deep / opened); }, &message);
        return message.find("\"" + (deep / named).string() + "\"") != std::string::npos;
    };
    spill(deep / "short.safetensors", "x");
    CHECK(whole("short.safetensors", "short.safetensors"));
    spill(deep / "bad.safetensors", std::string("\x02\0\0\0\0\0\0\0{x", 10));
    CHECK(whole("bad.safetensors", "bad.safetensors"));
    auto const* const index = "x.safetensors.index.json";
    spill(deep / index, "{");
    CHECK(whole(index, index));
    spill(deep / index, R"({"weight_map": {"w": "none.safetensors"}})");
    CHECK(whole(index, "none.safetensors"));
}

TEST_CASE("JSON is cut into tokens exactly", "[json_lexer]") {
    using Token = state::JsonLexer::Token;
    state::Source const source{R"( {"a\u00e9\ud83d\ude00\/\b\f\n\r\t":[0,18446744073709551615,18446744073709551616,-1,1.5e3],"t":true,"f":false,"n":null} )", "x", {}};
    state::JsonLexer lexer(source);
    std::vector<Token> tokens;
    std::vector<std::string> strings;
    std::vector<uint64_t> numbers;
    for (;;) {
        tokens.push_back(lexer.next());
        if (tokens.back() == Token::String) strings.push_back(lexer.string_value());
        if (tokens.back() == Token::Unsigned) numbers.push_back(lexer.unsigned_value());
        if (tokens.back() == Token::End) break;
    }
    CHECK(strings == std::vector<std::string>{"a\u00e9\U0001F600/\b\f\n\r\t", "t", "f", "n"});
    CHECK(numbers == std::vector<uint64_t>{0, ~uint64_t{0}});
    CHECK(std::ranges::count(tokens, Token::Number) == 3);
    CHECK(std::ranges::count(tokens, Token::Literal) == 3);
    CHECK(tokens.size() == 28);
    CHECK(lexer.start() == source.text.size());
}

// ---- models ----------------------------------------------------------------------------------------------------------------

namespace {

struct Weight : torch::nn::Module {
    explicit Weight(torch::Tensor const& w) : weight(register_parameter("weight", w)) {}
    torch::Tensor weight;
};

/// Two names for one weight, a view of part of it, and buffers.
struct Tied : torch::nn::Module {
    Tied() {
        embedding = register_module("embedding", torch::nn::Embedding(5, 3));
        head = register_module("head", std::make_shared<Weight>(embedding->weight));
        norm = register_module("norm", torch::nn::BatchNorm1d(3));
        part = register_buffer("part", embedding->weight.detach().slice(0, 1, 3));
    }
    torch::nn::Embedding embedding{nullptr};
    std::shared_ptr<Weight> head;
    torch::nn::BatchNorm1d norm{nullptr};
    torch::Tensor part;
};

/// The same weights under the same names, not tied.
struct Loose : torch::nn::Module {
    Loose() {
        embedding = register_module("embedding", torch::nn::Embedding(5, 3));
        head = register_module("head", torch::nn::Linear(torch::nn::LinearOptions(3, 5).bias(false)));
        norm = register_module("norm", torch::nn::BatchNorm1d(3));
    }
    torch::nn::Embedding embedding{nullptr};
    torch::nn::Linear head{nullptr};
    torch::nn::BatchNorm1d norm{nullptr};
};

}  // namespace

// ---- models in several files -----------------------------------------------------------------------------------------------

namespace {

/// The tensors of tests/data/python_shards.py.
acc::TensorMap sharded_tensors() {
    acc::TensorMap all;
    int64_t i = 0;
    for (auto const& shape : std::vector<std::vector<int64_t>>{{5, 4}, {30, 4}, {7}, {3, 3}, {64}, {2, 2}, {1}, {25}}) {
        auto t = at::empty(shape, at::kFloat);
        auto* bytes = static_cast<unsigned char*>(t.mutable_data_ptr());
        for (int64_t j = 0; j < static_cast<int64_t>(t.nbytes()); ++j) bytes[j] = static_cast<unsigned char>((37 * j + 11 * i) % 251);
        all.insert(acc::concat("t", i++), t);
    }
    return all;
}

/// Bytes of memory that `f` needs above what is in use.
template <class F>
int64_t peak_memory(F f) {
    auto const status = [](std::string const& key) {
        std::ifstream in("/proc/self/status");
        for (std::string word; in >> word;)
            if (int64_t kb = 0; word == key && in >> kb) return kb * 1024;
        return int64_t{0};
    };
    std::ofstream("/proc/self/clear_refs") << "5";
    auto const before = status("VmRSS:");
    f();
    return status("VmHWM:") - before;
}

std::set<std::string> listing(fs::path const& folder) {
    std::set<std::string> names;
    for (auto const& entry : fs::directory_iterator(folder)) names.insert(entry.path().filename().string());
    return names;
}

}  // namespace

TEST_CASE("every malformed folder gives its code, from the folder and from its index", "[safetensors_index][weights_reader][json_reader][codes]") {
    std::map<int, int> rows;
    for (auto const& c : hostile::folders()) {
        Folder folder;
        INFO("row " << c.row << ": " << c.what.substr(0, 100));
        int64_t bytes = 0;
        for (auto const& [name, content] : c.files) spill(folder / name, content), bytes += static_cast<int64_t>(content.size());
        std::string message, code;
        auto const memory = peak_memory([&] { code = code_of([&] { acc::load_file(folder.path); }, &message); });
        CHECK(code == c.code);
#if !defined(__SANITIZE_ADDRESS__)
        CHECK(memory < bytes + (16 << 20));
#endif
        CHECK(state::utf8_end(message) == message.size());
        if (c.files.contains(hostile::index_name) && c.row != 80) CHECK(code_of([&] { acc::load_file(folder / hostile::index_name); }) == c.code);
        ++rows[c.row];
    }
    for (int row = 64; row <= 83; ++row) CHECK((rows.contains(row) || row == 70 || row == 71));  // those are links and FIFOs, below
}

TEST_CASE("nothing outside a folder is opened: links, FIFOs, huge indexes", "[folder][weights_reader][input_file]") {
    Folder folder, outside;
    auto const index = hostile::index(R"({"a":"x.safetensors"})", R"({"total_size":4})");
    spill(folder / hostile::index_name, index);
    spill(outside / "x.safetensors", hostile::shard({"a"}));
    auto const load = [&](acc::load_options const& options = {}) { return code_of([&] { acc::load_file(folder.path, options); }); };
    auto const link = [&](fs::path const& to) {
        fs::remove(folder / "x.safetensors");
        fs::create_symlink(to, folder / "x.safetensors");
    };
    spill(folder / "inside", hostile::shard({"a"}));
    link(outside / "x.safetensors");
    CHECK(load() == "E_SYMLINK");
    CHECK(load({.hub_cache = outside.path}) == "");  // where links may lead is the user's word
    CHECK(load({.hub_cache = folder.path}) == "E_SYMLINK");
    CHECK(load({.hub_cache = outside.path / ".." / folder.path.filename()}) == "E_SYMLINK");
    link("inside");
    CHECK(load() == "E_SYMLINK");
    link("x.safetensors");  // a loop
    CHECK(load() == "E_SYMLINK");
    CHECK(load({.hub_cache = folder.path}) == "E_SYMLINK");
    fs::remove(folder / "x.safetensors");
    REQUIRE(::mkfifo((folder / "x.safetensors").c_str(), 0600) == 0);
    CHECK(load() == "E_NOT_REGULAR");
    fs::remove(folder / "x.safetensors");
    fs::create_directory(folder / "x.safetensors");
    CHECK(load() == "E_NOT_REGULAR");
    fs::remove(folder / "x.safetensors");
    spill(folder / "x.safetensors", hostile::shard({"a"}));
    CHECK(load() == "");
    fs::resize_file(folder / hostile::index_name, 200'000'000);
    CHECK(load() == "E_IX_TOO_LARGE");
    fs::remove(folder / hostile::index_name);
    spill(outside / "index", index);
    fs::create_symlink(outside / "index", folder / hostile::index_name);
    CHECK(load() == "E_SYMLINK");
    CHECK(code_of([&] { acc::load_file(folder / "absent"); }) == "E_IO");
    // A folder that is moved while it is open keeps its files.
    state::Folder const open(outside.path);
    fs::rename(outside.path, outside.path.string() + "_moved");
    CHECK(code_of([&] { open.open("x.safetensors"); }) == "");
    fs::rename(outside.path.string() + "_moved", outside.path);
}

TEST_CASE("a model in several files is written as Python writes it", "[save_model][split_state_dict]") {
    Folder folder;
    auto const tensors = sharded_tensors();
    auto const python = data() / "python_shards";
    CHECK(state::save_shards({tensors, {}}, folder.path, {.max_shard_size = 200}) > 1000);
    CHECK(listing(folder.path) == listing(python));
    for (auto const& name : listing(python)) CHECK(slurp(folder / name) == slurp(python / name));
    for (auto const& from : {python, python / "model.safetensors.index.json", folder.path}) {
        auto const read = acc::load_file(from);
        CHECK(read.size() == tensors.size());
        for (auto const& [name, t] : tensors) CHECK(same_bits(read.at(name), t));
    }

    auto const split = acc::split_state_dict_into_shards(tensors, "1KB", "x{suffix}.y");
    CHECK((split.files.size() == 1 && !split.is_sharded() && split.files[0].name == "x.y" && split.files[0].bytes == 1000 && split.total_size == 1000));
    CHECK(acc::split_state_dict_into_shards(tensors, 999).files.at(1).name == "model-00002-of-00002.safetensors");
    auto const tied = torch::ones({10});
    auto const both = acc::split_state_dict_into_shards({{"b", tied}, {"c", torch::ones({10})}, {"a", tied}}, 40);
    REQUIRE(both.files.size() == 2);
    CHECK((both.total_size == 80 && both.files[1].tensors == std::vector<std::string>{"a", "b"}));
    CHECK(acc::split_state_dict_into_shards({}).files.size() == 1);
    CHECK(code_of([&] { acc::split_state_dict_into_shards(tensors, 0); }) == "E_CONFIG");
    CHECK(code_of([&] { acc::split_state_dict_into_shards(tensors, 9, "x"); }) == "E_CONFIG");
}

TEST_CASE("a save leaves nothing of an earlier one, and everything else", "[save_model]") {
    Folder folder;
    Tied model;
    spill(folder / "config.json", "{}");
    spill(folder / "model-of-mine.safetensors", "x");
    std::set<std::string> const others{"config.json", "model-of-mine.safetensors"};
    auto const ours = [&] {
        auto names = listing(folder.path);
        for (auto const& name : others) CHECK(names.erase(name) == 1);
        return names;
    };
    auto const loads = [&] {
        Tied other;
        CHECK(acc::load_model(other, folder.path).complete());
        CHECK(torch::equal(other.embedding->weight, model.embedding->weight));
    };
    acc::save_model(model, folder.path, {.max_shard_size = 24});
    CHECK(ours().size() == 5);
    loads();
    acc::save_model(model, folder.path, {.max_shard_size = 60});
    CHECK(ours() == std::set<std::string>{"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"});
    loads();
    acc::save_model(model, folder.path);
    CHECK(ours() == std::set<std::string>{"model.safetensors"});
    loads();
    acc::save_model(model, folder.path, {.max_shard_size = "60B"});
    CHECK(ours().size() == 3);
    loads();
    // What a save that was killed before its index leaves is refused.
    fs::remove(folder / "model.safetensors.index.json");
    fs::remove(folder / "model-of-mine.safetensors");
    CHECK(code_of([&] { acc::load_file(folder.path); }) == "E_IX_AMBIGUOUS");
}

TEST_CASE("names are changed on the way into a model", "[rename][rename_regex][load_source][load_plan]") {
    Folder folder;
    Tied model;
    acc::TensorMap renamed;
    for (auto const& [name, t] : acc::model_tensors(model)) renamed.insert("module." + (name == "norm.bias" ? "norm.beta" : name), t.detach().clone());
    acc::save_file(renamed, folder / "x.safetensors");
    Tied other;
    std::string message;
    CHECK(code_of([&] { acc::load_model(other, folder / "x.safetensors"); }, &message) == "E_CK_KEYS");
    CHECK(code_of([&] { acc::load_model(other, folder / "x.safetensors", {.rename = {acc::rename_prefix("module.", "")}}); }, &message) == "E_CK_KEYS");
    CHECK((message.find("1 missing: \"norm.bias\"") != std::string::npos && message.find("1 unexpected: \"norm.beta\"") != std::string::npos));
    CHECK(acc::load_model(other, folder / "x.safetensors", {.rename = {acc::rename_prefix("module.", ""), acc::rename_regex(R"(^(norm)\.beta$)", "$1.bias")}}).complete());
    CHECK(torch::equal(other.embedding->weight, model.embedding->weight));
    CHECK(acc::load_model(other, folder / "x.safetensors", {.rename = {[](std::string const& name) { return name == "module.norm.beta" ? "norm.bias" : name.substr(7); }}}).complete());
    CHECK(code_of([&] { acc::load_model(other, folder / "x.safetensors", {.rename = {[](std::string const&) { return "w"; }}}); }, &message) == "E_CK_KEYS");
    CHECK(message.find("are both renamed to \"w\"") != std::string::npos);
    CHECK(code_of([&] { acc::rename_regex("(", ""); }) == "E_CONFIG");
    // Names that the file has as aliases are renamed too.
    acc::save_model(model, folder / "tied");
    Loose loose;
    auto const prefixed = acc::rename_prefix("", "net.");
    struct Wrapped : torch::nn::Module {
        explicit Wrapped(Loose& inner) { register_module("net", std::shared_ptr<Loose>(&inner, [](auto*) {})); }
    } wrapped(loose);
    CHECK(acc::load_model(wrapped, folder / "tied", {.rename = {prefixed}}).complete());
    CHECK(torch::equal(loose.head->weight, model.embedding->weight));
    auto const report = acc::load_model(loose, folder / "tied", {.strict = false, .rename = {prefixed}});
    CHECK((report.unexpected.size() == 6 && report.missing.size() == 7));
    renamed["module.norm.weight"][0] = NAN;
    acc::save_file(renamed, folder / "x.safetensors");
    CHECK(code_of([&] { acc::load_model(other, folder / "x.safetensors", {.strict = false, .rename = {acc::rename_prefix("module.", "")}, .check_finite = true}); }) == "E_NONFINITE");
}

TEST_CASE("a state is saved in one file, values and all", "[save]") {
    Folder folder;
    acc::StateDict const state{{{"w", torch::arange(3.)}}, {{"step", 7}, {"name", "gr\u00fc\u00df\n\""}, {"list", {1, 2.5, nullptr}}}};
    acc::save(state, folder / "state.safetensors");
    auto const back = acc::load(folder / "state.safetensors");
    CHECK((back.values == state.values && torch::equal(back.tensors.at("w"), state.tensors.at("w"))));
    struct Counter {
        acc::StateDict state_dict() const { return {{}, {{"n", 3}}}; }
    };
    acc::save(Counter(), folder / "counter");
    CHECK(acc::load(folder / "counter").value<int64_t>("n", "Counter") == 3);
    acc::save(acc::TensorMap{{"w", torch::ones({2})}}, folder / "tensors");
    CHECK((acc::load(folder / "tensors").values.empty() && acc::load(folder / "tensors").tensors.size() == 1));
    acc::save_file({}, folder / "bad", {{"values", "[1"}});
    CHECK(code_of([&] { acc::load(folder / "bad"); }) == "E_DATA");
}

TEST_CASE("tied tensors are told by their memory", "[memory_span][aliases]") {
    auto const t = torch::arange(12.).view({3, 4});
    state::MemorySpan const whole(t), row(t[1]), column(t.select(1, 1)), other(torch::ones({3})), none(torch::empty({0}));
    CHECK((whole.begin == 0 && whole.end == 48));
    CHECK((row.begin == 16 && row.end == 32));
    CHECK((whole.covers(row) && whole.covers(column) && whole.covers(state::MemorySpan(t.t())) && state::MemorySpan(t.t()).covers(whole)));
    CHECK_FALSE((row.covers(whole) || column.covers(row) || whole.covers(other) || whole.covers(none)));
    CHECK((whole.overlaps(column) && !whole.overlaps(other) && none.empty()));
    CHECK(column.covers(column) == true);

    auto const unaliased = acc::drop_aliases({{"c", t}, {"b", t.t()}, {"a", t[1]}, {"free", torch::ones({2})}, {"x", t.detach()}});
    CHECK(unaliased.aliases == std::map<std::string, std::string>{{"a", "b"}, {"c", "b"}, {"x", "b"}});
    CHECK((unaliased.tensors.size() == 2 && unaliased.tensors.contains("b") && unaliased.tensors.contains("free")));
    auto const flat = torch::ones({10});
    CHECK(acc::drop_aliases({{"a", flat.slice(0, 0, 5)}, {"b", flat.slice(0, 5, 10)}}).aliases.empty());
    CHECK(acc::drop_aliases({}).tensors.empty());
}

TEST_CASE("a model's tensors, through whatever holds it", "[model_tensors]") {
    auto const module = std::make_shared<Tied>();
    auto const tensors = acc::model_tensors(module);
    std::vector<std::string> names;
    for (auto const& item : tensors) names.push_back(item.first);
    CHECK(names == std::vector<std::string>{"embedding.weight", "head.weight", "norm.weight", "norm.bias", "part", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"});
    CHECK(acc::model_tensors(*module).size() == tensors.size());
    CHECK(acc::model_tensors(torch::nn::Linear(2, 2)).size() == 2);
}

TEST_CASE("a model is saved with its ties and comes back with them", "[save_model][load_model]") {
    Folder folder;
    torch::manual_seed(1);
    Tied model;
    acc::save_model(model, folder / "out", {.metadata = {{"by", "test"}}});
    auto const file = acc::load_file(folder / "out" / "model.safetensors");
    CHECK(file.size() == 6);
    CHECK(state::SafetensorsReader(folder / "out" / "model.safetensors").metadata() ==
          std::map<std::string, std::string>{{"by", "test"}, {"format", "pt"}, {"head.weight", "embedding.weight"}, {"part", "embedding.weight"}});

    Tied other;
    auto const* const parameter = other.embedding->weight.unsafeGetTensorImpl();
    auto const version = other.embedding->weight._version();
    auto const report = acc::load_model(other, folder / "out");
    CHECK(report.complete());
    CHECK(torch::equal(other.embedding->weight, model.embedding->weight));
    CHECK(torch::equal(other.part, model.part));
    CHECK(other.embedding->weight.unsafeGetTensorImpl() == parameter);
    CHECK(other.head->weight.is_same(other.embedding->weight));
    CHECK(other.embedding->weight.requires_grad());
    CHECK(other.embedding->weight._version() > version);

    // A model in which the names are not tied gets the values all the same.
    Loose loose;
    CHECK(acc::load_model(loose, folder / "out").complete());
    CHECK(torch::equal(loose.head->weight, model.embedding->weight));
    // Where it was a part of another tensor, the file does not say which: an error, as in Python.
    loose.register_buffer("part", torch::zeros({2, 3}));
    CHECK(code_of([&] { acc::load_model(loose, folder / "out"); }) == "E_CK_KEYS");
}

TEST_CASE("all differences are told at once and nothing is loaded", "[load_model]") {
    Folder folder;
    torch::nn::Linear model(3, 4);
    auto const weight = model->weight.detach().clone();
    std::string message;
    acc::TensorMap const wrong{{"weight", torch::ones({4, 2})}, {"extra", torch::ones({1})}, {"extra2", torch::ones({1})}};
    CHECK(code_of([&] { acc::load_into(model, wrong); }, &message) == "E_CK_KEYS");
    for (auto const* part : {"1 missing: \"bias\"", "2 unexpected: \"extra\", \"extra2\"", "1 mismatched: \"weight\"", "[4, 2]", "[4, 3]"}) CHECK(message.find(part) != std::string::npos);
    CHECK(code_of([&] { acc::load_into(model, wrong, false); }) == "E_CK_KEYS");  // a shape is never loaded around
    CHECK(code_of([&] { acc::load_into(model, {{"weight", torch::ones({4, 3}, torch::kLong)}, {"bias", torch::ones({4})}}); }) == "E_CK_KEYS");
    CHECK(torch::equal(model->weight, weight));

    auto const report = acc::load_into(model, {{"weight", torch::ones({4, 3}, torch::kDouble)}, {"extra", torch::ones({1})}}, false);
    CHECK(report.missing == std::vector<std::string>{"\"bias\""});
    CHECK(report.unexpected == std::vector<std::string>{"\"extra\""});
    CHECK_FALSE(report.complete());
    CHECK(torch::equal(model->weight, torch::ones({4, 3})));
    CHECK(model->weight.scalar_type() == at::kFloat);

    acc::save_file(wrong, folder / "model.safetensors");
    CHECK(code_of([&] { acc::load_model(model, folder.path); }, &message) == "E_CK_KEYS");
    CHECK(message.find("model.safetensors") != std::string::npos);
    CHECK(code_of([&] { acc::load_model(model, folder / "absent"); }) == "E_IO");

    acc::TensorMap many;
    for (int i = 0; i < 100; ++i) many.insert("k" + std::to_string(i), torch::ones({1}));
    code_of([&] { acc::load_into(model, many); }, &message);
    CHECK((message.find("100 unexpected") != std::string::npos && message.find("\"k19\", ...") != std::string::npos));

    Tied tied;
    auto tensors = acc::model_tensors(tied);
    for (auto& item : tensors) item.second = item.second.detach().clone();
    CHECK(acc::load_into(tied, tensors).complete());
    tensors["head.weight"] += 1;
    CHECK(code_of([&] { acc::load_into(tied, tensors); }, &message) == "E_CK_KEYS");
    CHECK(message.find("tied in the model") != std::string::npos);

    CHECK(code_of([&] { acc::load_into(Weight(torch::empty({4, 3}, torch::kMeta)), {{"weight", torch::ones({4, 3})}}); }) == "E_CONFIG");
}
