#!/usr/bin/env python3
"""Wrong uses must not compile, and the compiler must say why: tests/misuse/*.cpp, each WRONG_name of theirs.

  misuse.py BUILD [NAME...]   BUILD has compile_commands.json; NAME picks cases, each compiled by itself

A case passes when its compilation fails, the text beside its WRONG_name is printed, and the output has at most 20 lines. The files must
compile as they stand. All files with the same flags are one translation unit, and cases that do not exclude each other and have different
texts are compiled together: then all their texts must be printed, in at most 20 lines a case; where they are not, halves of them are tried.
What passed is not compiled again until a header, a case, the command or the compiler has changed.
"""
import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
MOST_LINES = 20


def state(build):
    """A hash of everything that the result depends on, LibTorch's own headers excepted: their folder is in the command."""
    words, _ = command_of(build)
    found = hashlib.sha256(repr(words).encode())
    found.update(subprocess.run([words[0], "--version"], stdout=subprocess.PIPE, check=True).stdout)
    for file in [pathlib.Path(__file__), *sorted((HERE / "misuse").glob("*.cpp")), *sorted((HERE.parent / "include").rglob("*.hpp"))]:
        found.update(str(file).encode() + file.read_bytes())
    return found.hexdigest()


def command_of(build):
    """How this build compiles over its precompiled header of the whole library, and where."""
    entries = json.loads((build / "compile_commands.json").read_text(encoding="utf-8"))
    entry = next(e for e in entries if pathlib.Path(e["file"]).name == "accelerate_header.cpp")
    words = shlex.split(entry["command"])
    return words[:words.index("-o")], entry["directory"]


def compiler(build):
    """That command, checking the syntax only; and without the precompiled header, which does not go with other macros."""
    subprocess.run(["cmake", "--build", str(build), "--target", "accelerate_header"], stdout=subprocess.DEVNULL, check=True)
    words, directory = command_of(build)
    # CMake's precompiled header is -include FILE for g++, -Xclang -include-pch -Xclang FILE -Xclang -include -Xclang FILE for clang
    plain = [word for at, word in enumerate(words) if word not in ("-Xclang", "-include", "-Winvalid-pch") and words[at - 1] not in ("-Xclang", "-include")]
    return [*words, "-fsyntax-only"], [*plain, "-fsyntax-only"], directory


def flags_of(file):
    """What the file says it is compiled with (`// flags: ...`), which is not what the precompiled header was; else None."""
    own = re.search(r"^// flags: (.*)", file.read_text(encoding="utf-8"), re.M)
    return own[1] if own else None


def unit_of(files):
    """These files as one translation unit: all their headers, then each in a namespace of its own."""
    headers = dict.fromkeys(line for file in files for line in re.findall(r"^#include .*", file.read_text(encoding="utf-8"), re.M))
    return "\n".join([*headers, *(f'namespace {file.stem} {{\n#include "{file}"\n}}' for file in files), ""])


def compile_unit(command, files, *macros):
    over_header, plain, directory = command
    own = flags_of(files[0])
    words = over_header if own is None else [*plain, *own.split()]
    done = subprocess.run([*words, *macros, "-x", "c++", "-"], cwd=directory, input=unit_of(files), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ, LC_ALL="C"))
    return done.returncode, done.stdout


def lacks(command, file):
    """A header that the file says it needs (`// needs: NAME`) and that is not there."""
    needed = re.search(r"^// needs: (\S+)", file.read_text(encoding="utf-8"), re.M)
    _, plain, directory = command
    words = [word for word in plain if word != "-fsyntax-only"]  # clang refuses it beside -E
    if needed and subprocess.run([*words, "-E", "-x", "c++", "-"], cwd=directory, input=f"#include <{needed[1]}>\n", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True).returncode != 0:
        return needed[1]
    return None


def rounds(text):
    """The cases in a text, as {name: text to be printed}, in rounds that can be compiled together."""
    groups = []  # the cases of a group, an #if with its #elifs, exclude each other
    for line in text.splitlines():
        case = re.match(r"#(if|elif).*WRONG_(\w+)\)?  // (.+)", line)
        if not case:
            continue
        if case[1] == "if":
            groups.append([])
        groups[-1].append((case[2], case[3]))
    found = []
    for group in groups:
        free = list(found)
        for name, expected in group:
            into = next((r for r in free if expected not in r.values()), None)
            if into is None:
                found.append(into := {})
            else:
                free.remove(into)
            into[name] = expected
    return found


def judge(command, files, cases):
    """A row of the report for each of these cases, compiled together; in halves where that does not show that all are right."""
    status, text = compile_unit(command, files, *(f"-DWRONG_{name}" for name in cases))
    lines = len(text.splitlines())
    flat = " ".join(text.split())
    missing = [expected for expected in cases.values() if expected not in flat]
    problems = []
    if status == 0:
        problems.append("it compiles")
    elif missing:
        problems.append(f"the text is missing: {missing[0]}")
    if lines > MOST_LINES * len(cases):
        problems.append(f"{lines} lines")
    if problems and len(cases) > 1:
        pairs, half = list(cases.items()), len(cases) // 2
        return [row for part in (pairs[:half], pairs[half:]) for row in judge(command, files, dict(part))]
    beside = f", {len(cases)} together" if len(cases) > 1 else ""
    return [(f"{name:<34} {lines / len(cases):4.0f} lines{beside}  {'; '.join(problems) or 'ok'}", bool(problems), text) for name in cases]


def main():
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        print(__doc__.strip())
        return 0 if sys.argv[1:2] in (["-h"], ["--help"]) else 2
    build, wanted, failed, cases = pathlib.Path(sys.argv[1]).absolute(), set(sys.argv[2:]), 0, 0
    passed = build / "tests" / "misuse_passed.txt"
    if not wanted and passed.is_file() and passed.read_text(encoding="utf-8") == state(build):
        print("nothing has changed since all of it passed")
        return 0
    command = compiler(build)
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        units, right, wrong = {}, {}, []
        for file in sorted((HERE / "misuse").glob("*.cpp")):
            if missing := lacks(command, file):
                print(f"{file.name} is left out: {missing} is not there")
            else:
                units.setdefault(file.name if wanted else flags_of(file), []).append(file)
        for files in units.values():
            together = rounds("\n".join(file.read_text(encoding="utf-8") for file in files))
            if wanted:
                together = [{name: expected} for r in together for name, expected in r.items() if name in wanted]
            else:
                right[", ".join(file.name for file in files)] = pool.submit(compile_unit, command, files)
            wrong += [pool.submit(judge, command, files, r) for r in together]
        for names, future in right.items():
            status, text = future.result()
            failed += status != 0 or bool(text)
            print(f"as it stands: {names}: {'compiles' if status == 0 and not text else text}", flush=True)
        for future in wrong:
            for line, problem, text in future.result():
                cases += 1
                failed += problem
                print(line, flush=True)
                if problem or wanted:
                    print(text)
    print(f"{len(units)} translation units, {cases} wrong uses, {failed} not as they should be")
    if not wanted:
        passed.unlink(missing_ok=True)
        if not failed:
            passed.write_text(state(build), encoding="utf-8")
    return 1 if failed else 0


sys.exit(main())
