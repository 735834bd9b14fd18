"""`scripts/build-examples` where no compiler is: it builds what it can and says what it skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.folders import FUNCTION_EXAMPLES, PROJECT

TOOLS = [
    "basename",
    "bash",
    "cat",
    "cmp",
    "cp",
    "dirname",
    "env",
    "install",
    "mkdir",
    "mktemp",
    "rm",
    "sed",
    "sha256sum",
    "stat",
]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy with one example, and a `bin` folder with no more than what every machine has."""
    folder = tmp_path / "project"
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(PROJECT / "scripts" / "build-examples", folder / "scripts")
    shutil.copytree(
        FUNCTION_EXAMPLES / "overdraft",
        folder / "examples" / "functions" / "overdraft",
    )
    (folder / "bin").mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found
        (folder / "bin" / tool).symlink_to(found)
    return folder


def build(
    project: Path, *arguments: str, python: str = sys.executable
) -> subprocess.CompletedProcess[str]:
    (project / "home").mkdir(exist_ok=True)
    return subprocess.run(
        [str(project / "scripts" / "build-examples"), *arguments],
        env={
            "PATH": str(project / "bin"),
            "HOME": str(project / "home"),
            "PYTHON": python,
            "TMPDIR": os.environ.get("TMPDIR", "/tmp"),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def binaries(project: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in project.glob("examples/functions/*/built/*")}


def test_what_cannot_be_built_is_skipped_and_said(project: Path) -> None:
    before = binaries(project)
    done = build(project)
    assert done.returncode == 0, done.stderr
    assert "Rust is skipped" in done.stdout
    assert "AssemblyScript is skipped" in done.stdout
    assert "overdraft.wat.wasm: 287 bytes" in done.stdout
    assert binaries(project) == before
    nothing = build(project, python=str(project / "no python"))
    assert nothing.returncode == 0, nothing.stderr
    assert "WAT is skipped" in nothing.stdout


def test_check_finds_a_binary_that_is_not_of_its_source_and_writes_nothing(project: Path) -> None:
    assert build(project, "--check").returncode == 0
    source = project / "examples" / "functions" / "overdraft" / "overdraft.wat"
    source.write_text(source.read_text("utf-8").replace("i32.const 130", "i32.const 131"), "utf-8")
    before = binaries(project)
    done = build(project, "--check", "overdraft")
    assert done.returncode == 1
    assert "overdraft.wat.wasm: DIFFERS" in done.stdout
    assert binaries(project) == before
    assert build(project).returncode == 0
    assert binaries(project) != before


def test_unknown_examples_and_options_are_refused(project: Path) -> None:
    for argument in ("nothing", "--chekc"):
        done = build(project, argument)
        assert done.returncode == 2
        assert argument in done.stderr
