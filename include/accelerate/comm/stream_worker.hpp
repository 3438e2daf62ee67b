#pragma once

#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <exception>
#include <memory>
#include <optional>
#include <utility>

namespace accelerate::comm {

/// The `background_worker` of a device with streams: a job is called at once and what it enqueues goes to a stream of its own, behind
/// what the submitting thread's current stream holds by then. `wait` makes the current stream wait, not the thread.
///
/// Memory: what a job allocates belongs to the worker's stream and may be used and dropped after `wait`, since later jobs come
/// behind the stream that used it. What a job reads must live until `wait`, or be recorded on the job's stream, as a communicator
/// does with the tensors that it is given.
template <at::DeviceType Type>
class StreamWorker {
    struct Job {
        explicit Job(c10::Stream const& from) : device(from.device()) {}
        at::Device device;
        c10::Event done{Type};
        std::exception_ptr error;
    };

public:
    class Handle {
    public:
        /// What the current stream is given from now on comes behind the job. Throws what the job threw (each time).
        void wait() const {
            if (!job_) return;
            job_->done.block(c10::impl::VirtualGuardImpl(Type).getStream(job_->device));
            if (job_->error) std::rethrow_exception(job_->error);
        }
        bool finished() const { return !job_ || job_->done.query(); }

    private:
        friend class StreamWorker;
        std::shared_ptr<Job> job_;
    };

    template <class Work>
    Handle submit(Work&& work) {
        c10::impl::VirtualGuardImpl const guard(Type);
        auto const current = guard.getStream(guard.getDevice());
        if (!own_ || own_->device() != current.device()) own_ = guard.getStreamFromGlobalPool(current.device(), true);
        c10::Event given(Type);
        given.record(current);
        given.block(*own_);
        Handle handle;
        handle.job_ = std::make_shared<Job>(*own_);
        {
            c10::StreamGuard const side(*own_);
            try {
                std::forward<Work>(work)();
            } catch (...) {
                handle.job_->error = std::current_exception();
            }
        }
        handle.job_->done.record(*own_);
        return handle;
    }

    static bool pays(int64_t /*threads*/) { return true; }

private:
    std::optional<c10::Stream> own_;
};

}  // namespace accelerate::comm
