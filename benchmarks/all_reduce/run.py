#!/usr/bin/env python3
"""All-reduce of fp32 at 2 ranks with one thread each: ours, MPI_Allreduce, Gloo, and the floor of shared memory.

  run.py BINARY [--python PYTHON] [--repeat N] [--rounds N] [--largest BYTES] [--wait S]

Programs alternate N times; inside each, everything it can do is interleaved. Minima are taken over all rounds of all repeats, the
same for every side; of the medians of the repeats the best counts. PYTHON has torch; without it Gloo is left out. Exit code 1 when
a goal is missed: 5 times Gloo and 0.9 of the floor at every payload (minima), and 10 us for a meeting of the ranks.
"""
import pathlib
import sys

sys.dont_write_bytecode = True
here = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))
import machine

options = machine.options(__doc__, repeat=3, rounds=40, largest=256 << 20)


def by_payload(text):
    """What a program found: {payload: {arm: [median, minimum]}}."""
    return {row.pop("bytes"): row for row in machine.rows(text)}


def add(best, found):
    for payload, arms in found.items():
        for arm, times in arms.items():
            old = best.setdefault(payload, {}).get(arm, times)
            best[payload][arm] = [min(a, b) for a, b in zip(old, times)]


ours, gloo = {}, {}
for _ in range(options.repeat):
    add(ours, by_payload(machine.mpirun(2, options.binary, options.rounds, options.largest)))
    if options.python:
        payloads = [payload for payload in ours if payload]
        add(gloo, by_payload(machine.torchrun(options.python, 2, here / "peer.py", max(5, options.rounds // 4), *payloads)))

meetings = ours.pop(0)
missed = []


def size(payload):
    return f"{payload >> 20} MB" if payload >= 1 << 20 else f"{payload >> 10} KB"


def floor_of(arms, sliced):
    """The variant with the best median; its minimum then comes from as many samples as ours."""
    variants = [arm for arm in arms if arm.startswith("floor") and ("sliced" in arm) == sliced]
    return min(variants, key=lambda arm: arms[arm][0])


def table(title, which):
    columns = ("gather", 32), ("no gather", 20), ("tensor", 6), ("MPI", 6), ("Gloo", 13), ("ours over Gloo best", 25), ("over MPI", 9)
    print(f"\n{title}, GB/s is payload over time")
    print(f"{'':>7}" + "".join(f"  {name:>{width}}" for name, width in columns))
    print(f"{'payload':>7}  {'us':>11} {'GB/s':>6} {'floor':>6} {'ratio':>6}  {'GB/s':>6} {'floor':>6} {'ratio':>6}  {'GB/s':>6}  {'GB/s':>6}  {'default':>6} {'best':>5}  {'gather':>7} {'no gather':>9} {'tensor':>7}")
    for payload, arms in ours.items():
        us = {arm: times[which] for arm, times in arms.items()}
        rate = {arm: payload / time / 1e3 for arm, time in us.items()}
        floor, floor_sliced = (rate[floor_of(arms, sliced)] for sliced in (False, True))
        peers = {arm: payload / times[which] / 1e3 for arm, times in gloo.get(payload, {"default": [float("nan")] * 2}).items()}
        best = max(peers.values())
        ratios = {"gather": rate["ours"] / floor, "no gather": rate["ours sliced"] / floor_sliced}
        over = {"gather": rate["ours"] / best, "no gather": rate["ours sliced"] / best, "tensor": rate["ours tensor"] / best}
        print(f"{size(payload):>7}  {us['ours']:11.2f} {rate['ours']:6.2f} {floor:6.2f} {ratios['gather']:6.2f}  {rate['ours sliced']:6.2f} {floor_sliced:6.2f} {ratios['no gather']:6.2f}"
              f"  {rate['ours tensor']:6.2f}  {rate['MPI']:6.2f}  {peers['default']:7.3f} {best:5.3f}  {over['gather']:7.1f} {over['no gather']:9.1f} {over['tensor']:7.1f}  {rate['ours'] / rate['MPI']:9.1f}")
        if which == 1:
            missed.extend(f"{size(payload)}, {mode}: {ratio:.2f} of the floor (goal 0.9)" for mode, ratio in ratios.items() if ratio < 0.9)
            missed.extend(f"{size(payload)}, {mode}: {ratio:.1f} times Gloo (goal 5)" for mode, ratio in over.items() if ratio < 5)


table("minima", 1)
table("medians", 0)
print(f"\nmeeting of two ranks: barrier {meetings['barrier'][1]:.2f} us (median {meetings['barrier'][0]:.2f}), all_reduce of 4 bytes {meetings['4 bytes'][1]:.2f} ({meetings['4 bytes'][0]:.2f}), "
      f"bare arrival {meetings['arrival'][1]:.2f} ({meetings['arrival'][0]:.2f}); goal 10")
missed.extend(f"{name}: {meetings[name][1]:.1f} us (goal 10)" for name in ("barrier", "4 bytes") if meetings[name][1] > 10)
sys.exit(machine.verdict(missed))
