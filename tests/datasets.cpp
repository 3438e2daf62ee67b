// Data sets from files, and data sets made of others: against formulas, std::getline and hand-written expectations, and with files
// that are cut off, missing, or none.
#include <torch/torch.h>

#include "support/catch.hpp"  // after LibTorch, whose CHECK ends the process
#include "support/errors.hpp"
#include "support/folder.hpp"

#include <accelerate/data/collate.hpp>
#include <accelerate/data/concat.hpp>
#include <accelerate/data/lines.hpp>
#include <accelerate/data/mapped_file.hpp>
#include <accelerate/data/mixture.hpp>
#include <accelerate/data/record_file.hpp>
#include <accelerate/data/subset.hpp>
#include <accelerate/data/tensors.hpp>
#include <accelerate/data/token_file.hpp>
#include <accelerate/data/torch_dataset.hpp>
#include <accelerate/data/transform.hpp>
#include <accelerate/state/save_file.hpp>
#include <accelerate/state/tensor_dataset.hpp>
#include <filesystem>
#include <fstream>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <sstream>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>

namespace acc = accelerate;
namespace data = acc::data;
namespace fs = std::filesystem;

namespace {

std::vector<int64_t> numbers(torch::Tensor const& t) {
    auto const flat = t.to(at::kLong).contiguous();
    return {flat.const_data_ptr<int64_t>(), flat.const_data_ptr<int64_t>() + flat.numel()};
}
std::vector<int64_t> range(int64_t from, int64_t to) {
    std::vector<int64_t> out(static_cast<size_t>(to - from));
    std::iota(out.begin(), out.end(), from);
    return out;
}

/// Samples first .. first + n - 1 as numbers.
struct Count {
    int64_t n = 0, first = 0;
    size_t size() const { return static_cast<size_t>(n); }
    int64_t operator[](size_t i) const { return first + static_cast<int64_t>(i); }
};
/// The same, read by other ways than a const operator[].
struct Counting {
    int64_t n = 0, reads = 0;
    size_t size() const { return static_cast<size_t>(n); }
    int64_t operator[](size_t i) { return ++reads, static_cast<int64_t>(i); }
};
struct Drawn {
    size_t size() const { return 3; }
    int64_t at(size_t, data::Random& random) const { return random.below(1000); }
};

template <class D>
std::vector<int64_t> all_of(D&& dataset) {
    std::vector<int64_t> out;
    for (size_t i = 0; i < dataset.size(); ++i) out.push_back(dataset[i]);
    return out;
}
template <class S>
auto rest_of(S&& stream) {
    std::vector<typename decltype(stream.next())::value_type> out;
    while (auto sample = stream.next()) out.push_back(std::move(*sample));
    return out;
}

}  // namespace

// ---- files --------------------------------------------------------------------------------------------------------------------

TEST_CASE("a mapped file is its bytes", "[mapped_file]") {
    Folder const folder;
    std::string const text("every\0byte", 10);
    auto const path = folder.write("a", text);
    auto const same = [&](data::MappedFile const& file) { return std::string(reinterpret_cast<char const*>(file.bytes().data()), file.bytes().size()) == text; };
    std::optional<data::MappedFile> file(path);
    CHECK(same(*file));
    CHECK(file->path() == path);
    auto const copy = *file;
    auto const moved = std::move(*file);
    file.reset();
    fs::remove(path);  // what is mapped stays
    CHECK((same(copy) && same(moved)));
    CHECK(data::MappedFile(folder.write("empty", "")).bytes().empty());
    data::MappedFile const large(folder.write("large", std::string(100000, 'x')));
    large.will_need(0, 1);
    large.will_need(5000, 95000);
    CHECK(large.bytes()[99999] == std::byte{'x'});
}

TEST_CASE("what cannot be mapped is named", "[mapped_file]") {
    Folder const folder;
    CHECK(has(error_of([&] { data::MappedFile(folder.path / "none"); }), {"E_IO: data::MappedFile: ", (folder.path / "none").string(), "No such file"}));
    CHECK(has(error_of([&] { data::MappedFile(folder.path); }), {"E_IO", folder.path.string(), "Is a directory"}));
    CHECK(has(error_of([&] { data::MappedFile("/dev/null"); }), {"E_IO", "no regular file"}));
    REQUIRE(::mkfifo((folder.path / "fifo").c_str(), 0600) == 0);
    CHECK(has(error_of([&] { data::MappedFile(folder.path / "fifo"); }), {"E_IO", "no regular file"}));  // and does not wait for a writer
    if (::geteuid() != 0) {
        auto const locked = folder.write("locked", "secret");
        fs::permissions(locked, fs::perms::none);
        CHECK(has(error_of([&] { data::MappedFile{locked}; }), {"E_IO", "Permission denied"}));
    }
}

namespace {
template <class T>
std::vector<T> tokens(int64_t n) {
    std::vector<T> out;
    for (int64_t i = 0; i < n; ++i) out.push_back(static_cast<T>(static_cast<uint64_t>(i) * 2654435761u + 40000));
    return out;
}
}  // namespace

