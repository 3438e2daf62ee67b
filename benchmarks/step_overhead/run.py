#!/usr/bin/env python3
"""Step overhead: hand-written LibTorch loop, ours, raw Python, Python Accelerate, in one run on one libtorch_cpu.

  run.py BINARY [--python PYTHON] [--wait S]

Minima of 40 interleaved rounds; instructions by callgrind. PYTHON has torch and accelerate; without it the Python rows are left out.
Exit code 1 when a goal is missed: 0 ATen calls, 3,000 instructions and 1 us more than the hand-written loop.
"""
import pathlib
import shutil
import sys

sys.dont_write_bytecode = True
here = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))
import machine

options = machine.options(__doc__)
missed = []


def goal(value, most, text):
    if value > most:
        missed.append(f"{text}: {value:+.2f} (goal at most {most})")


calls = machine.rows(machine.run(options.binary, "calls"))[0]
times = machine.rows(machine.run(options.binary, "time"))[0]
extra = calls["ours"] - calls["hand"]
print(f"ATen calls a step        hand {calls['hand']}, ours {calls['ours']}: {extra:+d} (goal 0)")
goal(extra, 0, "ATen calls a step")
if shutil.which("valgrind"):
    counted = {arm: machine.instructions(options.binary, arm) for arm in ("hand", "ours")}
    extra = counted["ours"] - counted["hand"]
    print(f"instructions a step      hand {counted['hand']:.0f}, ours {counted['ours']:.0f}: {extra:+.0f} (goal at most 3000)")
    goal(extra, 3000, "instructions a step")
else:
    print("instructions a step      not counted: valgrind is not installed")
extra = times["ours"] - times["hand"]
print(f"microseconds a step      hand {times['hand']:.2f}, ours {times['ours']:.2f}: {extra:+.2f} (goal at most 1)")
goal(extra, 1, "microseconds a step")
if options.python:
    peers = machine.rows(machine.run(options.python, here / "peer.py"))[0]
    for settings in ("default", "fused"):
        before, after = peers[f"raw, {settings}"], peers[f"Accelerate, {settings}"]
        print(f"Python, {settings:<8}         raw {before:.0f} us, Accelerate {after:.0f} us: {after - before:+.0f} us a step")
sys.exit(machine.verdict(missed))
