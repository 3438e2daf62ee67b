// Data sets in formats of others: CSV, folders of images, MNIST, CIFAR. Against hand-written expectations and formulas, and with files
// that are cut off, lie, or are something else.
#include <torch/torch.h>

#include "support/catch.hpp"  // after LibTorch, whose CHECK ends the process
#include "support/errors.hpp"
#include "support/folder.hpp"

#include <accelerate/data/cifar.hpp>
#include <accelerate/data/collate.hpp>
#include <accelerate/data/csv.hpp>
#include <accelerate/data/dataset.hpp>
#include <accelerate/data/image_folder.hpp>
#include <accelerate/data/mnist.hpp>
#include <filesystem>
#include <fstream>
#include <limits>
#include <unistd.h>

namespace acc = accelerate;
namespace data = acc::data;
namespace fs = std::filesystem;

namespace {

std::string big_endian(uint32_t n) { return {static_cast<char>(n >> 24), static_cast<char>(n >> 16), static_cast<char>(n >> 8), static_cast<char>(n)}; }
/// n bytes that depend on `seed`.
std::string noise(size_t n, uint32_t seed) {
    std::string out;
    for (uint32_t k = 0; k < n; ++k) out += static_cast<char>((k * 2654435761u + seed * 40503u) >> 13);
    return out;
}
torch::Tensor bytes_as(std::string const& bytes, at::IntArrayRef shape) {
    return torch::from_blob(const_cast<char*>(bytes.data()), shape, at::kByte).clone();
}

}  // namespace

// ---- CSV ----------------------------------------------------------------------------------------------------------------------

TEST_CASE("the rows of a CSV file are tensors", "[csv][csv_fields]") {
    Folder const folder;
    static_assert(data::BatchingDataset<data::Csv> && std::is_same_v<data::sample_t<data::Csv>, torch::Tensor>);
    using Names = std::vector<std::string>;
    auto const expected = torch::tensor({{1.5f, -2.0f, 300.0f}, {0.25f, 4.0f, -5.0f}, {7.0f, 8.0f, 9.0f}});
    for (std::string text : {"a,b,c\n1.5,-2,3e2\n.25,4,-5\n7,8,9\n", "a,b,c\r\n1.5,-2,3e2\r\n.25,4,-5\r\n7,8,9\r\n", "\xEF\xBB\xBF\"a\",b,c\n1.5,-2,3e2\n.25,4,-5\n7,8,9",
                             "a , b,\"c\"\r\n 1.5,\t-2, +3e2 \n\".25\",\"4\",\"-5\"\r\n7,8,\"9\"\r", "a,b,c\n1.5,-2,3E+2\n0.25,+4,-5\n7,8,\"9\""}) {
        data::Csv const csv(folder.write("a.csv", text));
        INFO(text);
        CHECK(csv.names() == Names{"a", "b", "c"});
        CHECK((csv.tensor().scalar_type() == at::kFloat && torch::equal(csv.tensor(), expected)));
        REQUIRE(csv.size() == 3);
        CHECK(torch::equal(csv[1], expected[1]));
        CHECK(torch::equal(csv.batch(std::vector<int64_t>{2, 0, 2}), torch::stack({expected[2], expected[0], expected[2]})));
    }
    CHECK(data::Csv(folder.write("b.csv", "1;2\n3;4"), {.delimiter = ';', .header = false}).names() == Names{"0", "1"});
    CHECK(torch::equal(data::Csv(folder.path / "b.csv", {.delimiter = ';', .header = false, .columns = {"1"}}).tensor(), torch::tensor({{2.0f}, {4.0f}})));
    CHECK(data::Csv(folder.write("c.csv", "x,y\n")).tensor().sizes() == at::IntArrayRef({0, 2}));
    data::Csv const limits(folder.write("d.csv", "x\ninf\n-inf\nnan\n3.4028234e38\n1e-50"));
    CHECK((limits[0].item<float>() == INFINITY && limits[1].item<float>() == -INFINITY && std::isnan(limits[2].item<float>()) && std::isfinite(limits[3].item<float>())));
    CHECK(limits[4].item<float>() == 0);
    data::Csv const exact(folder.write("e.csv", "x\n9007199254740991\n1e300\n0.1\n"), {.dtype = at::kDouble});
    CHECK((exact[0].item<double>() == 9007199254740991.0 && exact[1].item<double>() == 1e300 && exact[2].item<double>() == 0.1));
}

