#pragma once

#include <accelerate/core/error.hpp>
#include <accelerate/data/permutation.hpp>
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <system_error>
#include <vector>

namespace accelerate::data {

/// What `read_corpus` takes.
struct corpus_options {
    std::vector<std::string> extensions = {};  ///< of a folder's files, as in {".txt", ".md"}; none: all files
    int64_t held_out_every = 10;               ///< one file in so many is set aside, at least one; 0: none
    int64_t max_bytes = 0;                     ///< read at most so much; 0: everything
    int64_t seed = 0;                          ///< draws the order of the files
};

/// Text to train on and text from files that are never trained on.
struct Corpus {
    std::string train = {}, held_out = {};
    std::vector<std::filesystem::path> train_files = {}, held_out_files = {};
};

/// The bytes of a file, at most `max_bytes` of them. Error E_IO naming the file when it cannot be read.
inline std::string read_file(std::filesystem::path const& path, int64_t max_bytes = std::numeric_limits<int64_t>::max()) {
    auto const require = [&](bool fine, int error) {
        check(fine, code::io, "data::read_file: ", path, " cannot be read: ", std::strerror(error ? error : EIO));
    };
    std::error_code failure;
    auto const size = std::filesystem::file_size(path, failure);
    require(!failure, failure.value());
    errno = 0;
    std::ifstream in(path, std::ios::binary);
    require(in.is_open(), errno);
    std::string text(std::min(size, static_cast<uintmax_t>(max_bytes)), '\0');
    in.read(text.data(), static_cast<std::streamsize>(text.size()));
    require(in.gcount() == static_cast<std::streamsize>(text.size()), errno);
    return text;
}

namespace detail {

/// Files below a folder by extension, sorted: the same list on every rank.
inline std::vector<std::filesystem::path> files_below(std::filesystem::path const& folder, std::vector<std::string> const& extensions) {
    std::vector<std::filesystem::path> files;
    try {
        for (auto const& entry : std::filesystem::recursive_directory_iterator(folder)) {
            auto const wanted = extensions.empty() || std::find(extensions.begin(), extensions.end(), entry.path().extension()) != extensions.end();
            if (wanted && entry.is_regular_file()) files.push_back(entry.path());
        }
    } catch (std::filesystem::filesystem_error const& e) {
        throw Error(code::io, concat("data::read_corpus: folder ", folder, " cannot be read: ", e.what()));
    }
    std::sort(files.begin(), files.end());
    return files;
}

}  // namespace detail

/// Reads a text file, or all files below a folder that have one of the extensions, in an order drawn by the seed so that a limit
/// on the bytes takes something of everything. Whole files are set aside as held-out text (of a single file its end). The same
/// on every rank that sees the same files. Error E_IO naming what cannot be read, E_DATA naming what has no text.
inline Corpus read_corpus(std::filesystem::path const& path, corpus_options const& o = {}) {
    namespace fs = std::filesystem;
    check(o.held_out_every != 1 && o.held_out_every >= 0 && o.max_bytes >= 0, code::config, "data::read_corpus: held_out_every is ", o.held_out_every,
          " and max_bytes ", o.max_bytes, "; held_out_every must be 0 or at least 2, max_bytes not negative");
    std::error_code missing;
    auto const is_folder = fs::is_directory(path, missing);
    auto const paths = is_folder ? detail::files_below(path, o.extensions) : std::vector<fs::path>{path};

    std::vector<std::pair<fs::path, std::string>> files;
    auto left = o.max_bytes > 0 ? o.max_bytes : std::numeric_limits<int64_t>::max();
    Permutation const drawn(static_cast<uint64_t>(Seed(o.seed).data()), std::max<int64_t>(1, static_cast<int64_t>(paths.size())));
    for (int64_t i = 0; i < static_cast<int64_t>(paths.size()) && left > 0; ++i) {
        auto const& next = paths[static_cast<size_t>(drawn[i])];
        auto text = read_file(next, left);
        left -= static_cast<int64_t>(text.size());
        if (!text.empty()) files.emplace_back(next, std::move(text));
    }
    std::string wanted;
    for (auto const& e : o.extensions) wanted += " *" + e;
    check(!files.empty(), code::data, "data::read_corpus: ", path, is_folder ? " has no file with content" : " is empty",
          is_folder && !wanted.empty() ? " among" + wanted : "");

    Corpus corpus;
    auto const every = static_cast<size_t>(o.held_out_every);
    if (files.size() == 1 && every > 0) {
        auto const& text = files[0].second;
        auto const cut = text.size() - text.size() / every;
        return {text.substr(0, cut), text.substr(cut), {files[0].first}, {files[0].first}};
    }
    // Of few files the smallest is enough.
    auto const smallest =
        std::min_element(files.begin(), files.end(), [](auto const& a, auto const& b) { return a.second.size() < b.second.size(); }) - files.begin();
    for (size_t i = 0; i < files.size(); ++i) {
        auto const aside = every > 0 && (files.size() < every ? i == static_cast<size_t>(smallest) : i % every == 0);
        (aside ? corpus.held_out : corpus.train) += files[i].second;
        (aside ? corpus.held_out_files : corpus.train_files).push_back(std::move(files[i].first));
    }
    return corpus;
}

}  // namespace accelerate::data
