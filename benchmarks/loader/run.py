#!/usr/bin/env python3
"""Loaders: samples a second beside Python's and beside a bare gather-memcpy, and the time to resume.

  run.py BINARY [--python PYTHON] [--wait S]

Shuffled batches of 64 out of 1 GB, each owning its memory; the best of several interleaved rounds. PYTHON has torch, accelerate and
torchdata; without it the Python rows are left out. Exit code 1 when a goal is missed: images 3 times Accelerate's default and 1.2 times
its best, token rows 10 times its default, both 0.6 of the memcpy, dispatched on two ranks 10 times its dispatcher, two workers 1.7
times one, resume 1 ms at every position with a state of 64 bytes, 1 MB of heap for the order of 10^9 samples.
"""
import pathlib
import sys

sys.dont_write_bytecode = True
here = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))
import machine

options = machine.options(__doc__)
missed = []


def goal(value, least, text):
    print(f"    {text}: {value:.2f} (goal {least})")
    if value < least:
        missed.append(f"{text}: {value:.2f} (goal {least})")


def show(rates):
    for arm, rate in sorted(rates.items(), key=lambda item: -item[1]):
        print(f"  {rate / 1e3:10.0f}k samples/s  {arm}")


def measured(kind, ranks):
    rates = {}
    for _ in range(2):  # A B A B
        ours = machine.run(options.binary, kind) if ranks == 1 else machine.mpirun(ranks, options.binary, "ranks", kind)
        texts = [ours]
        if options.python:
            texts.append(machine.run(options.python, here / "peer.py", kind, quiet=True) if ranks == 1 else machine.torchrun(options.python, ranks, here / "peer.py", kind))
        for text in texts:
            for arm, rate in machine.rows(text)[0]["rates"].items():
                rates[arm] = max(rates.get(arm, 0), rate)
    print(f"\n{kind}, {ranks} rank{'s' * (ranks > 1)}")
    show(rates)
    return rates


for kind, default, best in (("images", 3, 1.2), ("tokens", 10, None)):
    one = measured(kind, 1)
    ours = max(rate for arm, rate in one.items() if arm.startswith("ours"))
    goal(one["ours"] / one["copy"], 0.6, f"{kind}: ours / memcpy")
    if options.python:
        goal(ours / one["Accelerate"], default, f"{kind}: ours / Accelerate's default")
        if best:
            goal(ours / max(rate for arm, rate in one.items() if arm.startswith("Accelerate")), best, f"{kind}: ours / Accelerate's best")
    two = measured(kind, 2)
    if options.python:
        goal(two["ours"] / two["Accelerate"], default, f"{kind}, 2 ranks: ours / Accelerate's default")
        goal(two["ours, dispatched"] / two["Accelerate, dispatcher"], 10, f"{kind}, 2 ranks: dispatched / Accelerate's dispatcher")

rates = machine.rows(machine.run(options.binary, "workers"))[0]["workers"]
print("\na transform of 200 us a sample")
show({f"{n} workers": rate for n, rate in rates.items()})
goal(rates["2"] / rates["1"], 1.7, "two workers / one")

print("\nresume, to the next batch")
for row in machine.rows(machine.run(options.binary, "resume")):
    if "resume" in row:
        print(f"  {row['resume']:>11} batches: {row['us']:.1f} us, state {row['state_bytes']} bytes, next batch {'equal' if row['equal'] else 'DIFFERS'}")
        if row["us"] > 1000 or row["state_bytes"] > 64 or not row["equal"]:
            missed.append(f"resume at {row['resume']}")
    elif "heap_of_1e9" in row:
        print(f"  heap while 10^9 samples are read in keyed order: {row['heap_of_1e9']} bytes at most")
        if row["heap_of_1e9"] > 1 << 20:
            missed.append("heap of the order of 10^9 samples")
    else:
        print(f"  a table of {row['table']} samples (order::Torch): {row['ms']:.0f} ms")
if options.python:
    for row in machine.rows(machine.run(options.python, here / "peer.py", "resume", quiet=True)):
        print(f"  {row['resume']:>11} batches: skip_first_batches {row['skip_first_batches_ms']:.0f} ms, StatefulDataLoader {row['StatefulDataLoader_ms']:.0f} ms")
sys.exit(machine.verdict(missed))
