#!/usr/bin/env python3
"""A DDP step at 2 ranks with one thread each, ours against Python Accelerate with Gloo, from 0.1 to 50 M parameters.

  run.py BINARY [--python PYTHON] [--repeat N] [--wait S]

Programs alternate N times; inside each, its arms are interleaved. Minima are taken over all rounds of all repeats, of the medians
the best counts, the same for every side. PYTHON has torch and accelerate; without it Gloo is left out. Exit code 1 when a goal is
missed (minima): faster than Gloo at every size; at 26 M parameters at most 1.2 times two processes that do not talk, 1.1 times
without the gather pass; with overlap forced on the first reduction begins in the first half of backward; 4 ranks on 2 cores take
at most 2.3 times as long as 2 with the same work for each.
"""
import pathlib
import re
import sys

sys.dont_write_bytecode = True
here = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))
import machine

options = machine.options(__doc__, repeat=3)
arms = {"silent": "silent", "ddp": "ddp", "sliced": "no gather", "overlapped": "overlap", "default": "Gloo", "best": "Gloo best"}
missed = []


def add(best, text):
    row = machine.rows(text)[-1]
    for arm, times in row.items():
        if isinstance(times, list):
            best[arm] = [min(a, b) for a, b in zip(best.get(arm, times), times)]
    return row


def goal(holds, text):
    if not holds:
        missed.append(text)


print(f"milliseconds a step, minimum (median)\n{'parameters':>10}" + "".join(f"{title:>17}" for title in arms.values()) + "   ddp/silent  no gather/silent  ddp/Gloo best")
two, rounds_of = {}, {141: 40, 447: 40, 1000: 20, 2280: 25, 3162: 12}
for width, rounds in rounds_of.items():
    best = two[width] = {}
    for _ in range(options.repeat):
        parameters = add(best, machine.mpirun(2, options.binary, width, rounds))["parameters"]
        if options.python:
            add(best, machine.torchrun(options.python, 2, here / "peer.py", width, rounds))
    nothing = [float("nan")] * 2
    least = {arm: best.get(arm, nothing)[1] for arm in arms}
    ratios = least["ddp"] / least["silent"], least["sliced"] / least["silent"], least["ddp"] / min(least["default"], least["best"])
    print(f"{parameters:10d}" + "".join(f"{best.get(arm, nothing)[1]:8.2f} ({best.get(arm, nothing)[0]:6.2f})" for arm in arms) + f"   {ratios[0]:10.2f}  {ratios[1]:16.2f}  {ratios[2]:13.2f}", flush=True)
    goal(not options.python or ratios[2] < 1, f"{parameters} parameters: {ratios[2]:.2f} of the time with Gloo (goal below 1)")
    if width == 2280:
        goal(ratios[0] <= 1.2, f"{parameters} parameters: {ratios[0]:.2f} times processes that do not talk (goal 1.2)")
        goal(ratios[1] <= 1.1, f"{parameters} parameters without the gather pass: {ratios[1]:.2f} times processes that do not talk (goal 1.1)")

print("\n4 ranks against 2 on the same cores, same work for each rank, by minima")
for width in (447, 1000, 2280):
    four = {}
    for _ in range(options.repeat):
        add(four, machine.mpirun(4, options.binary, width, rounds_of[width]))
    ratios = {arm: four[arm][1] / two[width][arm][1] for arm in ("silent", "ddp", "sliced")}
    print(f"  {5 * width * width:9d} parameters: ddp {four['ddp'][1]:7.2f} ms, {ratios['ddp']:.2f} times; no gather {ratios['sliced']:.2f}; processes that do not talk {ratios['silent']:.2f}")
    if width == 1000:
        goal(ratios["ddp"] <= 2.3, f"4 ranks take {ratios['ddp']:.2f} times as long as 2 (goal 2.3)")

text = machine.mpirun(2, options.binary, 2280, "timeline")
print(f"\none step of 26 M parameters with overlap forced on\n{text}")
first = int(re.search(r"after (\d+) %", text)[1])
goal(first < 50, f"the first reduction begins after {first} % of backward (goal below 50)")
sys.exit(machine.verdict(missed))