TEST_CASE("columns of a CSV file are chosen by name; the others may hold anything", "[csv]") {
    Folder const folder;
    auto const path = folder.write("houses.csv", "name,\"area, m2\",\"the \"\"price\"\"\",name\n\"A, \"\"the\"\" one\nwith lines\r\n\",50,1e5,\nB,60,2e5,x\n");
    data::Csv const csv(path, {.columns = {"the \"price\"", "area, m2"}});
    CHECK(torch::equal(csv.tensor(), torch::tensor({{1e5f, 50.0f}, {2e5f, 60.0f}})));
    CHECK(csv.names() == std::vector<std::string>{"the \"price\"", "area, m2"});
    CHECK(has(error_of([&] { data::Csv(path, {.columns = {"rooms"}}); }), {"E_DATA: data::Csv: ", path.string(), "\"rooms\"", "\"name\" \"area, m2\""}));
    CHECK(has(error_of([&] { data::Csv(path, {.columns = {"name"}}); }), {"E_DATA", "\"name\"", "once in the file"}));
    CHECK(has(error_of([&] { data::Csv(path, {.columns = {"area, m2", "area, m2"}}); }), {"E_DATA", "once in `columns`"}));
    CHECK(has(error_of([&] { data::Csv{path}; }), {"E_DATA", "line 2, column 1", "\"name\"", "found \"A, \"the\" one?with"}));
    folder.write("houses.csv", "a,b\n\"two\n\nlines\",1\n3,x");
    CHECK(has(error_of([&] { data::Csv(path, {.columns = {"b"}}); }), {"line 5, column 2", "\"b\"", "found \"x\""}));  // lines in quotes count
}

TEST_CASE("a field of a CSV file that is wrong is named by line and column", "[csv]") {
    Folder const folder;
    auto const error = [&](std::string const& text, data::csv_options const& o = {}) { return error_of([&] { data::Csv(folder.write("bad.csv", text), o); }); };
    CHECK(has(error("a,b\n1,2\n3,four\n"), {"E_DATA: data::Csv: ", "bad.csv", "line 3, column 2: expected a number", "\"b\"", "found \"four\""}));
    for (std::string field : {"", " ", "1x", "--1", "+-1", "+", "-", "0x10", "1 2", "1_000", "True", "1e", "\"\"", "\" 1\"", "\xFF"}) {
        INFO(field);
        CHECK(has(error("a,b\n1,2\n" + field + ",3"), {"E_DATA", "line 3, column 1", "expected a number"}));
    }
    CHECK(has(error("a\n1e39"), {"line 2, column 1", "Float can hold", "\"1e39\""}));
    CHECK(has(error("a\n1e400", {.dtype = at::kDouble}), {"line 2, column 1", "Double can hold"}));
    CHECK(has(error("a,b\n1,2\n3\n"), {"E_DATA", "line 3, column 1: expected 2 fields", "line's end after 1"}));
    CHECK(has(error("a,b\n1,2\n\n3,4"), {"line 3, column 1: expected 2 fields"}));
    CHECK(has(error("a,b\n1,2,9\n"), {"E_DATA", "line 2, column 3: expected the line's end after 2 fields", "found \"9\""}));
    CHECK(has(error("a,b\n1,2,"), {"line 2, column 3", "found \"\""}));
    CHECK(has(error("a,b\n1,"), {"line 2, column 2", "expected a number", "found \"\""}));
    CHECK(has(error("a,b\n1,\"2\n3,4\n"), {"E_DATA", "line 2, column 2: expected a closing quote", "\"2?3,4"}));
    CHECK(has(error("\"a\n"), {"line 1, column 1: expected a closing quote"}));
    CHECK(has(error("a,b\n\"1\"2,3\n"), {"E_DATA", "line 2, column 1: expected a delimiter behind the closing quote", "\"\"1\"2,3"}));
    CHECK(has(error("a\n\"1\"\r2\n"), {"line 2, column 1: expected a delimiter"}));
    CHECK(has(error("a\n" + std::string(100000, '7') + "x"), {"7777...\""}));
    CHECK(has(error(std::string("a\n1\0002\n", 6)), {"line 2, column 1", "\"1?2\""}));
    CHECK(has(error(""), {"E_DATA", "is empty", "line of names"}));
    CHECK(has(error("\xEF\xBB\xBF", {.header = false}), {"E_DATA", "is empty", "line of numbers"}));
    CHECK(has(error("1\n", {.delimiter = '"'}), {"E_CONFIG", "delimiter"}));
    CHECK(has(error("1\n", {.dtype = at::kLong}), {"E_CONFIG", "Long"}));
    CHECK(has(error_of([&] { data::Csv(folder.path / "none.csv"); }), {"E_IO", "none.csv"}));
    data::Csv const good(folder.write("good.csv", "a\n1\n2\n"));
    CHECK(has(error_of([&] { good[2]; }), {"E_DATA", "row 2 of 2"}));
    CHECK(has(error_of([&] { good.batch(std::vector<int64_t>{0, -1}); }), {"E_DATA", "row -1"}));
}

