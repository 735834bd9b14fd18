"""What a process of ours does first: no foreign modules, whole streams, no threads of libraries."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tallybus.common.service import startup
from tests.support.folders import PROJECT

FOREIGN = ("click", "msgpack", "numpy", "zmq", "rich", "tomllib", "logging")


def run(
    arguments: Sequence[str], cwd: Path | None = None, shell: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """A Python with these arguments; `shell` is what a shell would write behind them."""
    path = variables.pop("PYTHONPATH", "")
    kept = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
    words = [sys.executable, *arguments]
    if shell:
        words = ["sh", "-c", f'exec "$@" {shell}', "sh", *words]
    return subprocess.run(
        words,
        cwd=cwd or PROJECT,
        env={**kept, "PYTHONPATH": os.pathsep.join([str(PROJECT), path]).rstrip(":"), **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder of somebody's own modules, which tell when one of them is executed."""
    for name in FOREIGN:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} was executed')\n")
    return tmp_path


@pytest.mark.parametrize("path", ["", f"/nowhere{os.pathsep}.", f"/nowhere{os.pathsep * 2}/none"])
def test_a_command_executes_nothing_from_the_working_directory(foreign: Path, path: str) -> None:
    done = run(["-m", "tallybus", "config", "show"], foreign, PYTHONPATH=path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "ledger.data" in done.stdout


def test_a_service_started_by_hand_executes_nothing_from_the_working_directory(
    foreign: Path,
) -> None:
    done = run(["-m", "tallybus.services.wal"], foreign, TALLYBUS_LEDGER_DATA="/dev/null/x")
    assert "was executed" not in done.stderr
    assert done.returncode == 78, done.stderr


def test_what_we_start_and_what_that_starts_import_nothing_from_there_either(foreign: Path) -> None:
    program = (
        "import subprocess, sys\n"
        "from tallybus.common.service import startup\n"
        "done = subprocess.run(startup.command('tallybus', ['--version']),"
        " env=startup.environment(), check=True)\n"
        "subprocess.run([sys.executable, '-m', 'tallybus', '--version'],"
        " env=startup.environment(), check=True)\n"
    )
    done = run(["-P", "-c", program], foreign, PYTHONPATH="/nowhere:")
    assert (done.returncode, done.stdout.count("tallybus ")) == (0, 2), done.stderr


def test_a_folder_that_is_named_by_its_full_path_is_meant(foreign: Path) -> None:
    (foreign / "click.py").write_text("raise SystemExit('as asked for')\n")
    done = run(["-m", "tallybus"], foreign, PYTHONPATH=f"{foreign}")
    assert "as asked for" in done.stderr


def test_the_environment_of_our_processes_keeps_what_is_set_and_limits_threads() -> None:
    made = startup.environment({"PYTHONPATH": ":/lib:.:rel", "OMP_NUM_THREADS": "3", "X": "\udcff"})
    assert made["PYTHONPATH"] == "/lib"
    assert made["PYTHONSAFEPATH"] == "1"
    assert (made["OMP_NUM_THREADS"], made["OPENBLAS_NUM_THREADS"]) == ("3", "1")
    assert made["X"] == "\udcff"
    assert "PYTHONPATH" not in startup.environment({"PYTHONPATH": ""})


def test_libraries_start_no_threads_in_a_command() -> None:
    program = (
        "from tallybus.common.service import startup; startup.prepare()\n"
        "import numpy, threading, os\n"
        "print(len(os.listdir('/proc/self/task')))"
    )
    assert run(["-c", program]).stdout == "1\n"


@pytest.mark.parametrize("closed", ["2>&-", "<&-", "<&- >&- 2>&-", ">&-", "2>/dev/full"])
def test_standard_streams_are_whole_whatever_was_closed(closed: str, tmp_path: Path) -> None:
    program = f"""
from tallybus.common.service import startup
startup.prepare()
import os, sys
with open({str(tmp_path / "found")!r}, "w") as file:
    print(file.fileno() > 2, *(os.get_inheritable(number) for number in range(3)), file=file)
    print("to stderr", file=sys.stderr, flush=True)
    print(sys.stdin.read() if "<" in {closed!r} else "", file=file)
"""
    done = run(["-c", program], shell=closed)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "found").read_text().split() == ["True"] * 4


@pytest.mark.parametrize(
    "arguments", [["config", "show"], ["--help"], ["config", "show", "--json"]]
)
def test_output_on_a_full_disk_is_told_with_a_code_of_its_own(arguments: list[str]) -> None:
    done = run(["-m", "tallybus", *arguments], shell=">/dev/full")
    assert done.returncode == 5
    assert done.stderr == (
        "Error: standard output cannot be written: No space left on device; "
        "the command did its work, and its output is lost\n"
    )


def test_an_error_keeps_its_code_where_it_cannot_be_told() -> None:
    for shell in ("2>/dev/full", "2>&-", ">&- 2>&-"):
        assert run(["-m", "tallybus", "deposit", "x"], shell=shell).returncode == 2
    assert run(["-m", "tallybus", "--version"], shell=">&-").returncode == 0


def test_a_path_that_is_no_text_is_printed_as_its_bytes(tmp_path: Path) -> None:
    name = os.fsdecode(b"d\xff\xc3\xa9")
    for variables in (
        {"LC_ALL": "C.UTF-8"},
        {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ):
        words = ["-m", "tallybus", "config", "show", "--set", f"ledger.data={name}"]
        run(words, shell=f"> {tmp_path / 'out'}", **variables)
        assert b"d\xff\xc3\xa9" in (tmp_path / "out").read_bytes(), variables
