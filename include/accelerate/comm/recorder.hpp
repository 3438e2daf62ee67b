#pragma once

#include <unistd.h>

#include <accelerate/comm/call.hpp>
#include <accelerate/core/log.hpp>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <locale>
#include <mutex>

namespace accelerate::comm {

/// The flight recorder of one rank: its last 256 operations with their times, written as JSON when something goes wrong. Always
/// on; an operation costs some 20 ns. May be written by several threads and dumped by another one while they write.
class Recorder {
public:
    static constexpr uint64_t capacity = 256;

    Recorder(int64_t rank, int64_t size) : rank_(rank), size_(size), directory_(temporary()), tick_(ticks()), time_(std::chrono::steady_clock::now()) {}

    /// One operation from here to the end of the scope; left by an exception it stays open in the record.
    class Entry {
    public:
        Entry(Recorder& recorder, Call const& c, uint64_t number, int64_t group)
            : recorder_(recorder), index_(recorder.next_.fetch_add(1, std::memory_order_relaxed)), slot_(recorder.slots_[index_ % capacity]) {
            set(6, 0);
            set(0, number), set(1, static_cast<uint64_t>(group)), set(2, static_cast<uint64_t>(c.count));
            set(3, static_cast<uint64_t>(c.operation) | static_cast<uint64_t>(c.reduction) << 8 | static_cast<uint64_t>(static_cast<uint8_t>(c.dtype)) << 16 |
                       static_cast<uint64_t>(c.flag) << 24 | static_cast<uint64_t>(c.refused) << 25 | static_cast<uint64_t>(static_cast<uint32_t>(c.root)) << 32);
            set(4, static_cast<uint64_t>(c.dims));
            for (int64_t d = 0; d < std::min(c.dims, Call::max_dims); ++d) set(7 + static_cast<size_t>(d), static_cast<uint64_t>(c.shape[static_cast<size_t>(d)]));
            set(5, ticks());
        }
        void finished() { set(6, ticks()); }
        /// Gives its place to the operation that follows, of which it was a part; stays, finished, where another thread's came between.
        void withdraw() {
            auto next = index_ + 1;
            if (!recorder_.next_.compare_exchange_strong(next, index_, std::memory_order_relaxed)) finished();
        }
        Entry(Entry const&) = delete;
        Entry& operator=(Entry const&) = delete;

    private:
        void set(size_t word, uint64_t value) { slot_[word].store(value, std::memory_order_relaxed); }
        Recorder& recorder_;
        uint64_t index_;
        std::array<std::atomic<uint64_t>, 13>& slot_;
    };

    /// Where dumps go: the system's folder for temporary files unless said otherwise.
    void set_directory(std::filesystem::path directory) {
        std::lock_guard lock(mutex_);
        directory_ = std::move(directory);
    }

    /// Several recorders of one rank, as where a program has several runs, write to files of their own: those after the first add
    /// their number.
    void set_number(int64_t number) { number_ = number; }

    /// `accelerate-flight-<pid>-rank<r>.json`
    std::filesystem::path path() const {
        std::lock_guard lock(mutex_);
        return directory_ / concat("accelerate-flight-", getpid(), "-rank", rank_, number_ == 0 ? "" : concat("-", number_.load()), ".json");
    }

    /// Writes the file and says where it is, on stderr. Gives the path; empty when it could not be written.
    std::filesystem::path dump(std::string_view why) noexcept {
        try {
            auto const path = this->path();
            std::lock_guard lock(mutex_);
            std::ofstream out(path);
            out << json(why);
            if (!out.flush()) return {};
            log::warning(log::From::Everyone, "the last operations of this rank are in ", path.string(), " (", why, ")");
            return path;
        } catch (...) {
            return {};  // a dump must never hide the error that caused it
        }
    }

    /// Operations recorded so far, dumped or not.
    uint64_t count() const { return next_.load(std::memory_order_relaxed); }
    int64_t rank() const { return rank_; }

private:
    /// Where the system's folder for temporary files is not there, the recorder is no reason to fail.
    static std::filesystem::path temporary() {
        std::error_code missing;
        auto folder = std::filesystem::temp_directory_path(missing);
        return missing ? "/tmp" : folder;
    }

    static uint64_t ticks() {
#if defined(__x86_64__) || defined(__i386__)
        return __builtin_ia32_rdtsc();
#else
        return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
#endif
    }

    std::string json(std::string_view why) const {
        auto const us = std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - time_).count();
        auto const scale = us / static_cast<double>(std::max<uint64_t>(1, ticks() - tick_));
        auto const time = [&](uint64_t tick) { return static_cast<int64_t>(static_cast<double>(tick - tick_) * scale); };
        std::ostringstream out;
        out.imbue(std::locale::classic());
        out << "{\"rank\": " << rank_ << ", \"size\": " << size_ << ", \"pid\": " << getpid() << ", \"reason\": \"" << why << "\", \"now_us\": " << static_cast<int64_t>(us)
            << ", \"operations\": [";
        auto const last = next_.load(std::memory_order_relaxed), first = last > capacity ? last - capacity : 0;
        for (auto i = first; i < last; ++i) {
            auto const& slot = slots_[i % capacity];
            auto const get = [&](size_t word) { return slot[word].load(std::memory_order_relaxed); };
            Call c;
            c.count = static_cast<int64_t>(get(2));
            c.operation = static_cast<Operation>(get(3) & 0xFF), c.reduction = static_cast<Reduction>(get(3) >> 8 & 0xFF);
            c.dtype = static_cast<at::ScalarType>(static_cast<int8_t>(get(3) >> 16 & 0xFF));
            c.flag = get(3) >> 24 & 1, c.refused = get(3) >> 25 & 1, c.root = static_cast<int32_t>(get(3) >> 32);
            c.dims = static_cast<int64_t>(get(4));
            out << (i == first ? "\n" : ",\n") << "{\"group\": " << get(1) << ", \"number\": " << get(0) << ", \"operation\": \"" << name(c.operation) << "\", \"dtype\": \""
                << (c.dtype == at::ScalarType::Undefined ? "" : c10::toString(c.dtype)) << "\", \"count\": " << c.count << ", \"shape\": [";
            for (int64_t d = 0; d < std::min(c.dims, Call::max_dims); ++d) {
                c.shape[static_cast<size_t>(d)] = static_cast<int64_t>(get(7 + static_cast<size_t>(d)));
                out << (d ? ", " : "") << c.shape[static_cast<size_t>(d)];
            }
            out << "], \"call\": \"" << describe(c) << "\", \"begin_us\": " << time(get(5)) << ", \"end_us\": ";
            if (get(6) == 0) out << "null}";
            else out << time(get(6)) << "}";
        }
        out << "\n]}\n";
        return out.str();
    }

    std::array<std::array<std::atomic<uint64_t>, 13>, capacity> slots_{};
    std::atomic<uint64_t> next_{0};
    int64_t rank_, size_;
    std::filesystem::path directory_;
    uint64_t tick_;
    std::chrono::steady_clock::time_point time_;
    std::atomic<int64_t> number_{0};
    mutable std::mutex mutex_;
};

}  // namespace accelerate::comm
