#pragma once

#include <cstdint>
#include <exception>
#include <utility>

namespace accelerate::comm {

/// A `background_worker` that has no background: a job is done while it is submitted. For communicators that block and must see the
/// streams of the thread that calls them.
class InlineWorker {
public:
    class Handle {
    public:
        /// Throws what the job threw (each time).
        void wait() const {
            if (error_) std::rethrow_exception(error_);
        }
        bool finished() const { return true; }

    private:
        friend class InlineWorker;
        std::exception_ptr error_;
    };

    template <class Work>
    Handle submit(Work&& work) {
        Handle handle;
        try {
            std::forward<Work>(work)();
        } catch (...) {
            handle.error_ = std::current_exception();
        }
        return handle;
    }

    static bool pays(int64_t /*threads*/) { return false; }
};

}  // namespace accelerate::comm