// ---- images -------------------------------------------------------------------------------------------------------------------

#if __has_include(<stb/stb_image.h>) || __has_include(<stb_image.h>)

namespace {

std::string ppm(int64_t height, int64_t width, std::string const& pixels) {
    return (pixels.size() == static_cast<size_t>(height * width) ? "P5\n" : "P6\n") + std::to_string(width) + " " + std::to_string(height) + "\n255\n" + pixels;
}
/// RGB or, with a pixel byte, grey, not compressed; its CRCs are 0, which stb does not look at.
std::string png(uint32_t height, uint32_t width, std::string const& pixels) {
    auto const chunk = [](std::string const& name, std::string const& bytes) { return big_endian(static_cast<uint32_t>(bytes.size())) + name + bytes + big_endian(0); };
    auto const row = pixels.size() / height;
    std::string raw;
    for (size_t y = 0; y < height; ++y) raw += '\0' + pixels.substr(y * row, row);
    auto const n = static_cast<uint16_t>(raw.size()), inverse = static_cast<uint16_t>(~n);
    uint32_t a = 1, b = 0;
    for (char c : raw) b = (b + (a = (a + static_cast<unsigned char>(c)) % 65521)) % 65521;
    std::string const zlib = std::string("\x78\x01\x01") + static_cast<char>(n) + static_cast<char>(n >> 8) + static_cast<char>(inverse) + static_cast<char>(inverse >> 8) + raw + big_endian(b << 16 | a);
    return "\x89PNG\r\n\x1a\n" + chunk("IHDR", big_endian(width) + big_endian(height) + '\x08' + (row == width ? '\0' : '\2') + std::string(3, '\0')) + chunk("IDAT", zlib) + chunk("IEND", "");
}
/// 24 bits, from the bottom up, blue first.
std::string bmp(uint32_t height, uint32_t width, std::string const& rgb) {
    auto const little = [](uint32_t n) { auto s = big_endian(n); return std::string(s.rbegin(), s.rend()); };
    std::string pixels;
    for (size_t y = height; y-- > 0;) {
        for (size_t x = 0; x < width; ++x)
            for (size_t c = 3; c-- > 0;) pixels += rgb[(y * width + x) * 3 + c];
        while (pixels.size() % 4 != 0) pixels += '\0';
    }
    return "BM" + little(54 + static_cast<uint32_t>(pixels.size())) + little(0) + little(54) + little(40) + little(width) + little(height) + std::string("\1\0\x18\0", 4) + little(0) +
           little(static_cast<uint32_t>(pixels.size())) + std::string(16, '\0') + pixels;
}

}  // namespace

TEST_CASE("a folder of images: classes by name, files by name, pixels as they are", "[image_folder][decode_image][stb_image]") {
    Folder const folder;
    static_assert(data::IndexedDataset<data::ImageFolder> && std::is_same_v<data::detail::batch_t<data::sample_t<data::ImageFolder>>, data::LabelledImage::batch>);
    auto const pixels = [](uint32_t seed) { return noise(5 * 7 * 3, seed); };
    folder.write("dog/b.PNG", png(5, 7, pixels(3)));
    folder.write("dog/a.bmp", bmp(5, 7, pixels(2)));
    folder.write("cat/2.ppm", ppm(5, 7, pixels(1)));
    folder.write("cat/10.png", png(5, 7, pixels(0)));
    folder.write("zebra/deep/er/x.png", png(5, 7, pixels(5)));
    folder.write("zebra/notes.txt", "no image");
    folder.write("zebra/z.png", png(5, 7, pixels(4)));
    folder.write("readme.png", "not in a class");
    data::ImageFolder const images(folder.path, {.size = {{5, 7}}});
    CHECK(images.classes() == std::vector<std::string>{"cat", "dog", "zebra"});
    REQUIRE(images.size() == 6);
    CHECK(images.file(0) == folder.path / "cat/10.png");
    std::vector<data::LabelledImage> all;
    for (size_t i = 0; i < 6; ++i) {
        all.push_back(images[i]);
        CHECK((all[i].label == static_cast<int64_t>(i / 2) && all[i].image.is_contiguous()));
        CHECK(torch::equal(all[i].image, bytes_as(pixels(static_cast<uint32_t>(i)), {5, 7, 3}).permute({2, 0, 1})));
    }
    auto const batch = data::Collate()(std::move(all));
    CHECK((batch.image.sizes() == at::IntArrayRef({6, 3, 5, 7}) && torch::equal(batch.label, torch::tensor({0, 0, 1, 1, 2, 2}))));
}