TEST_CASE("windows over a token file: the target is the input one token later", "[token_file]") {
    Folder const folder;
    auto const check = [&]<class T>(T, data::token_file_options o, std::string const& header, int64_t n, size_t windows) {
        auto const all = tokens<T>(n);
        o.bytes_per_token = sizeof(T);
        o.header = static_cast<int64_t>(header.size());
        data::TokenFile const file(folder.write("tokens", all, header), o);
        static_assert(data::BatchingDataset<data::TokenFile> && std::is_same_v<data::batch_t<data::TokenFile::Window>, data::TokenFile::Window>);
        CHECK(file.tokens() == n);
        REQUIRE(file.size() == windows);
        auto const stride = o.stride ? o.stride : o.context;
        std::vector<int64_t> order;
        std::vector<data::TokenFile::Window> singles;
        for (size_t w = 0; w < windows; ++w) {
            auto const window = file[w];
            CHECK(window.input.sizes() == at::IntArrayRef({o.context}));
            auto const from = all.begin() + static_cast<int64_t>(w) * stride;
            CHECK(numbers(window.input) == std::vector<int64_t>(from, from + o.context));
            CHECK(numbers(window.target) == std::vector<int64_t>(from + 1, from + 1 + o.context));
            order.insert(order.begin(), static_cast<int64_t>(w));
            singles.insert(singles.begin(), window);
        }
        auto const batch = file.batch(order);
        auto const stacked = data::Collate()(std::move(singles));
        CHECK((batch.input.scalar_type() == at::kLong && torch::equal(batch.input, stacked.input) && torch::equal(batch.target, stacked.target)));
    };
    check(uint16_t{}, {.context = 4}, "", 17, 4);
    check(uint16_t{}, {.context = 4}, "", 16, 3);  // the last target would be behind the end
    check(uint16_t{}, {.context = 4}, "", 5, 1);
    check(uint16_t{}, {.context = 4, .stride = 1}, "", 10, 6);
    check(uint16_t{}, {.context = 4, .stride = 3}, "odd", 11, 3);
    check(uint16_t{}, {.context = 2, .stride = 5}, "", 13, 3);
    check(uint32_t{}, {.context = 5}, std::string(1024, 'h'), 21, 4);
    check(uint32_t{}, {.context = 1}, "x", 9, 8);
    CHECK(numbers(data::TokenFile(folder.write("large", std::vector<uint32_t>{4294967295u, 0, 2147483648u}), {.context = 2, .bytes_per_token = 4})[0].input)[0] == 4294967295);
    CHECK(data::TokenFile(folder.write("default", tokens<uint16_t>(2049))).size() == 2);
}

TEST_CASE("token files that are none", "[token_file]") {
    Folder const folder;
    auto const odd = folder.write("odd.bin", std::string(21, 'x'));
    CHECK(has(error_of([&] { data::TokenFile(odd, {.context = 2}); }), {"E_DATA: data::TokenFile: ", "odd.bin", "21 bytes", "multiple of 2"}));
    CHECK(has(error_of([&] { data::TokenFile(folder.write("b", std::string(22, 'x')), {.context = 2, .bytes_per_token = 4}); }), {"E_DATA", "multiple of 4"}));
    CHECK(has(error_of([&] { data::TokenFile(odd, {.header = 22}); }), {"E_DATA", "22 of header"}));
    CHECK(has(error_of([&] { data::TokenFile(folder.write("c", std::string(8, 'x')), {.context = 4}); }), {"E_DATA", "has 4 tokens", "context of 4"}));
    CHECK(has(error_of([&] { data::TokenFile(folder.write("empty", "")); }), {"E_DATA", "has 0 tokens"}));
    CHECK(has(error_of([&] { data::TokenFile(odd, {.context = 0}); }), {"E_CONFIG", "context is 0"}));
    CHECK(has(error_of([&] { data::TokenFile(odd, {.bytes_per_token = 3}); }), {"E_CONFIG", "bytes_per_token 3"}));
    CHECK(has(error_of([&] { data::TokenFile(odd, {.stride = -1}); }), {"E_CONFIG", "stride -1"}));
    CHECK(has(error_of([&] { data::TokenFile(folder.path); }), {"E_IO", "Is a directory"}));
    CHECK(has(error_of([&] { data::TokenFile(folder.path / "none"); }), {"E_IO", "No such file"}));
    data::TokenFile const good(folder.write("d", tokens<uint16_t>(9)), {.context = 4});
    CHECK(has(error_of([&] { good[2]; }), {"E_DATA", "window 2", "which has 2"}));
    CHECK(has(error_of([&] { good.batch(std::vector<int64_t>{0, -1}); }), {"E_DATA", "window -1"}));
}

TEST_CASE("records of a file are tensors", "[record_file]") {
    Folder const folder;
    static_assert(data::BatchingDataset<data::RecordFile>);
    auto const check = [&](torch::Tensor const& all, std::string const& header) {
        auto const bytes = std::string(static_cast<char const*>(all.const_data_ptr()), static_cast<size_t>(all.nbytes()));
        auto const shape = all.sizes().slice(1).vec();
        data::RecordFile const file(folder.write("records", header + bytes), {.shape = shape, .dtype = all.scalar_type(), .header = static_cast<int64_t>(header.size())});
        INFO(all.scalar_type() << all.sizes());
        auto const bits = [](torch::Tensor const& t) { return t.contiguous().view(at::kByte); };
        REQUIRE(file.size() == static_cast<size_t>(all.size(0)));
        CHECK(file[2].sizes() == at::IntArrayRef(shape));
        CHECK(torch::equal(bits(file[2].unsqueeze(0)), bits(all.narrow(0, 2, 1))));
        auto const batch = file.batch(std::vector<int64_t>{4, 0, 0, 3});
        CHECK(batch.scalar_type() == all.scalar_type());
        CHECK(batch.sizes().slice(1) == all.sizes().slice(1));
        CHECK(torch::equal(bits(batch), bits(torch::cat({all.narrow(0, 4, 1), all.narrow(0, 0, 1), all.narrow(0, 0, 1), all.narrow(0, 3, 1)}))));
        CHECK(file.batch({}).numel() == 0);
    };
    for (auto type : {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16})
        for (auto const& header : {std::string(), std::string(13, 'h')}) check(torch::randn({5, 3, 4}).to(type), header);
    for (auto type : {at::kByte, at::kShort, at::kLong, at::kUInt16, at::kUInt32}) check(torch::randint(0, 255, {5, 2, 3}, at::kByte).to(type), "");
    check(torch::randn({5}), "");               // no shape: numbers
    check(torch::randn({5, 3, 100, 100}), "");  // large enough to be asked for ahead
    CHECK(data::RecordFile(folder.write("16", std::vector<uint16_t>{1, 65535}), {.dtype = at::kUInt16})[1].item<int64_t>() == 65535);
    CHECK(data::RecordFile(folder.write("empty", "")).size() == 0);
}

