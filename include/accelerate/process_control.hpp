#pragma once

#include <ATen/ops/full.h>

#include <accelerate/comm/communicator.hpp>
#include <accelerate/comm/split_between.hpp>
#include <accelerate/core/log.hpp>
#include <cctype>
#include <exception>
#include <iostream>
#include <optional>
#include <sstream>
#include <type_traits>

namespace accelerate {

/// While alive, it is the turn of some ranks: the others wait in its constructor until those have left theirs. Needs every rank.
template <comm::communicator Comm>
class [[nodiscard("keep the scope alive: auto first = accelerator.main_process_first();")]] ProcessFirst {
public:
    ProcessFirst(Comm comm, bool first) : comm_(std::move(comm)), first_(first) {
        if (!first_) comm_.barrier();
    }
    ~ProcessFirst() {
        // On the way out of an exception the others learn of it as they learn of any rank that is gone.
        if (!first_ || std::uncaught_exceptions() > exceptions_) return;
        try {
            comm_.barrier();
        } catch (std::exception const& e) {
            log::warning(log::From::Everyone, "main_process_first: ", e.what());  // a destructor must not throw; the next collective will
        }
    }
    ProcessFirst(ProcessFirst const&) = delete;
    ProcessFirst& operator=(ProcessFirst const&) = delete;

private:
    Comm comm_;
    bool first_;
    int exceptions_ = std::uncaught_exceptions();
};

/// Python's name for a run of `size` processes on devices of that name.
inline std::string distributed_type(std::string_view device, int64_t size) {
    if (size == 1) return "NO";
    if (device == "cuda") return "MULTI_GPU";
    std::string type = "MULTI_";
    for (auto const letter : device) type += static_cast<char>(std::toupper(static_cast<unsigned char>(letter)));
    return type;
}

/// Who a process is among the ranks, and what only some of them do: the part of Python's `Accelerator` and `PartialState` that has
/// nothing to do with training. `Derived` has `comm()`.
template <class Derived>
class ProcessControl {
public:
    int64_t num_processes() const { return ranks().size(); }
    int64_t process_index() const { return ranks().rank(); }
    int64_t local_process_index() const { return ranks().local_rank(); }
    bool is_main_process() const { return process_index() == 0; }
    bool is_local_main_process() const { return local_process_index() == 0; }
    bool is_last_process() const { return process_index() == num_processes() - 1; }
    bool use_distributed() const { return num_processes() > 1; }

    void wait_for_everyone() { own().comm().barrier(); }

    /// `auto first = accelerator.main_process_first();`: until the end of the scope the main process goes ahead and the others wait.
    auto main_process_first() { return ProcessFirst(own().comm(), is_main_process()); }
    /// The same with the main process of each node.
    auto local_main_process_first() { return ProcessFirst(own().comm(), is_local_main_process()); }

    /// Calls `f` on the main process alone; what it returns is there an optional with a value, elsewhere an empty one.
    template <class F>
    auto on_main_process(F&& f) { return only(is_main_process(), std::forward<F>(f)); }
    template <class F>
    auto on_local_main_process(F&& f) { return only(is_local_main_process(), std::forward<F>(f)); }
    template <class F>
    auto on_last_process(F&& f) { return only(is_last_process(), std::forward<F>(f)); }
    /// On the process of that index alone. Error E_CONFIG, on every rank, where there is none.
    template <class F>
    auto on_process(int64_t process_index, F&& f) {
        check(process_index >= 0 && process_index < num_processes(), code::config, "on_process(", process_index, "): there are ", num_processes(), " processes");
        return only(this->process_index() == process_index, std::forward<F>(f));
    }
    /// On the processes of that index within their node; on none where no node has so many. Error E_CONFIG for what can be no index.
    template <class F>
    auto on_local_process(int64_t local_process_index, F&& f) {
        check(local_process_index >= 0 && local_process_index < num_processes(), code::config, "on_local_process(", local_process_index, "): there are ", num_processes(), " processes");
        return only(this->local_process_index() == local_process_index, std::forward<F>(f));
    }

    /// This rank's part of a vector, of a tensor's rows, or of every value in a map: see `comm::split_between`.
    template <class Inputs>
    Inputs split_between_processes(Inputs const& inputs, bool apply_padding = false) const {
        return comm::split_between(inputs, process_index(), num_processes(), apply_padding);
    }

    /// Sets this rank's flag; `check_trigger`, collective, says whether any rank has set its own since the last call, and clears all.
    void set_trigger() { triggered_ = true; }
    bool check_trigger() {
        auto any = at::full({}, std::exchange(triggered_, false) ? 1 : 0, at::kInt);
        own().comm().all_reduce(any, comm::Reduction::Max);
        return any.template item<int>() != 0;
    }

    /// Every rank's bytes, in their order, on every rank.
    std::vector<std::string> gather_object(std::string_view bytes) { return own().comm().all_gather_bytes(bytes); }
    /// Every rank gets the bytes of rank `from`, in place.
    void broadcast_object(std::string& bytes, int64_t from = 0) { own().comm().broadcast_bytes(bytes, from); }

    /// One line on stdout, from the main process only; arguments are separated by spaces as Python's `print` does.
    template <class... Parts>
    void print(Parts const&... parts) const {
        if (!is_main_process()) return;
        std::ostringstream line;
        char const* separator = "";
        ((line << std::exchange(separator, " ") << parts), ...);
        std::cout << line.str() << std::endl;
    }

private:
    Derived& own() { return static_cast<Derived&>(*this); }
    auto const& ranks() const { return static_cast<Derived const&>(*this).comm(); }

    template <class F>
    static auto only(bool here, F&& f) {
        using R = std::decay_t<std::invoke_result_t<F>>;
        if constexpr (std::is_void_v<R>) {
            if (here) std::forward<F>(f)();
        } else {
            return here ? std::optional<R>(std::forward<F>(f)()) : std::nullopt;
        }
    }

    bool triggered_ = false;
};

}  // namespace accelerate
