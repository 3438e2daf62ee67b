#pragma once

#include <accelerate/comm/group.hpp>

namespace accelerate::comm {

/// A group of one rank: what there is without a launcher.
inline std::shared_ptr<Group> solo() {
    Group::Parts parts;
    parts.options = transport_options{.stage_bytes = 4096, .pipe_bytes = 64}.fitted(1);
    parts.memory = Region::heap(Group::bytes(1, parts.options));
    parts.source = std::make_shared<ThreadMemory>();
    parts.family = std::make_shared<Family>(Region::heap(Family::bytes(1)), 0, 0, 1);
    return std::make_shared<Group>(std::move(parts));
}

}  // namespace accelerate::comm