TEST_CASE("record files that are none", "[record_file]") {
    Folder const folder;
    auto const path = folder.write("cut.bin", std::string(100, 'x'));
    CHECK(has(error_of([&] { data::RecordFile(path, {.shape = {3, 2}}); }), {"E_DATA: data::RecordFile: ", "cut.bin", "100 bytes", "multiple of 24"}));
    CHECK(has(error_of([&] { data::RecordFile(path, {.header = 3}); }), {"E_DATA", "3 of header"}));
    CHECK(has(error_of([&] { data::RecordFile(path, {.header = 101}); }), {"E_DATA"}));
    CHECK(has(error_of([&] { data::RecordFile(path, {.header = -1}); }), {"E_CONFIG", "header is -1"}));
    CHECK(has(error_of([&] { data::RecordFile(path, {.shape = {3, 0}}); }), {"E_CONFIG", "[3, 0]"}));
    CHECK(has(error_of([&] { data::RecordFile(path, {.shape = {-5}}); }), {"E_CONFIG"}));
    CHECK(has(error_of([&] { data::RecordFile(path, {.shape = {int64_t{1} << 40, int64_t{1} << 40}}); }), {"E_CONFIG", "2^63"}));
    CHECK(has(error_of([&] { data::RecordFile(path, {.dtype = at::kBool}); }), {"E_CONFIG", "at::kByte"}));
    CHECK(has(error_of([&] { data::RecordFile(path, {.dtype = at::kQInt8}); }), {"E_CONFIG"}));
    CHECK(has(error_of([&] { data::RecordFile(path, {.dtype = at::ScalarType::Undefined}); }), {"E_CONFIG"}));
    CHECK(has(error_of([&] { data::RecordFile(folder.path); }), {"E_IO", "Is a directory"}));
    data::RecordFile const good(path, {.shape = {5}});
    CHECK(has(error_of([&] { good[5]; }), {"E_DATA", "record 5", "which has 5"}));
    CHECK(has(error_of([&] { good.batch(std::vector<int64_t>{-1}); }), {"E_DATA", "record -1"}));
}

// ---- lines --------------------------------------------------------------------------------------------------------------------

namespace {

struct Line {
    int64_t start;  ///< in the bytes of all files
    std::string text;
};

/// By std::getline, file by file.
std::vector<Line> lines_of(std::vector<std::string> const& files) {
    std::vector<Line> out;
    int64_t base = 0;
    for (auto const& file : files) {
        std::istringstream in(file);
        int64_t at = base;
        for (std::string text; std::getline(in, text); ) {
            auto const whole = static_cast<int64_t>(text.size()) + !in.eof();
            if (!in.eof() && !text.empty() && text.back() == '\r') text.pop_back();
            out.push_back({at, text});
            at += whole;
        }
        base += static_cast<int64_t>(file.size());
    }
    return out;
}

std::vector<std::string> texts(std::vector<Line> const& lines, int64_t from, int64_t to) {
    std::vector<std::string> out;
    for (auto const& line : lines)
        if (line.start >= from && line.start < to) out.push_back(line.text);
    return out;
}

}  // namespace

TEST_CASE("every line is in the part in which it begins, for any number of parts", "[lines]") {
    Folder const folder;
    static_assert(data::ShardableStream<data::Lines> && data::OpaqueStream<data::Lines::Part> && std::is_same_v<data::sample_t<data::Lines>, std::string>);
    std::vector<std::vector<std::string>> const cases{
        {"one\ntwo\nthree\n"}, {"one\ntwo\nthree"}, {"\n\n\n"}, {""}, {"\n"}, {"x"}, {"dos\r\nlines\r\n\r\nno end\r"}, {"\r\n", "\r", "a\rb\n"},
        {"a", "b\n", "", "c\nd", "\n", ""}, {"a rather long line and\n", "1\n2\n3\n4\n5\n6\n7\n8\n9", "another rather long line\n\nend"}, {}};
    for (auto const& files : cases) {
        std::vector<fs::path> paths;
        for (auto const& text : files) paths.push_back(folder.write("f" + std::to_string(paths.size()), text));
        data::Lines const lines(paths);
        auto const expected = lines_of(files);
        auto const total = lines.bytes();
        for (int64_t n = 1; n <= total + 3; ++n)
            for (int64_t k = 0; k < n; ++k) {
                INFO(n << " parts, part " << k << " of " << (files.empty() ? "" : files[0]));
                auto const mine = texts(expected, total * k / n, total * (k + 1) / n);
                REQUIRE(rest_of(lines.open(k, n)) == mine);
                auto part = lines.open(k, n);
                for (size_t skipped = 0; skipped <= mine.size() + 1; ++skipped) {
                    part.start(0);
                    part.skip(static_cast<int64_t>(skipped));
                    REQUIRE(rest_of(part) == std::vector<std::string>(mine.begin() + static_cast<int64_t>(std::min(skipped, mine.size())), mine.end()));
                    REQUIRE(!part.next());
                }
            }
    }
}

