#pragma once
// Outside of the umbrella: for who has such files.

#include <accelerate/data/csv_fields.hpp>
#include <accelerate/data/tensors.hpp>
#include <memory>
#include <numeric>
#include <vector>

namespace accelerate::data {

/// How a `Csv` is read.
struct csv_options {
    char delimiter = ',';
    bool header = true;                     ///< the first line has names; without, columns are named "0", "1", ...
    std::vector<std::string> columns = {};  ///< which, in this order; none: all. What others hold is not looked at
    at::ScalarType dtype = at::kFloat;      ///< or at::kDouble, for integers beyond 2^24
};

/// The rows of a CSV file of numbers (RFC 4180, quotes as well): sample i is a tensor [columns]. The file is read once, into one
/// tensor, from which batches are gathered. A number is what std::from_chars takes (inf and nan too), with spaces around or a "+"
/// before it. Every line is a row; an empty one is an error.
///
///     data::Csv table("houses.csv", {.columns = {"area", "rooms", "price"}});
class Csv {
public:
    /// Errors: E_IO when the file cannot be mapped; E_DATA naming file, line and column of a field that is no number, missing, one too
    /// many or wrong in its quotes, and naming what of `columns` is not in the file just once; E_CONFIG for options that cannot be.
    explicit Csv(std::filesystem::path const& path, csv_options const& o = {}) {
        check(o.delimiter != '"' && o.delimiter != '\n' && o.delimiter != '\r', code::config,
              "data::Csv: the delimiter must not be a quote or the end of a line");
        check(o.dtype == at::kFloat || o.dtype == at::kDouble, code::config, "data::Csv: dtype ", o.dtype, "; expected at::kFloat or at::kDouble");
        MappedFile const file(path);
        detail::CsvFields fields(file, o.delimiter);
        check(!fields.done(), code::data, "data::Csv: ", path, " is empty; expected a line of ", o.header ? "names" : "numbers");
        std::vector<std::string> names;
        do names.emplace_back(fields.next());
        while (!fields.last());
        if (!o.header) {
            for (size_t k = 0; k < names.size(); ++k) names[k] = std::to_string(k);
            fields = detail::CsvFields(file, o.delimiter);
        }
        std::vector<int64_t> place(names.size());  // of each column in a row, or -1
        if (o.columns.empty()) std::iota(place.begin(), place.end(), 0);
        else place = chosen(path, names, o.columns);
        names_ = o.columns.empty() ? names : o.columns;
        tensor_ = o.dtype == at::kFloat ? read<float>(fields, names, place) : read<double>(fields, names, place);
    }

    /// All rows [rows, columns]; not a copy.
    at::Tensor const& tensor() const { return tensor_; }
    /// Of the columns of `tensor()`.
    std::vector<std::string> const& names() const { return names_; }

    size_t size() const { return static_cast<size_t>(tensor_.size(0)); }
    at::Tensor operator[](size_t i) const { return tensor_.select(0, in_range(static_cast<int64_t>(i))); }
    at::Tensor batch(std::span<int64_t const> indices) const {
        for (auto i : indices) in_range(i);
        return gather_rows(tensor_, indices);
    }

private:
    int64_t in_range(int64_t i) const {
        check(i >= 0 && i < tensor_.size(0), code::data, "data::Csv: row ", i, " of ", tensor_.size(0));
        return i;
    }

    static std::vector<int64_t> chosen(std::filesystem::path const& path, std::vector<std::string> const& names, std::vector<std::string> const& columns) {
        std::vector<int64_t> place(names.size(), -1);
        std::string listed;
        for (auto const& name : names) listed += ' ' + detail::shown(name);
        for (int64_t next = 0; auto const& name : columns) {
            auto const k = static_cast<size_t>(std::ranges::find(names, name) - names.begin());
            check(std::ranges::count(names, name) == 1 && place[k] < 0, code::data, "data::Csv: ", path, ": column ", detail::shown(name),
                  " must be once in `columns` and once in the file, which has", listed);
            place[k] = next++;
        }
        return place;
    }

    template <class T>
    at::Tensor read(detail::CsvFields& fields, std::vector<std::string> const& names, std::vector<int64_t> const& place) const {
        auto const values = std::make_shared<std::vector<T>>();
        while (!fields.done()) {
            auto const row = values->size();
            values->resize(row + names_.size());
            for (size_t k = 0; k < names.size(); ++k) {
                auto const text = fields.next();
                fields.require(!fields.last() || k + 1 == names.size(), "expected ", names.size(), " fields as in the first line, found the line's end after ",
                               k + 1);
                if (place[k] >= 0 && !detail::read_number(text, (*values)[row + static_cast<size_t>(place[k])]))
                    fields.require(false, "expected a number that ", c10::CppTypeToScalarType<T>::value, " can hold for ", detail::shown(names[k]), ", found ",
                                   detail::shown(text));
            }
            if (!fields.last())
                fields.require(false, "expected the line's end after ", names.size(), " fields as in the first line, found ", detail::shown(fields.next()));
        }
        auto const columns = static_cast<int64_t>(names_.size()), rows = static_cast<int64_t>(values->size()) / columns;
        return at::from_blob(values->data(), {rows, columns}, [values](void*) {}, at::TensorOptions(c10::CppTypeToScalarType<T>::value));
    }

    std::vector<std::string> names_;
    at::Tensor tensor_;
};

}  // namespace accelerate::data
