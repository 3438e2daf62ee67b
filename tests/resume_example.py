#!/usr/bin/env python3
"""Runs examples/resume_mid_epoch until it is done, each time on another number of ranks: every epoch has every sample once.

  resume_example.py BINARY [MPIRUN...]     MPIRUN: the words that start two ranks
"""
import collections
import os
import re
import subprocess
import sys
import tempfile

binary, mpirun = sys.argv[1], sys.argv[2:]
seen = collections.defaultdict(list)
with tempfile.TemporaryDirectory(prefix="accelerate_resume_") as folder:
    for turn in range(20):
        command = [*(mpirun if turn % 2 else []), binary, os.path.join(folder, "state.json")]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for epoch, samples in re.findall(r"epoch (\d+) samples \[(.*)\]", text):
            seen[int(epoch)] += [int(word) for word in samples.split(",")]
        if "done" in text:
            break
print(f"{turn + 1} runs; samples of each epoch: {[len(samples) for samples in seen.values()]}")
wrong = [epoch for epoch in (0, 1) if sorted(seen[epoch]) != list(range(100))]
sys.exit(f"epochs {wrong} have not every sample once" if wrong else 0)