TEST_CASE("lines across the reader's buffer, and without empty ones", "[lines]") {
    Folder const folder;
    std::string text;
    std::mt19937 random(1);
    for (int i = 0; i < 30000; ++i) text += std::string(random() % 60, static_cast<char>('a' + i % 26)) + (i % 3 ? "\n" : "\r\n");
    text += std::string(700000, 'L') + "\n" + std::string((1 << 18) - 2, 'M');
    auto const path = folder.write("long", text);
    auto const expected = lines_of({text});
    data::Lines const lines(path);
    for (int64_t n : {1, 2, 3, 7, 50}) {
        auto const total = lines.bytes();
        for (int64_t k = 0; k < n; ++k) REQUIRE(rest_of(lines.open(k, n)) == texts(expected, total / n * k + total % n * k / n, total / n * (k + 1) + total % n * (k + 1) / n));
    }
    auto part = lines.open(0, 1);
    part.skip(30000);
    CHECK(part.next() == std::string(700000, 'L'));
    for (int64_t before : {-2, -1, 0, 1}) {  // "\r\n" about the end of the buffer's 2^18 bytes
        auto const first = std::string(static_cast<size_t>((1 << 18) + before), 'x');
        CHECK(rest_of(data::Lines(folder.write("edge", first + "\r\ny\r\n")).open(0, 1)) == std::vector<std::string>{first, "y"});
    }
    auto full = texts(expected, 0, static_cast<int64_t>(text.size()));
    std::erase(full, "");
    REQUIRE(full.size() < expected.size());
    std::vector<std::string> seen;
    data::Lines const without(path, {.skip_empty = true});
    for (int64_t k = 0; k < 3; ++k)
        for (auto& line : rest_of(without.open(k, 3))) seen.push_back(line);
    CHECK(seen == full);
    auto skipping = without.open(0, 1);
    skipping.skip(static_cast<int64_t>(full.size()) - 1);
    CHECK(skipping.next() == full.back());
}

TEST_CASE("lines that cannot be read", "[lines]") {
    Folder const folder;
    auto const good = folder.write("good", "a\nb\n");
    CHECK(has(error_of([&] { data::Lines(std::vector<fs::path>{good, folder.path / "none"}); }), {"E_IO: data::Lines: ", "none", "No such file"}));
    CHECK(has(error_of([&] { data::Lines(folder.path); }), {"E_IO", "Is a directory"}));
    data::Lines const lines(good.string());
    CHECK(has(error_of([&] { lines.open(2, 2); }), {"E_CONFIG", "part 2 of 2"}));
    CHECK(has(error_of([&] { lines.open(-1, 2); }), {"E_CONFIG"}));
    CHECK(has(error_of([&] { data::Lines(good, {.max_line_bytes = 0}); }), {"E_CONFIG", "max_line_bytes is 0"}));

    auto const wide = folder.write("wide", "12345\r\n12345\n123456\nlast");
    data::Lines const limited(wide, {.max_line_bytes = 5});
    auto part = limited.open(0, 1);
    CHECK((part.next() == "12345" && part.next() == "12345"));
    CHECK(has(error_of([&] { part.next(); }), {"E_DATA: data::Lines: ", "wide", "more than 5 bytes at byte 13"}));
    CHECK(has(error_of([&] { limited.open(0, 1).skip(3); }), {"E_DATA", "at byte 13"}));
    auto const binary = folder.write("binary", std::string(2000000, '\0'));
    CHECK(has(error_of([&] { data::Lines(binary, {.max_line_bytes = 1000}).open(0, 1).next(); }), {"E_DATA", "binary", "at byte 0"}));
    CHECK(rest_of(data::Lines(binary, {.max_line_bytes = 1000}).open(1, 2)).empty());  // begins in the other part

    auto const shrinking = folder.write("shrinking", std::string(100, 'x') + "\n" + std::string(100, 'y'));
    data::Lines const before(shrinking);
    fs::resize_file(shrinking, 150);
    auto cut = before.open(0, 1);
    CHECK(cut.next() == std::string(100, 'x'));
    CHECK(has(error_of([&] { cut.next(); }), {"E_IO", "shrinking", "at byte 150", "shorter"}));
    std::ofstream(good, std::ios::app) << "c\n";  // what is written later is not read
    CHECK(rest_of(lines.open(0, 1)) == std::vector<std::string>{"a", "b"});
    fs::remove(good);
    CHECK(has(error_of([&] { lines.open(0, 1).next(); }), {"E_IO", "No such file"}));
}

// ---- data sets made of others -------------------------------------------------------------------------------------------------

TEST_CASE("data sets one behind the other", "[concat]") {
    Counting named{2};
    data::Concat const all{Count{3}, Count{0}, named, Count{0}, Count{1, 9}};
    static_assert(data::IndexedDataset<decltype(all)> && std::is_same_v<data::sample_t<decltype(all)>, int64_t>);
    static_assert(std::is_same_v<decltype(data::Concat{Count{3}, named}), data::Concat<Count, Counting&>>);
    CHECK(all_of(all) == std::vector<int64_t>{0, 1, 2, 0, 1, 9});
    CHECK(named.reads == 2);
    CHECK(has(error_of([&] { all[6]; }), {"E_DATA: data::Concat: sample 6; there are 6"}));
    CHECK(data::Concat{Count{0}, Count{0}}.size() == 0);
    CHECK(has(error_of([&] { data::Concat{Count{0}}[0]; }), {"E_DATA"}));

    std::vector<Count> list{{2}, {0}, {3, 5}};
    CHECK(all_of(data::Concat{list}) == std::vector<int64_t>{0, 1, 5, 6, 7});
    data::Concat const owning{std::vector<Count>{{1, 4}, {2, 8}}};
    CHECK(all_of(owning) == std::vector<int64_t>{4, 8, 9});
    CHECK(data::Concat{std::vector<Count>()}.size() == 0);
    CHECK(data::Concat{std::vector<std::string>{"letters", "are no samples"}}[1] == "are no samples");
    std::vector<torch::Tensor> const tensors{torch::zeros(2), torch::ones(2)};
    CHECK(torch::equal(data::Concat{tensors, data::Tensors{torch::full({4, 2}, 7.f)}}[3], torch::full({2}, 7.f)));

    data::Concat const drawing{Count{2}, Drawn()};
    data::Random one(1, 2, 3), same(1, 2, 3), other(1, 2, 4);
    CHECK(data::read_sample(drawing, 4, std::move(one)) == Drawn().at(0, same));
    CHECK(drawing.at(3, other) != Drawn().at(0, same));
    CHECK(drawing[1] == 1);
}