TEST_CASE("images are converted to the channels asked for", "[image_folder]") {
    Folder const folder;
    auto const pixels = noise(12, 1);
    folder.write("a/grey.pgm", ppm(3, 4, pixels));
    folder.write("a/grey.png", png(3, 4, pixels));
    auto const grey = bytes_as(pixels, {1, 3, 4});
    for (size_t i = 0; i < 2; ++i) {
        CHECK(torch::equal(data::ImageFolder(folder.path, {.channels = 1})[i].image, grey));
        CHECK(torch::equal(data::ImageFolder(folder.path)[i].image, grey.expand({3, 3, 4})));
        CHECK(torch::equal(data::ImageFolder(folder.path, {.channels = 4})[i].image, torch::cat({grey.expand({3, 3, 4}), torch::full({1, 3, 4}, 255, at::kByte)})));
    }
    CHECK(has(error_of([&] { data::ImageFolder(folder.path, {.channels = 5}); }), {"E_CONFIG", "channels is 5"}));
    CHECK(has(error_of([&] { data::ImageFolder(folder.path, {.channels = 0}); }), {"E_CONFIG"}));
}

TEST_CASE("images that are none, and folders without", "[image_folder]") {
    Folder const folder;
    auto const read = [&](std::string const& name, std::string const& bytes) {
        fs::remove_all(folder.path / "a");
        folder.write("a/" + name, bytes);
        return error_of([&] { data::ImageFolder(folder.path)[0]; });
    };
    CHECK(has(error_of([&] { data::ImageFolder(folder.path); }), {"E_DATA: data::ImageFolder: ", folder.path.string(), "no classes", "root/class/name.png"}));
    CHECK(has(error_of([&] { data::ImageFolder(folder.path / "none"); }), {"E_IO", "none", "No such file"}));
    CHECK(has(error_of([&] { data::ImageFolder(folder.write("file", "")); }), {"E_IO", "Not a directory"}));
    auto const pixels = noise(5 * 7 * 3, 0);
    for (auto const& whole : {png(5, 7, pixels), bmp(5, 7, pixels), ppm(5, 7, pixels)}) {
        CHECK(read("x.png", whole) == "nothing was thrown");
        CHECK(read("x.png", whole + "more") == "nothing was thrown");
        bool all = true;
        for (size_t n = 0; n < whole.size(); ++n) all = all && read("x.png", whole.substr(0, n)).starts_with("E_DATA: data::ImageFolder: ");
        CHECK(all);  // stb itself decodes most of those
        for (size_t n = 0; n < whole.size() && n < 64; ++n) {  // what is wrong may decode, but only as an image or E_DATA
            auto broken = whole;
            broken[n] = static_cast<char>(broken[n] ^ 0x55);
            auto const error = read("x.png", broken);
            all = all && (error == "nothing was thrown" || error.starts_with("E_DATA"));
        }
        CHECK(all);
    }
    CHECK(has(read("bad.png", "this is text"), {"E_DATA", "bad.png", "12 bytes", "stb_image"}));
    CHECK(has(read("bad.jpg", ""), {"E_DATA", "bad.jpg", "0 bytes", "it is cut off"}));
    CHECK(has(read("anim.jpg", "GIF89a" + noise(100, 1)), {"E_DATA", "anim.jpg"}));
    CHECK(has(read("scan.tiff", std::string("II*\0", 4) + noise(100, 1)), {"E_DATA", "scan.tiff"}));
    CHECK(has(read("huge.ppm", "P6 16000000 16000000 255\n"), {"E_DATA", "too large"}));
    read("odd.ppm", ppm(5, 7, pixels));
    CHECK(has(error_of([&] { data::ImageFolder(folder.path, {.size = {{7, 5}}})[0]; }), {"E_DATA", "odd.ppm", "5 x 7", "expected 7 x 5"}));
    CHECK(has(error_of([&] { data::ImageFolder(folder.path)[1]; }), {"E_DATA", "image 1 of 1"}));
    folder.write("empty/notes.txt", "");
    CHECK(has(error_of([&] { data::ImageFolder(folder.path); }), {"E_DATA", "empty", "no images"}));
}

