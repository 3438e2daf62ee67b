#!/usr/bin/env python3
"""The optimizer phase (unscaling, clipping, AdamW, clearing): whole step minus backward alone, nanoseconds a parameter.

  run.py BINARY [--python PYTHON] [--wait S] [--turns N] [--rounds N]

Programs take turns, N of each, each with the median of its rounds; the table has the medians over the turns. PYTHON has torch;
without it the Python columns are left out. Exit code 1 when a goal is missed: at most 0.65 of Python's fused phase, at least 0.9 of a plain loop
that reads and writes the same streams, the norm within 1e-6 of fp64.
"""
import pathlib
import statistics
import sys

sys.dont_write_bytecode = True
here = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))
import machine

options = machine.options(__doc__, turns=3, rounds=9)
missed = []
print(f"{'':<22}{'ours':>9}{'torch::optim':>14}{'default':>9}{'foreach':>9}{'fused':>9}{'stream':>9}   of fused, of stream")
for mode in ("fp32", "fp16"):
    for threads in (1, 2):
        for numel in (1_000_000, 25_000_000, 100_000_000):
            machine.ENVIRONMENT["OMP_NUM_THREADS"] = str(threads)
            times, error = {}, 0.0
            arguments = (numel, threads, mode, options.rounds)
            for _ in range(options.turns):
                rows = machine.rows(machine.run(options.binary, *arguments))
                if options.python:
                    rows += machine.rows(machine.run(options.python, here / "peer.py", *arguments))
                for row in rows:
                    times.setdefault(row["arm"], []).append(row["ns"])
                    error = max(error, row.get("norm_error", 0.0))
            ns = {arm: statistics.median(values) for arm, values in times.items()}
            columns = [ns.get(arm) for arm in ("ours", "torch::optim", "Python, default", "Python, foreach", "Python, fused", "stream")]
            text = f"{mode} {numel // 1_000_000:>3} M, {threads} thread{'s' if threads > 1 else ''}"
            fused = ns["ours"] / ns["Python, fused"] if options.python else None
            limit = ns["stream"] / ns["ours"]
            print(f"{text:<22}" + "".join(f"{'-' if v is None else f'{v:.3f}':>{width}}" for v, width in zip(columns, (9, 14, 9, 9, 9, 9)))
                  + f"   {'-' if fused is None else f'{fused:.2f}'}, {limit:.2f}", flush=True)
            if fused is not None and fused > 0.65:
                missed.append(f"{text}: {fused:.2f} of Python's fused phase (goal at most 0.65)")
            if limit < 0.9:
                missed.append(f"{text}: {limit:.2f} of the stream loop (goal at least 0.9)")
            if error > 1e-6:
                missed.append(f"{text}: norm off by {error:.2g} (goal 1e-6)")
sys.exit(machine.verdict(missed))