TEST_CASE("a subset", "[subset]") {
    Counting named{5};
    data::Subset const some{named, {4, 0, 4}};
    static_assert(std::is_same_v<decltype(some), data::Subset<Counting&> const> && data::IndexedDataset<decltype(some)> && !data::BatchingDataset<decltype(some)>);
    CHECK(all_of(some) == std::vector<int64_t>{4, 0, 4});
    CHECK(some.indices() == std::vector<int64_t>{4, 0, 4});
    CHECK_THROWS(some[3]);
    data::Subset const rows{data::Tensors{torch::arange(10) * 10}, {7, 3, 5}};
    static_assert(data::BatchingDataset<decltype(rows)>);
    CHECK(numbers(rows.batch(std::vector<int64_t>{2, 0})) == std::vector<int64_t>{50, 70});
    CHECK(rows[1].item<int64_t>() == 30);
    CHECK_THROWS(rows.batch(std::vector<int64_t>{3}));
    CHECK(data::Subset{Count{0}, {}}.size() == 0);
    CHECK(has(error_of([&] { data::Subset{named, {0, 4, 5}}; }), {"E_DATA: data::Subset: indices[2] is 5", "size 5"}));
    CHECK(has(error_of([&] { data::Subset{named, {-1}}; }), {"E_DATA", "indices[0] is -1"}));
    data::Random one(1, 2, 3), same(1, 2, 3);
    data::Subset const drawn{Drawn(), {2}};
    CHECK(data::read_sample(drawn, 0, std::move(one)) == Drawn().at(0, same));
}

TEST_CASE("random_split cuts into disjoint subsets that are everything", "[subset]") {
    auto const sizes = [](auto const& parts) {
        std::vector<size_t> out;
        for (auto const& p : parts) out.push_back(p.size());
        return out;
    };
    using V = std::vector<size_t>;
    CHECK(sizes(data::random_split(10, {3, 7})) == V{3, 7});
    CHECK(sizes(data::random_split(10, {3, 0, 7})) == V{3, 0, 7});
    CHECK(sizes(data::random_split(30, {0.3, 0.3, 0.4})) == V{9, 9, 12});
    CHECK(sizes(data::random_split(10, {0.33, 0.33, 0.34})) == V{4, 3, 3});  // as torch.utils.data.random_split
    CHECK(sizes(data::random_split(7, {0.5, 0.5})) == V{4, 3});
    CHECK(sizes(data::random_split(11, {0.3, 0.3, 0.3, 0.1})) == V{4, 3, 3, 1});
    CHECK(sizes(data::random_split(0, {0.5, 0.5})) == V{0, 0});
    CHECK(sizes(data::random_split(5, {1.0})) == V{5});
    for (int64_t n : {1, 2, 10, 1000}) {
        auto const parts = data::random_split(n, {0.7, 0.2, 0.1}, 3);
        std::vector<int64_t> together;
        for (auto const& p : parts) together.insert(together.end(), p.begin(), p.end());
        CHECK((n < 10 || together != range(0, n)));
        std::sort(together.begin(), together.end());
        CHECK(together == range(0, n));
        CHECK(parts == data::random_split(n, {0.7, 0.2, 0.1}, 3));
        CHECK((n < 1000 || parts != data::random_split(n, {0.7, 0.2, 0.1}, 4)));
    }
    // What is held out must be the same in later versions of the library.
    CHECK(data::random_split(10, {6, 4}, 7)[1] == std::vector<int64_t>{7, 2, 5, 4});

    Count const dataset{100};
    auto const [train, held_out] = data::random_split(dataset, {80, 20}, 5);
    static_assert(std::is_same_v<decltype(train), data::Subset<Count const&> const>);
    CHECK(all_of(train) == data::random_split(100, {80, 20}, 5)[0]);
    CHECK(held_out.size() == 20);
    CHECK(has(error_of([&] { data::random_split(dataset, {80, 21}); }), {"E_CONFIG: data::random_split: the lengths add up to 101", "100"}));
    CHECK(has(error_of([&] { data::random_split(dataset, {120, -20}); }), {"E_CONFIG"}));
    CHECK(has(error_of([&] { data::random_split(dataset, {0.5, 0.6}); }), {"E_CONFIG", "add up to 1.1"}));
    CHECK(has(error_of([&] { data::random_split(dataset, {1.5, -0.5}); }), {"E_CONFIG"}));
    CHECK(has(error_of([&] { data::random_split(dataset, {std::nan(""), 1.0}); }), {"E_CONFIG"}));
}

TEST_CASE("turns keep within one of every share, at every moment", "[mixture][turns][parts]") {
    std::mt19937 random(7);
    for (int round = 0; round < 200; ++round) {
        auto const m = 1 + random() % 12;
        std::vector<double> weights;
        for (size_t s = 0; s < m; ++s) weights.push_back(round % 2 ? static_cast<double>(1 + random() % 30) : std::exp(std::normal_distribution<>(0, 2)(random)));
        data::Turns const turns(weights);
        auto const& c = turns.counts();
        auto const total = turns.length();
        REQUIRE(std::accumulate(c.begin(), c.end(), int64_t{0}) == total);
        REQUIRE(total <= 4096);
        auto const sum = std::accumulate(weights.begin(), weights.end(), 0.0);
        for (size_t s = 0; s < m; ++s) REQUIRE(std::abs(static_cast<double>(c[s]) / static_cast<double>(total) - weights[s] / sum) <= (round % 2 ? 1e-12 : (1 + static_cast<double>(m)) / 4096));
        std::vector<int64_t> had(m, 0);
        bool good = true;
        for (int64_t k = 0; k < 2 * total + 5; ++k) {
            auto const [source, nth] = turns[k];
            good = good && nth == had[source];
            if (k % 31 == 0) good = good && turns.when(source, nth) == k;  // these two look through the whole period
            ++had[source];
            for (size_t s = 0; s < m; ++s) good = good && std::abs(had[s] * total - (k + 1) * c[s]) < total;
            if (k % 97 == 0)
                for (size_t s = 0; s < m; ++s) good = good && turns.count(s, k + 1) == had[s];
        }
        REQUIRE(good);
    }
}