#endif

// ---- MNIST and CIFAR ----------------------------------------------------------------------------------------------------------

namespace {

/// Image i of a batch and alone is those bytes, scaled, and that label.
template <class D>
void check_images(D const& dataset, std::vector<std::string> const& pixels, std::vector<int64_t> const& labels, at::IntArrayRef shape) {
    static_assert(data::BatchingDataset<D> && std::is_same_v<data::sample_t<D>, data::LabelledImage>);
    REQUIRE(dataset.size() == pixels.size());
    std::vector<int64_t> order;
    std::vector<data::LabelledImage> samples;
    for (size_t i = pixels.size(); i-- > 0;) {
        auto const sample = dataset[i];
        CHECK(torch::equal(sample.image, bytes_as(pixels[i], shape).to(at::kFloat) / 255));
        CHECK(sample.label == labels[i]);
        order.push_back(static_cast<int64_t>(i));
        samples.push_back(sample);
    }
    auto const batch = dataset.batch(order);
    auto const stacked = data::Collate()(std::move(samples));
    CHECK((torch::equal(batch.image, stacked.image) && torch::equal(batch.label, stacked.label) && batch.label.scalar_type() == at::kLong));
    CHECK(dataset.batch({}).image.numel() == 0);
    CHECK(has(error_of([&] { dataset[pixels.size()]; }), {"E_DATA", "image " + std::to_string(pixels.size())}));
    CHECK(has(error_of([&] { dataset.batch(std::vector<int64_t>{-1}); }), {"E_DATA", "image -1"}));
}

std::string idx_images(uint32_t n, std::string const& pixels, uint32_t rows = 28, uint32_t columns = 28) {
    return big_endian(0x803) + big_endian(n) + big_endian(rows) + big_endian(columns) + pixels;
}
std::string idx_labels(uint32_t n, std::string const& labels) { return big_endian(0x801) + big_endian(n) + labels; }

}  // namespace

TEST_CASE("MNIST's files are images and labels", "[mnist][labelled_image]") {
    Folder const folder;
    std::vector<std::string> pixels;
    std::string all;
    for (uint32_t i = 0; i < 5; ++i) all += pixels.emplace_back(noise(28 * 28, i));
    auto const images = folder.write("images", idx_images(5, all)), labels = folder.write("labels", idx_labels(5, {3, 1, 4, 1, '\xFF'}));
    check_images(data::Mnist(images, labels), pixels, {3, 1, 4, 1, 255}, {1, 28, 28});
    CHECK(data::Mnist(folder.write("no_images", idx_images(0, "")), folder.write("no_labels", idx_labels(0, ""))).size() == 0);
}

