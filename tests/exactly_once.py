#!/usr/bin/env python3
"""Epochs that are broken off in one job and taken up in another, through bytes on disk: every sample once.

  exactly_once.py BINARY [--kill] BEFORE AFTER [-- MPIRUN...]
      BINARY         tests/programs/exactly_once.cpp, built
      BEFORE, AFTER  ranks of the two jobs
      --kill         the first job is killed (one process; mpirun would say so in its own way)
      MPIRUN         the words that start jobs, with RANKS in the place of their number
"""
import argparse
import subprocess
import sys
import tempfile

words = sys.argv[1:]
mpirun = words[words.index("--") + 1:] if "--" in words else []
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("binary")
parser.add_argument("--kill", action="store_true")
parser.add_argument("before", type=int)
parser.add_argument("after", type=int)
parser.add_argument("--first", type=int, default=1000)
parser.add_argument("--count", type=int, default=24)
options = parser.parse_args(words[:words.index("--")] if "--" in words else words)

with tempfile.TemporaryDirectory(prefix="accelerate_exactly_once_") as folder:
    for phase, ranks in enumerate((options.before, options.after, 1)):
        start = [word.replace("RANKS", str(ranks)) for word in mpirun] if phase < 2 else []
        command = start + [options.binary, str(phase), folder, str(options.first), str(options.count), str(options.before), str(options.after)]
        kill = options.kill and phase == 0
        code = subprocess.run(command + ["kill"] * kill).returncode
        if code != (-9 if kill else 0):
            sys.exit(f"phase {phase} ended with {code}")