TEST_CASE("weights become the smallest integers of their ratios", "[mixture]") {
    auto const counts = [](std::vector<double> const& w) { return data::Turns(w).counts(); };
    using V = std::vector<int64_t>;
    CHECK(counts({0.7, 0.2, 0.1}) == V{7, 2, 1});
    CHECK(counts({50, 50}) == V{1, 1});
    CHECK(counts({1.0 / 3, 1.0 / 3, 1.0 / 3}) == V{1, 1, 1});
    CHECK(counts({6, 4, 2}) == V{3, 2, 1});
    CHECK(counts({123}) == V{1});
    CHECK(counts({4095, 1}) == V{4095, 1});
    CHECK(counts({1e9, 1, 1}) == V{4094, 1, 1});  // never none at all
    CHECK(data::Turns({1, std::sqrt(2.0)}).length() == 4096);
    CHECK(data::Turns(std::vector<double>(4096, 0.1)).length() == 4096);
    for (auto const& bad : {std::vector<double>{}, {1, 0}, {1, -1}, {1, std::nan("")}, {1, INFINITY}, std::vector<double>(4097, 1)})
        CHECK(has(error_of([&] { data::Turns{bad}; }), {"E_CONFIG: data::Mixture: "}));
}

TEST_CASE("a mixture has its proportions exactly, until the first sample would come again", "[mixture]") {
    Count const web{100}, books{100, 1000};
    data::Mixture const mixture{{.weights = {3, 1}}, web, books};
    static_assert(std::is_same_v<decltype(mixture), data::Mixture<Count const&, Count const&> const> && data::IndexedDataset<decltype(mixture)>);
    auto const samples = all_of(mixture);
    std::map<int64_t, int> seen;
    int64_t from_web = 0;
    for (size_t k = 0; k < samples.size(); ++k) {
        CHECK(++seen[samples[k]] == 1);
        from_web += samples[k] < 1000;
        CHECK(std::abs(4 * from_web - 3 * static_cast<int64_t>(k + 1)) < 4);
    }
    CHECK(from_web == 100);
    CHECK(mixture.place(static_cast<int64_t>(mixture.size())).index == 0);  // web's first sample again
    CHECK((mixture.passes(0) == 1 && mixture.passes(1) < 1));

    data::Mixture const wrapped{{.weights = {1, 1}, .size = 8}, Count{2}, Count{100, 50}};
    CHECK(all_of(wrapped) == std::vector<int64_t>{0, 50, 1, 51, 0, 52, 1, 53});
    CHECK((wrapped.passes(0) == 2.0 && wrapped.passes(1) == 0.04));
    CHECK(data::Mixture{{}, Count{3}, Count{3}, Count{3}}.size() == 9);  // equal weights
    CHECK(data::Mixture{{.weights = {1, 1000}}, Count{1}, Count{int64_t{1} << 60}}.size() < 2003);
    CHECK(data::Mixture{{.weights = {1, 1000}}, Count{int64_t{1} << 60}, Count{std::numeric_limits<int64_t>::max()}}.size() == static_cast<size_t>(std::numeric_limits<int64_t>::max()));
}

TEST_CASE("a shuffled mixture reads each source once in each pass", "[mixture]") {
    std::vector<Count> const sources{{7}, {20, 100}};
    data::Mixture const mixture{{.weights = {2, 1}, .size = 63, .shuffle = true, .seed = 4}, sources};
    auto const samples = all_of(mixture);
    std::vector<int64_t> first;
    std::set<int64_t> second;
    for (auto s : samples)
        if (s < 100) first.push_back(s);
        else second.insert(s);
    REQUIRE(first.size() == 42);
    CHECK(second.size() == 20);
    std::set<std::vector<int64_t>> orders;
    for (size_t pass = 0; pass < 6; ++pass) {
        std::vector<int64_t> order(first.begin() + static_cast<int64_t>(pass) * 7, first.begin() + static_cast<int64_t>(pass + 1) * 7);
        orders.insert(order);
        std::sort(order.begin(), order.end());
        CHECK(order == range(0, 7));
    }
    CHECK(orders.size() == 6);
    CHECK(all_of(data::Mixture{{.weights = {2, 1}, .size = 63, .shuffle = true, .seed = 4}, sources}) == samples);
    CHECK(all_of(data::Mixture{{.weights = {2, 1}, .size = 63, .shuffle = true, .seed = 5}, sources}) != samples);
}

TEST_CASE("mixtures that cannot be", "[mixture]") {
    CHECK(has(error_of([] { data::Mixture{{.weights = {1}}, Count{3}, Count{3}}; }), {"E_CONFIG: data::Mixture: 1 weights for 2 sources"}));
    CHECK(has(error_of([] { data::Mixture{{.weights = {1, 0}}, Count{3}, Count{3}}; }), {"E_CONFIG", "weight 0"}));
    CHECK(has(error_of([] { data::Mixture{{}, Count{3}, Count{0}}; }), {"E_DATA: data::Mixture: source 1 is empty"}));
    CHECK(has(error_of([] { data::Mixture{{.size = -1}, Count{3}}; }), {"E_CONFIG", "size is -1"}));
    CHECK(has(error_of([] { data::Mixture{{}, std::vector<Count>()}; }), {"E_CONFIG", "0 weights"}));
}

namespace {
/// Numbers below 100 in parts; an epoch adds to them where `open` takes it.
struct Countdown {
    int64_t left = 0, step = 1, skipped = 0;
    std::optional<int64_t> next() { return left > 0 ? std::optional(left -= step) : std::nullopt; }
    void skip(int64_t n) { left -= n * step, skipped += n; }
};
struct Countdowns {
    Countdown open(int64_t k, int64_t n) const { return {100 - k, n}; }
};
struct Epochs {
    Countdown open(int64_t k, int64_t n, int64_t epoch) const { return {100 * epoch - k, n}; }
};
struct Again {
    int64_t left = 3;
    std::optional<int64_t> next() { return left > 0 ? std::optional(left--) : std::nullopt; }
    void start(int64_t epoch) { left = 3 + epoch; }
};
template <class S>
concept skips = requires(S& s) { s.skip(1); };
template <class S>
concept opens_epochs = requires(S& s) { s.open(0, 1, 2); } && !requires(S& s) { s.open(0, 1); };
template <class S>
concept starts = requires(S& s) { s.start(1); };
}  // namespace

