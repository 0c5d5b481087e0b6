"""What Windows has not is not asked for: modules and calls of POSIX alone, in a process that lacks them."""

import ast
import errno
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import steersman
from steersman.files import file_name
from steersman.names import split_options

SOURCE = Path(steersman.__file__).parent
MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
CALLS = {
    "os": {"fork", "forkpty", "getuid", "geteuid", "killpg", "mkfifo", "nice", "setsid", "sysconf", "uname", "waitpid"},
    "signal": {"SIGALRM", "SIGHUP", "SIGKILL", "SIGUSR1", "alarm", "pthread_kill", "pthread_sigmask", "setitimer"},
}
PROGRAM = """
import builtins, sys

theirs = builtins.__import__

def ours(name, globals=None, *more, **named):
    asked_by = (globals or {{}}).get("__name__", "")
    if name.partition(".")[0] in {modules} and asked_by.startswith(("steersman", "filelock")):
        raise ModuleNotFoundError(name)
    return theirs(name, globals, *more, **named)

builtins.__import__ = ours
from steersman.cli import main

for arguments in {commands}:
    sys.argv = ["steersman", *arguments]
    try:
        main()
    except SystemExit as exit:
        print("ended with", exit.code or 0)
"""


def arguments(denoiser, out):
    networks = ["--denoiser", denoiser, "--classifier", "zoo:sportballs-mobilenet", "--judge", "none"]
    drawn = ["--target", "baseball", "--recipe", "nrcg", "--set", "preprocess.size=null", "--steps", "1"]
    return ["sample", *networks, *drawn, "--out", str(out)]


@pytest.mark.long
def test_whole_commands_run_where_the_modules_are_missing(denoiser, tmp_path):
    out = str(tmp_path / "R&D é, one")
    sample = arguments(denoiser, out)
    commands = [[*sample, "--num", "1"], [*sample, "--num", "2"], ["sample", "--status", out]]
    program = PROGRAM.format(modules=MODULES, commands=[*commands, ["evaluate", out, "--resamples", "0"]])
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert done.stdout.count("ended with 0") == 4, done.stdout + done.stderr
    assert "baseball     2     0        0" in done.stdout


@pytest.fixture
def windows(monkeypatch):
    """Locks without ``fcntl``, no calls of POSIX, and no open file that may be removed or replaced."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    for name in [name for name in sys.modules if name.partition(".")[0] == "filelock"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("steersman.lab.generate.store.FileLock", importlib.import_module("filelock").FileLock)
    for name in CALLS["os"] - {"waitpid", "sysconf", "uname"}:  # which Python's own modules call
        monkeypatch.delattr(os, name, raising=False)

    def guarded(call):
        def refused(*paths, **settings):
            for path in map(os.path.realpath, paths):
                if path in (os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")):
                    raise PermissionError(errno.EACCES, "The file is used by another process", path)
            return call(*paths, **settings)

        return refused

    if Path("/proc/self/fd").is_dir():
        for name in ("replace", "rename", "unlink", "remove"):
            monkeypatch.setattr(os, name, guarded(getattr(os, name)))


@pytest.mark.few(9)
@pytest.mark.filterwarnings("ignore:only soft file lock")
@pytest.mark.usefixtures("unchecked", "windows")
@pytest.mark.parametrize("format", ["png", "npz"])
def test_runs_are_drawn_grown_and_told_of(format, denoiser, call, tmp_path):
    out = tmp_path / "R&D é, one"
    for num in (1, 2):
        code, said, err = call(*arguments(denoiser, out), "--num", num, "--format", format)
        assert code == 0, said + err
    assert "baseball     2     0        0" in call("sample", "--status", out)[1]
    names = sorted(path.name for path in out.iterdir())
    files = {"png": ["000000.png", "000001.png"], "npz": ["images.npz"]}[format]
    assert names == sorted(["grid.png", "metrics.json", "run.yaml", *files])


def test_what_windows_lacks_stands_nowhere():
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            imported = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not MODULES & set(imported), path
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert node.attr not in CALLS.get(node.value.id, ()), path


def test_texts_are_read_and_written_in_one_encoding():
    """Windows' own is another one."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                words = {each.arg for each in node.keywords}
                assert node.func.attr not in ("read_text", "write_text") or "encoding" in words, path


@pytest.mark.parametrize("name", ["con", "AUX", "nul.txt", "com1", "Lpt9"])
def test_names_of_devices_are_no_names_of_files(name):
    assert file_name(name) != name and file_name(name).startswith(name)


@pytest.mark.parametrize("folder", ["R&D/vae", "a&b", "C:\\R&D\\vae", "x?y=z"])
def test_paths_in_options_keep_their_signs(folder):
    name, options = split_options(f"a.pt?vae={folder}&heads=3", ("vae", "heads"))
    assert (name, options) == ("a.pt", {"vae": folder, "heads": "3"})
