#pragma once

#include <accelerate/core/error.hpp>
#include <accelerate/partial_state.hpp>
#include <filesystem>
#include <string>

/// A folder that all ranks share, empty at first and gone in the end.
class FolderOfRanks {
    accelerate::PartialState<> ranks_;  // first, since the path asks it

public:
    explicit FolderOfRanks(std::string const& name) : path(std::filesystem::temp_directory_path() / accelerate::concat("accelerate_test_", name, "_", ranks_.num_processes())) { clear(); }
    ~FolderOfRanks() { clear(); }
    FolderOfRanks(FolderOfRanks const&) = delete;
    FolderOfRanks& operator=(FolderOfRanks const&) = delete;
    std::filesystem::path operator/(std::string const& name) const { return path / name; }

    std::filesystem::path const path;

private:
    void clear() {
        ranks_.wait_for_everyone();
        if (ranks_.is_main_process()) std::filesystem::remove_all(path);
        ranks_.wait_for_everyone();
    }
};
