#!/usr/bin/env python3
"""Step overhead: hand-written LibTorch loop, ours, raw Python, Python Accelerate, in one run on one libtorch_cpu.

  run.py BINARY [--python PYTHON]   PYTHON has torch and accelerate; without it the Python rows are left out
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("binary")
parser.add_argument("--python")
options = parser.parse_args()
environment = dict(os.environ, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive")


def output(*command):
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def instructions(arm, steps):
    """Instructions of the whole process, by callgrind: repeatable, whatever else the machine does."""
    text = subprocess.run(["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", options.binary, "loop", arm, str(steps)],
                          env=environment, check=True, capture_output=True, text=True).stderr
    return int(re.search(r"Collected : (\d+)", text).group(1))


calls = json.loads(output(options.binary, "calls"))
times = json.loads(output(options.binary, "time"))
print(f"ATen calls a step        hand {calls['hand']}, ours {calls['ours']}: {calls['ours'] - calls['hand']} extra (goal 0)")
if shutil.which("valgrind"):
    counted = {arm: (instructions(arm, 220) - instructions(arm, 20)) / 200 for arm in ("hand", "ours")}
    extra = counted["ours"] - counted["hand"]
    print(f"instructions a step      hand {counted['hand']:.0f}, ours {counted['ours']:.0f}: {extra:+.0f} (goal at most 3000)")
else:
    extra = None
    print("instructions a step      not counted: valgrind is not installed")
print(f"microseconds a step      hand {times['hand']:.2f}, ours {times['ours']:.2f}: {times['ours'] - times['hand']:+.2f} (goal at most 1)")
if options.python:
    peers = json.loads(output(options.python, os.path.join(os.path.dirname(os.path.abspath(__file__)), "peer.py")))
    for settings in ("default", "fused"):
        before, after = peers[f"raw, {settings}"], peers[f"Accelerate, {settings}"]
        print(f"Python, {settings:<8}         raw {before:.0f} us, Accelerate {after:.0f} us: {after - before:+.0f} us a step")
sys.exit(0 if calls["ours"] <= calls["hand"] and (extra is None or extra <= 3000) else 1)