TEST_CASE("map keeps the kind of a data set", "[transform]") {
    auto const twice = [](int64_t x) { return 2 * x; };
    SECTION("indexed") {
        Counting named{3};
        auto const doubled = data::map(named, twice);
        static_assert(std::is_same_v<std::remove_const_t<decltype(doubled)>, data::Map<Counting&, std::remove_const_t<decltype(twice)>>>);
        static_assert(data::IndexedDataset<decltype(doubled)> && !data::OpaqueStream<decltype(doubled)> && !data::ShardableStream<decltype(doubled)>);
        CHECK(all_of(doubled) == std::vector<int64_t>{0, 2, 4});
        CHECK(named.reads == 3);
        std::vector<std::string> words{"a", "bb"};
        auto const lengths = data::map(words, &std::string::size);
        words.push_back("ccc");  // referenced
        CHECK((lengths.size() == 3 && lengths[2] == 3));
        auto const moved = data::map(data::map(std::vector<std::string>{"x"}, [](std::string s) { return s + "y"; }), [](std::string&& s) { return std::move(s) + "z"; });
        CHECK(moved[0] == "xyz");
        static_assert(std::is_same_v<data::sample_t<decltype(data::map(words, [](auto& s) -> auto& { static_assert(std::is_const_v<std::remove_reference_t<decltype(s)>>); return s; }))>, std::string>);
        data::RecordFile const* none = nullptr;
        static_assert(!data::BatchingDataset<decltype(data::map(*none, [](torch::Tensor x) { return x; }))>);
    }
    SECTION("with random numbers") {
        auto const shifted = data::map(Count{5}, [](int64_t x, data::Random& random) { return x + 10 * random.below(1000); });
        data::Random one(1, 2, 3), same(1, 2, 3), other(1, 2, 4);
        auto const expected = 4 + 10 * data::Random(1, 2, 3).below(1000);
        CHECK(shifted.at(4, one) == expected);
        data::Subset const last{shifted, {4}};
        CHECK(data::read_sample(last, 0, std::move(same)) == expected);
        CHECK(shifted.at(4, other) != expected);
        CHECK(shifted[4] % 10 == 4);
    }
    SECTION("streams") {
        auto again = data::map(Again(), twice);
        static_assert(data::OpaqueStream<decltype(again)> && !data::IndexedDataset<decltype(again)> && starts<decltype(again)> && !skips<decltype(again)>);
        CHECK(rest_of(again) == std::vector<int64_t>{6, 4, 2});
        again.start(1);
        CHECK(rest_of(again) == std::vector<int64_t>{8, 6, 4, 2});
        Countdown down{5};
        auto skipping = data::map(down, twice);
        static_assert(skips<decltype(skipping)> && !starts<decltype(skipping)>);
        skipping.skip(2);
        CHECK(down.skipped == 2);
        CHECK(rest_of(skipping) == std::vector<int64_t>{4, 2, 0});
    }
    SECTION("streams in parts") {
        auto const parts = data::map(Countdowns(), [](int64_t x) { return std::to_string(x); });
        static_assert(data::ShardableStream<decltype(parts)> && !data::OpaqueStream<decltype(parts)> && std::is_same_v<data::sample_t<decltype(parts)>, std::string>);
        auto part = parts.open(10, 30);
        static_assert(skips<decltype(part)>);
        part.skip(1);
        CHECK(rest_of(part) == std::vector<std::string>{"30", "0"});
        auto const epochs = data::map(Epochs(), twice);
        static_assert(data::ShardableStream<decltype(epochs)> && opens_epochs<decltype(epochs)> && !opens_epochs<decltype(parts)>);
        CHECK(rest_of(epochs.open(0, 100, int64_t{2})) == std::vector<int64_t>{200, 0});
    }
}

TEST_CASE("filter drops samples of a stream", "[transform]") {
    auto const even = [](int64_t x) { return x % 2 == 0; };
    auto stream = data::filter(Again(), even);
    static_assert(data::OpaqueStream<decltype(stream)> && starts<decltype(stream)>);
    CHECK(rest_of(stream) == std::vector<int64_t>{2});
    stream.start(3);
    CHECK(rest_of(stream) == std::vector<int64_t>{6, 4, 2});
    auto down = data::filter(Countdown{9}, even);
    static_assert(!skips<decltype(down)> && !starts<decltype(down)>);  // the source's skip would count what is dropped
    CHECK(rest_of(down) == std::vector<int64_t>{8, 6, 4, 2, 0});
    CHECK(rest_of(data::filter(Countdown{9}, [](int64_t) { return false; })).empty());
    Folder const folder;
    auto const long_ones = data::map(data::filter(data::Lines(folder.write("t", "a\nbbb\ncc\n\ndddd")), [](std::string const& s) { return s.size() > 1; }), &std::string::size);
    static_assert(data::ShardableStream<decltype(long_ones)>);
    std::vector<size_t> seen;
    for (int64_t k = 0; k < 4; ++k)
        for (auto n : rest_of(long_ones.open(k, 4))) seen.push_back(n);
    CHECK(seen == std::vector<size_t>{3, 2, 4});
    CHECK(rest_of(data::filter(Epochs(), even).open(0, 50, 1)) == std::vector<int64_t>{50, 0});
}

// ---- LibTorch's data sets -----------------------------------------------------------------------------------------------------

