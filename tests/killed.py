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


class Run:
    """The program at work in this folder, the lines it has printed, and when."""

    def __init__(self, folder):
        self.lines, self.times, self.speaks = [], [], threading.Event()
        self.errors = tempfile.TemporaryFile("w+")
        environment = dict(os.environ, TMPDIR=os.path.dirname(folder))  # ranks that miss a killed one write their last operations there
        self.process = subprocess.Popen([*command, folder, *arguments], stdout=subprocess.PIPE, stderr=self.errors, text=True, start_new_session=True, env=environment)
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


class Tally:
    """What has happened in all runs so far."""

    def __init__(self):
        self.killed = self.killed_while_saving = self.runs = 0
        self.wrong = []
        self.lock = threading.Lock()

    def enough(self):
        return self.killed >= kills or self.wrong

    def add(self, **counts):
        with self.lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)
            return self.runs


def strike(run, chance):
    """A signal to one of its processes, if there still is one."""
    try:
        if mode == "stop" and mpirun and chance.random() < 0.25:
            os.kill(run.process.pid, signal.SIGUSR1)  # which mpirun forwards to all ranks
        else:
            os.kill(chance.choice(ranks_of(run.process)), chance.choice(signals))
    except ProcessLookupError:
        return False
    return True


def again_and_again(where, name, tally, chance):
    """One run, killed and started again until it is done; what is wrong with it."""
    reported = 0
    for attempt in range(40):
        run = Run(where)
        last = attempt == 39 or tally.enough()
        if not last:
            if chance.random() < 0.9:
                run.speaks.wait(timeout=100)
            time.sleep(chance.uniform(0, seconds * (1 - reported / steps)))  # it goes on behind `reported`
            if run.process.poll() is None:
                checkpoints = os.path.join(where, "checkpoints")
                saving = os.path.isdir(checkpoints) and any(entry.startswith(".tmp~") for entry in os.listdir(checkpoints))
                if strike(run, chance) and mode != "stop":
                    tally.add(killed=1, killed_while_saving=saving)
        begin = time.monotonic()
        out, err = run.end()
        if not last and time.monotonic() - begin > 10:
            return ["the other rank did not notice for 10 s"]
        if "asked to stop; run it again" in err:  # others came before or behind the loop
            tally.add(killed=1)
            stops = set(re.findall(r"asked to stop; run it again to go on from .*?(checkpoint_\d+)", err))
            if run.process.returncode != 75 or len(stops) != 1:
                return [f"exit code {run.process.returncode}, checkpoints {stops}\n{err[-2000:]}"]
        went_on = re.search(r"goes on behind step (\d+)", out)
        trained = went_on or "saved step" in out or "done" in out  # else it was killed before it came to that
        if reported and trained and (not went_on or int(went_on[1]) < reported):
            return [f"{name}: step {reported} was reported as saved, but it went on {went_on[0] if went_on else 'from nothing'}\n{err[-2000:]}"]
        reported = max([reported, *steps_saved(out)])
        done = re.search(r"done, loss (\S+)", out)
        if done:
            return [] if done[1] == expected else [f"{name}: loss {done[1]}, expected {expected}"]
    return [f"{name} never ended\n{err[-2000:]}"]


def lane(number, tally, folder):
    chance = random.Random(20 + number)
    while not tally.enough():
        name = f"run {tally.add(runs=1)}"
        try:
            wrong = again_and_again(os.path.join(folder, name), name, tally, chance)
        except BaseException as e:  # which ends this thread alone
            wrong = [f"{name}: {e!r}"]
        tally.add(wrong=wrong)


with tempfile.TemporaryDirectory(prefix="accelerate_killed_") as folder:
    expected, steps, seconds = whole(os.path.join(folder, "reference"))
    again, *_ = whole(os.path.join(folder, "reference"))  # as one that was killed behind its last step
    tally = Tally()
    if again != expected:
        tally.add(wrong=[f"run again behind its last step: loss {again}, expected {expected}"])
    # Side by side: most of a run that is killed is waiting for an mpirun to be gone.
    lanes = [threading.Thread(target=lane, args=(number, tally, folder)) for number in range(4)]
    for thread in lanes:
        thread.start()
    for thread in lanes:
        thread.join()
print(f"{tally.killed} times {mode} in {tally.runs} runs ({tally.killed_while_saving} while a checkpoint was written): {'nothing lost, every run ends as one that was never killed' if not tally.wrong else tally.wrong}")
sys.exit(1 if tally.wrong else 0)
