#!/usr/bin/env python3
"""Fails when a policy of the library is missing from tests/support/policies.hpp: then neither README's table nor the tests over all policies know it.

  policies_listed.py INCLUDE LIST [STAMP]   the folder include/accelerate, the list, a file to touch when all are listed
"""
import pathlib
import re
import sys

# The folders of the four policies and the namespace of each; a policy is what has a `name` there.
FAMILIES = {"device": "device", "precision": "precision", "sharding": "sharding", "data": "loader"}


def policies(include):
    for folder, namespace in FAMILIES.items():
        for header in sorted((include / folder).glob("*.hpp")):
            inside, kind = "", ""
            for line in header.read_text().splitlines():
                if found := re.match(r"namespace (?:accelerate::)?(\w+)(?:::\w+)* \{", line):
                    inside = found[1]
                if found := re.match(r"\s*(?:struct|class) (\w+)", line):
                    kind = found[1]
                if "static constexpr char const* name =" in line and inside == namespace:
                    yield f"{namespace}::{kind}"


def main():
    include, listed = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    text = listed.read_text()
    found = list(policies(include))
    if len(found) < 10:
        sys.exit(f"policies_listed: found only {found} in {include}; has the way in which policies are written changed?")
    # BasicCuda is listed as Cuda, which has its communicator.
    missing = [name for name in found if not re.search(rf"acc::{name.replace('BasicCuda', '(?:Basic)?Cuda')}\b", text)]
    if missing:
        sys.exit(f"policies_listed: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not in {listed}; add a line for each, so that the README's table and the tests over all policies know it")
    if len(sys.argv) > 3:
        pathlib.Path(sys.argv[3]).touch()


main()
