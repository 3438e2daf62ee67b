#pragma once

#include <accelerate/comm/communicator.hpp>
#include <accelerate/comm/operations.hpp>
#include <accelerate/comm/solo.hpp>

namespace accelerate::comm {

/// The communicator of one process alone: no MPI, no threads. Every operation is what it would be among N ranks for N = 1.
class Self : public Operations<Self> {
public:
    Self() : Operations(solo()) {}
    static Self world() { return {}; }

private:
    friend class Operations<Self>;
    explicit Self(std::shared_ptr<Group> group) : Operations(std::move(group)) {}
};

static_assert(communicator<Self>);

}  // namespace accelerate::comm
