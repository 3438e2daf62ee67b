#!/usr/bin/env python3
"""Kills examples/resume_training at random moments until it is done, again and again: what it goes on from is never older than the last
checkpoint that it has reported, and it ends as a run that was never killed.

  killed.py kill TIMES BINARY [MPIRUN...]     SIGKILL; at least so many; MPIRUN: the words that start two ranks
  killed.py kill_asynchronous TIMES BINARY [MPIRUN...]     the same of a run whose checkpoints are written by threads
  killed.py stop TIMES BINARY [MPIRUN...]     SIGTERM, SIGINT or SIGUSR1 to one rank, or SIGUSR1 to mpirun: all save behind the same step, and the
                                              exit code is 75
"""
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time

mode, kills, binary, mpirun = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:]
arguments = ["asynchronous"] if mode == "kill_asynchronous" else []
signals = [signal.SIGKILL] if mode != "stop" else [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
command = [*mpirun, binary]
random.seed(20)


class Run:
    """The program at work in this folder, the lines it has printed, and when."""

    def __init__(self, folder):
        self.lines, self.times, self.speaks = [], [], threading.Event()
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen([*command, folder, *arguments], stdout=subprocess.PIPE, stderr=self.errors, text=True, start_new_session=True)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            self.lines.append(line)
            self.times.append(time.monotonic())
            self.speaks.set()
        self.speaks.set()

    def end(self):
        """Waits until it is gone, with all that could still print; what it has printed, and on stderr."""
        self.process.wait(timeout=100)
        self.reader.join(timeout=100)
        if self.reader.is_alive():
            sys.exit("a rank outlived its run")
        with self.errors:
            self.errors.seek(0)
            return "".join(self.lines), self.errors.read()


def steps_saved(out):
    return [int(step) for step in re.findall(r"saved step (\d+)", out)]


def whole(folder):
    """The loss of a run that nobody kills, its last step, and the seconds from its first line to its last."""
    run = Run(folder)
    out, err = run.end()
    done = re.search(r"done, loss (\S+)", out)
    if run.process.returncode != 0 or not done:
        sys.exit(f"a run that nobody killed ended with exit code {run.process.returncode}\n{err[-2000:]}")
    return done[1], max(steps_saved(out), default=0), run.times[-1] - run.times[0]


def ranks_of(process):
    """The processes that run the binary below a launcher."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as stat:
                    parent = int(stat.read().rsplit(")", 1)[1].split()[1])
                if parent == process.pid and os.readlink(f"/proc/{entry}/exe") == os.path.realpath(binary):
                    found.append(int(entry))
            except OSError:
                pass
    return found or [process.pid]


with tempfile.TemporaryDirectory(prefix="accelerate_killed_") as folder:
    expected, steps, seconds = whole(os.path.join(folder, "reference"))
    killed = killed_while_saving = runs = 0
    again, *_ = whole(os.path.join(folder, "reference"))  # as one that was killed behind its last step
    wrong = [] if again == expected else [f"run again behind its last step: loss {again}, expected {expected}"]
    while killed < kills and not wrong:
        runs += 1
        where = os.path.join(folder, f"run{runs}")
        reported = 0
        for attempt in range(40):
            run = Run(where)
            process = run.process
            last = attempt == 39 or killed >= kills
            if not last:
                if random.random() < 0.9:
                    run.speaks.wait(timeout=100)
                time.sleep(random.uniform(0, seconds * (1 - reported / steps)))  # it goes on behind `reported`
                if process.poll() is None:
                    checkpoints = os.path.join(where, "checkpoints")
                    saving = os.path.isdir(checkpoints) and any(name.startswith(".tmp~") for name in os.listdir(checkpoints))
                    victim = random.choice(ranks_of(process))
                    try:
                        if mode == "stop" and mpirun and random.random() < 0.25:
                            os.kill(process.pid, signal.SIGUSR1)  # which mpirun forwards to all ranks
                        else:
                            os.kill(victim, random.choice(signals))
                        killed += mode != "stop"
                        killed_while_saving += saving
                    except ProcessLookupError:
                        pass
            begin = time.monotonic()
            out, err = run.end()
            if not last and time.monotonic() - begin > 10:
                wrong.append("the other rank did not notice for 10 s")
            if "asked to stop; run it again" in err:  # others came before or behind the loop
                killed += 1
                stops = set(re.findall(r"asked to stop; run it again to go on from .*?(checkpoint_\d+)", err))
                if process.returncode != 75 or len(stops) != 1:
                    wrong.append(f"exit code {process.returncode}, checkpoints {stops}\n{err[-2000:]}")
            went_on = re.search(r"goes on behind step (\d+)", out)
            trained = went_on or "saved step" in out or "done" in out  # else it was killed before it came to that
            if reported and trained and (not went_on or int(went_on[1]) < reported):
                wrong.append(f"run {runs}: step {reported} was reported as saved, but it went on {went_on[0] if went_on else 'from nothing'}\n{err[-2000:]}")
            reported = max([reported, *steps_saved(out)])
            done = re.search(r"done, loss (\S+)", out)
            if done:
                if done[1] != expected:
                    wrong.append(f"run {runs}: loss {done[1]}, expected {expected}")
                break
        else:
            wrong.append(f"run {runs} never ended\n{err[-2000:]}")
print(f"{killed} times {mode} in {runs} runs ({killed_while_saving} while a checkpoint was written): {'nothing lost, every run ends as one that was never killed' if not wrong else wrong}")
sys.exit(1 if wrong else 0)