namespace {

struct Squares : torch::data::datasets::Dataset<Squares> {
    torch::data::Example<> get(size_t i) override {
        auto const x = static_cast<double>(i);
        return {torch::full({2}, x), torch::tensor(x * x)};
    }
    std::optional<size_t> size() const override { return known ? std::optional<size_t>(4) : std::nullopt; }
    bool known = true;
};
struct Own {  // not derived from anything
    int get(size_t i) { return static_cast<int>(i) * 3; }
    size_t size() const { return 2; }
};

}  // namespace

TEST_CASE("torch data sets are data sets", "[torch_dataset]") {
    auto const collate = [](auto const& dataset) {
        std::vector<data::sample_t<decltype(dataset)>> samples;
        for (size_t i = 0; i < dataset.size(); ++i) samples.push_back(dataset[i]);
        return data::Collate()(std::move(samples));
    };
    Squares named;
    auto const squares = data::adapt(named);
    static_assert(std::is_same_v<decltype(squares), data::TorchDataset<Squares&> const> && data::IndexedDataset<decltype(squares)>);
    auto const [x, y] = collate(squares);
    CHECK(numbers(x) == std::vector<int64_t>{0, 0, 1, 1, 2, 2, 3, 3});
    CHECK(x.sizes() == at::IntArrayRef({4, 2}));
    CHECK(numbers(y) == std::vector<int64_t>{0, 1, 4, 9});

    auto const plain = data::adapt(torch::data::datasets::TensorDataset(torch::arange(3)));
    CHECK(numbers(collate(plain)) == std::vector<int64_t>{0, 1, 2});
    auto const [mx, my] = collate(data::adapt(Squares().map(torch::data::transforms::Normalize<>(1.0, 2.0))));
    CHECK(torch::allclose(mx.view({4, 2}), (x - 1) / 2));
    CHECK(torch::equal(my, y));
    CHECK(numbers(collate(data::adapt(torch::data::datasets::make_shared_dataset<Squares>())).second) == std::vector<int64_t>{0, 1, 4, 9});
    CHECK(all_of(data::map(data::adapt(Own()), [](int i) { return int64_t{i}; })) == std::vector<int64_t>{0, 3});
    named.known = false;
    CHECK(has(error_of([&] { data::adapt(named); }), {"E_CONFIG: data::adapt: ", "size() is empty"}));
}

// ---- safetensors --------------------------------------------------------------------------------------------------------------

TEST_CASE("a safetensors file is a data set of its rows", "[tensor_dataset]") {
    Folder const folder;
    auto const path = folder.path / "data.safetensors";
    auto const images = torch::randn({6, 2, 3}), labels = torch::arange(6), scale = torch::ones({2});
    acc::save_file({{"images", images}, {"labels", labels}, {"scale", scale}}, path);
    data::SafetensorsDataset const dataset(path, {"labels", "images"});
    static_assert(data::BatchingDataset<data::SafetensorsDataset> && std::is_same_v<data::sample_t<data::SafetensorsDataset>, acc::TensorMap>);
    REQUIRE(dataset.size() == 6);
    CHECK(dataset.tensors().size() == 2);
    auto const sample = dataset[4];
    CHECK(sample.begin()->first == "labels");
    CHECK((torch::equal(sample.at("images"), images[4]) && sample.at("labels").item<int64_t>() == 4));
    std::vector<int64_t> const rows{5, 0, 0};
    auto const batch = dataset.batch(rows);
    CHECK(numbers(batch.at("labels")) == rows);
    CHECK(torch::equal(batch.at("images"), images.index_select(0, torch::tensor(rows))));
    auto const collated = data::Collate()(std::vector{dataset[5], dataset[0], dataset[0]});
    CHECK(torch::equal(collated.at("images"), batch.at("images")));

    CHECK(has(error_of([&] { data::SafetensorsDataset{path}; }), {"E_DATA: data::SafetensorsDataset: ", "\"scale\"", "[2]", "[6", "data.safetensors"}));
    CHECK(has(error_of([&] { data::SafetensorsDataset(path, {"label"}); }), {"E_DATA", "\"label\""}));
    acc::save_file({{"images", images}, {"labels", labels}}, path);
    CHECK(data::SafetensorsDataset(path).tensors().size() == 2);
    acc::save_file({{"number", torch::ones({})}}, path);
    CHECK(has(error_of([&] { data::SafetensorsDataset{path}; }), {"E_DATA", "\"number\""}));
    acc::save_file({}, path);
    CHECK(has(error_of([&] { data::SafetensorsDataset{path}; }), {"E_DATA", "has no tensors"}));
    CHECK(has(error_of([&] { data::SafetensorsDataset(folder.path / "none"); }), {"E_IO", "none"}));
    fs::resize_file(path, 4);
    CHECK(has(error_of([&] { data::SafetensorsDataset{path}; }), {"E_ST_TOO_SMALL"}));
}

// ---- several threads ----------------------------------------------------------------------------------------------------------

TEST_CASE("several threads may read a data set at once", "[token_file][record_file][concat][mixture][transform]") {
    Folder const folder;
    data::TokenFile const file(folder.write("tokens", tokens<uint16_t>(4001)), {.context = 8});
    data::RecordFile const records(folder.write("records", tokens<uint32_t>(5000)), {.shape = {10}, .dtype = at::kInt});
    auto const sums = data::map(file, [](data::TokenFile::Window const& w) { return w.input.sum().item<int64_t>(); });
    auto const others = data::map(records, [](torch::Tensor const& r) { return r.sum().item<int64_t>(); });
    data::Mixture const mixture{{.weights = {2, 3}, .size = 1500, .shuffle = true}, data::Concat{sums, others}, others};
    auto const expected = all_of(mixture);
    std::vector<std::vector<int64_t>> seen(4);
    std::vector<std::thread> threads;
    for (auto& mine : seen) threads.emplace_back([&] { mine = all_of(mixture); });
    for (auto& t : threads) t.join();
    for (auto const& mine : seen) CHECK(mine == expected);
}