TEST_CASE("MNIST files that are none", "[mnist]") {
    Folder const folder;
    auto const good_images = idx_images(2, noise(2 * 784, 0)), good_labels = idx_labels(2, "\1\2");
    auto const error = [&](std::string const& images, std::string const& labels) {
        auto const first = folder.write("images", images), second = folder.write("labels", labels);
        return error_of([&] { data::Mnist(first, second); });
    };
    CHECK(error(good_images, good_labels) == "nothing was thrown");
    CHECK(has(error(good_images.substr(0, 1000), good_labels), {"E_DATA: data::Mnist: ", "images\"", "1000 bytes", "expected 1584", "cut off"}));
    CHECK(has(error(good_images + "x", good_labels), {"E_DATA", "1585 bytes", "expected 1584"}));
    CHECK(has(error(good_images.substr(0, 15), good_labels), {"E_DATA", "15 bytes", "at least 16"}));
    CHECK(has(error("", good_labels), {"E_DATA", "0 bytes"}));
    CHECK(has(error(good_images, good_labels.substr(0, 7)), {"E_DATA", "labels\"", "7 bytes", "at least 8"}));
    CHECK(has(error(good_images, good_labels.substr(0, 9)), {"E_DATA", "labels\"", "9 bytes", "expected 10"}));
    CHECK(has(error(good_images, idx_labels(3, "\1\2\3")), {"E_DATA", "3 labels", "expected 2"}));
    CHECK(has(error(good_labels + noise(100, 0), good_labels), {"E_DATA", "images\"", "2049", "expected 2051"}));
    CHECK(has(error(good_images, good_images), {"E_DATA", "labels\"", "2051", "expected 2049"}));
    CHECK(has(error(idx_images(2, noise(2 * 32 * 28, 0), 32), good_labels), {"E_DATA", "byte 8", "32", "expected 28"}));
    CHECK(has(error(idx_images(2, noise(2 * 28 * 3, 0), 28, 3), good_labels), {"E_DATA", "byte 12", "expected 28"}));
    CHECK(has(error(idx_images(0xFFFFFFFF, noise(784, 0)), good_labels), {"E_DATA", "800 bytes", "expected 3367254359296"}));
    CHECK(has(error("\x1f\x8b\x08" + noise(100, 0), good_labels), {"E_DATA", "gzip", "gunzip"}));
    CHECK(has(error_of([&] { data::Mnist(folder.path / "none", folder.path / "labels"); }), {"E_IO", "none"}));
}

TEST_CASE("CIFAR's files are images and labels, one after another", "[cifar]") {
    Folder const folder;
    std::vector<std::string> pixels, files(3), files100(2);
    std::vector<int64_t> labels, coarse, fine;
    for (uint32_t i = 0; i < 7; ++i) {
        pixels.push_back(noise(3072, i));
        labels.push_back(9 - i);
        coarse.push_back(19 - i);
        fine.push_back(93 + i);
        files[i / 3] += static_cast<char>(labels.back()) + pixels.back();
        files100[i / 4] += std::string{static_cast<char>(coarse.back()), static_cast<char>(fine.back())} + pixels.back();
    }
    auto const a = folder.write("a", files[0]), b = folder.write("b", files[1]), c = folder.write("c", files[2]);
    check_images(data::Cifar10({a, b, c}), pixels, labels, {3, 32, 32});
    CHECK(data::Cifar10(b).size() == 3);
    std::vector const both{folder.write("x", files100[0]), folder.write("y", files100[1])};
    check_images(data::Cifar100(both), pixels, fine, {3, 32, 32});
    check_images(data::Cifar100(both, {.coarse = true}), pixels, coarse, {3, 32, 32});
    CHECK(data::Cifar100(both[0].string()).size() == 4);
}

TEST_CASE("CIFAR files that are none", "[cifar]") {
    Folder const folder;
    auto const good = folder.write("good", '\3' + noise(3072, 0));
    CHECK(has(error_of([&] { data::Cifar10({good, folder.write("cut.bin", noise(3072, 0))}); }), {"E_DATA: data::Cifar10: ", "cut.bin", "3072 bytes", "multiple of 3073"}));
    CHECK(has(error_of([&] { data::Cifar10(folder.write("empty.bin", "")); }), {"E_DATA", "empty.bin", "0 bytes"}));
    CHECK(has(error_of([&] { data::Cifar100{good}; }), {"E_DATA: data::Cifar100: ", "3073 bytes", "multiple of 3074"}));
    CHECK(has(error_of([&] { data::Cifar10(std::vector<fs::path>{}); }), {"E_CONFIG", "no files"}));
    CHECK(has(error_of([&] { data::Cifar10(folder.path / "none"); }), {"E_IO", "none"}));
    data::Cifar10 const bad({good, folder.write("label.bin", '\1' + noise(3072, 0) + '\12' + noise(3072, 1))});
    CHECK(bad[1].label == 1);
    CHECK(has(error_of([&] { bad[2]; }), {"E_DATA", "label.bin", "record 1 (byte 3073)", "label is 10", "less than 10"}));
    CHECK(has(error_of([&] { data::Cifar100(folder.write("c100", std::string("\1\x64") + noise(3072, 0)))[0]; }), {"E_DATA", "byte 1", "label is 100"}));
    CHECK(has(error_of([&] { data::Cifar100(folder.write("c100", std::string("\x14\1") + noise(3072, 0)), {.coarse = true})[0]; }), {"E_DATA", "byte 0", "label is 20"}));
}
