"""A Docker engine with compose and buildx, and the base image: what is there, or made for the test.

The engine of this machine is used where it answers. Otherwise packages of Debian are unpacked (not
installed) into a temporary folder, with an apt configuration of their own, and `dockerd` is started
from there on a socket and folders of its own, without changes to the firewall. The base image is
made with debootstrap where it can be neither found nor pulled.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.folders import PROJECT

SUITE = "trixie"
PACKAGES = (
    *("docker.io", "docker-cli", "docker-buildx", "docker-compose"),
    *("containerd", "tini", "debootstrap"),
)
OWN_PACKAGES = (
    *("runc", "iptables", "libxtables12", "libip4tc2", "libip6tc2"),
    *("libnftnl11", "libmnl0", "libnetfilter-conntrack3", "libnfnetlink0"),
)
"""From this machine's own suite: they need the C library or the kernel to fit."""
BASE_PACKAGES = "ca-certificates,python3,python3-venv"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
START_SECONDS = 60
# What containerd and dockerd make outside of the folders that they are given.
LEFT_BEHIND = ("/opt/containerd", "/run/containerd", "/run/docker")


class Unavailable(Exception):
    """Neither is there an engine here, nor can one be made."""


@dataclass
class Docker:
    """How to call an engine."""

    command: str
    environment: Mapping[str, str]
    own: bool

    def __call__(
        self, *arguments: str, check: bool = True, text: str | None = None, seconds: float = 900
    ) -> str:
        """Standard output of `docker ARGUMENTS…`; raises Unavailable when it fails."""
        result = subprocess.run(
            [self.command, *arguments],
            env=dict(self.environment),
            cwd=PROJECT,
            input=text,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        if check and result.returncode:
            tail = "\n".join(result.stderr.splitlines()[-15:])
            raise Unavailable(
                f"docker {' '.join(arguments)} ended with {result.returncode}: {tail}"
            )
        return result.stdout

    def build(self, stack: ExitStack) -> str:
        """The image of this checkout, removed at the end; pip is configured as on this machine."""
        name = f"tallybus-test:{os.getpid()}"
        secrets = []
        for secret, paths in (
            ("pip_conf", (os.environ.get("PIP_CONFIG_FILE"), "/etc/pip.conf")),
            ("pip_cert", (os.environ.get("PIP_CERT"),)),
        ):
            path = next((each for each in paths if each and Path(each).exists()), None)
            secrets += ["--secret", f"id={secret},src={path}"] if path else []
        if os.environ.get("PIP_INDEX_URL"):
            secrets += ["--build-arg", "PIP_INDEX_URL"]
        say("building the image")
        began = time.monotonic()
        stack.callback(self, "image", "rm", "--force", name, check=False)
        self("build", "--network", "host", *secrets, "--tag", name, ".")
        size = int(self("image", "inspect", "--format", "{{.Size}}", name)) / 1e6
        say(f"built in {time.monotonic() - began:.0f} s, {size:.0f} MB")
        return name


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def engine(folder: Path, stack: ExitStack) -> Docker:
    """This machine's engine, or one that is stopped and removed when `stack` ends."""
    command = shutil.which("docker")
    if command is not None:
        docker = Docker(command, os.environ, own=False)
        found = [
            docker(*each, check=False).strip()
            for each in (
                ("info", "--format", "{{.ServerVersion}}"),
                ("compose", "version", "--short"),
                ("buildx", "version"),
            )
        ]
        if all(found):
            say(f"this machine's engine: Docker {found[0]}, compose {found[1]}")
            return docker
    return _own_engine(folder, stack)


def _own_engine(folder: Path, stack: ExitStack) -> Docker:
    if os.getuid() != 0:
        raise Unavailable("there is no Docker engine with compose here, and only root can make one")
    for needed in ("apt-get", "dpkg", "tar", "chroot"):
        if shutil.which(needed) is None:
            raise Unavailable(f"there is no Docker engine with compose here, and no {needed}")
    say(f"no engine here: taking one from the packages of Debian {SUITE}")
    root = folder / "engine"
    _unpack(folder, root)
    _usable_here(folder, root)
    plugins = folder / "client" / "cli-plugins"
    plugins.mkdir(parents=True)
    for plugin in (root / "usr/libexec/docker/cli-plugins").iterdir():
        (plugins / plugin.name).symlink_to(plugin)
    socket = folder / "docker.sock"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("DOCKER_")},
        "PATH": f"{root}/usr/bin:{root}/usr/sbin:{os.environ['PATH']}",
        "DOCKER_HOST": f"unix://{socket}",
        "DOCKER_CONFIG": str(folder / "client"),
    }
    docker = Docker(f"{root}/usr/bin/docker", environment, own=True)
    new = [path for path in map(Path, LEFT_BEHIND) if not path.exists()]
    log = stack.enter_context((folder / "dockerd.log").open("w"))
    daemon = subprocess.Popen(
        [
            f"{root}/usr/sbin/dockerd",
            *("--host", f"unix://{socket}", "--pidfile", str(folder / "dockerd.pid")),
            *("--data-root", str(folder / "docker"), "--exec-root", str(folder / "exec")),
            # Nothing of this machine's network is changed but for the bridges of the test.
            *("--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"),
        ],
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    stack.callback(_stop, daemon, folder, new)
    limit = time.monotonic() + START_SECONDS
    while not docker("info", "--format", "{{.ServerVersion}}", check=False).strip():
        if daemon.poll() is not None or time.monotonic() > limit:
            tail = "\n".join((folder / "dockerd.log").read_text().splitlines()[-15:])
            raise Unavailable(f"dockerd did not start: {tail}")
        time.sleep(0.2)
    version = docker("info", "--format", "{{.ServerVersion}}, {{.Driver}}").strip()
    say(f"own engine: Docker {version}, compose {docker('compose', 'version', '--short').strip()}")
    return docker


def _stop(daemon: subprocess.Popen[bytes], folder: Path, new: Sequence[Path]) -> None:
    daemon.terminate()
    try:
        daemon.wait(60)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for path in sorted((each for each in mounts if each.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "--lazy", path], check=False)
    for path in new:
        # Empty folders alone: another engine may have come meanwhile.
        for each in (*sorted(path.rglob("*"), reverse=True), path):
            with suppress(OSError):
                each.rmdir()
    say("stopped the engine")


def _apt(folder: Path, sources: str | None, *arguments: str) -> None:
    """apt-get with lists of its own for these sources; without, as this machine has it."""
    environment = dict(os.environ)
    where = folder / "debs"
    if sources is not None:
        own = folder / "apt"
        (own / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        (own / "sources.list").write_text(sources)
        (own / "apt.conf").write_text(
            f'Dir::Etc::SourceList "{own}/sources.list";\nDir::Etc::SourceParts "-";\n'
            f'Dir::State::Lists "{own}/lists";\nDir::Cache "{own}/cache";\n'
            'APT::Sandbox::User "root";\nAcquire::Languages "none";\n'
        )
        environment["APT_CONFIG"] = str(own / "apt.conf")
    where.mkdir(exist_ok=True)
    result = subprocess.run(
        ["apt-get", "--quiet", *arguments],
        cwd=where,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise Unavailable(f"apt-get {' '.join(arguments)}: {result.stderr.strip()[-800:]}")


def _unpack(folder: Path, root: Path) -> None:
    sources = f"deb [signed-by={KEYRING}] {mirror()} {SUITE} main\n"
    _apt(folder, sources, "update")
    _apt(folder, sources, "download", *PACKAGES)
    for package in sorted((folder / "debs").glob("*.deb")):
        subprocess.run(["dpkg", "-x", str(package), str(root)], check=True)
        package.unlink()


def _usable_here(folder: Path, root: Path) -> None:
    """Replace what may need a newer C library than this machine has, and add iptables."""
    for place in ("usr/bin/runc", "usr/sbin/runc"):
        (root / place).unlink(missing_ok=True)
    own = folder / "own"
    _apt(folder, None, "download", *OWN_PACKAGES)
    for package in (folder / "debs").glob("*.deb"):
        subprocess.run(["dpkg", "-x", str(package), str(own)], check=True)
        package.unlink()
    runc = next(each for each in own.glob("usr/*bin/runc"))
    (root / "usr/bin/runc").symlink_to(runc)
    plugins = next(own.glob("usr/lib/*/xtables"))
    # The engine calls it in the name spaces of containers, for their resolver of names.
    for kind in ("nft", "legacy"):
        for name in ("iptables", "ip6tables"):
            script = root / "usr/bin" / name
            script.write_text(
                f"#!/bin/sh\nLD_LIBRARY_PATH={plugins.parent} XTABLES_LIBDIR={plugins} "
                f'exec {own}/usr/sbin/{name}-{kind} "$@"\n'
            )
            script.chmod(0o755)
        works = [str(root / "usr/bin/iptables"), "--table", "nat", "--list", "--numeric"]
        if subprocess.run(works, capture_output=True, check=False).returncode == 0:
            return
    raise Unavailable("iptables works here neither with nft nor in its older form")


def mirror() -> str:
    """Where this machine takes Debian from."""
    targets = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for line in targets.splitlines():
        label, _, uri = line.rpartition(" ")
        if label == "Debian":
            return uri.rstrip("/")
    raise Unavailable("this machine's apt knows no Debian mirror")


def base_name() -> str:
    """The base that the Dockerfile names."""
    found = re.search(
        r"^ARG BASE=(\S+)$", (PROJECT / "Dockerfile").read_text("utf-8"), re.MULTILINE
    )
    assert found is not None
    return found[1]


def base_image(docker: Docker, folder: Path, stack: ExitStack) -> None:
    """Make sure that the base image is there; one that is made here is removed at the end."""
    name = base_name()
    if json.loads(docker("image", "inspect", name, check=False) or "[]"):
        say(f"base image {name}: there")
        return
    if not docker.own:
        say(f"base image {name}: is pulled by the build")
        return
    began = time.monotonic()
    root = folder / "engine"
    subprocess.run(
        [
            *(f"{root}/usr/sbin/debootstrap", "--variant=minbase", f"--include={BASE_PACKAGES}"),
            *(SUITE, str(folder / "base"), mirror()),
        ],
        env={**docker.environment, "DEBOOTSTRAP_DIR": f"{root}/usr/share/debootstrap"},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    stack.callback(docker, "image", "rm", "--force", name, check=False)
    archive = folder / "base.tar"
    subprocess.run(["tar", "-C", str(folder / "base"), "-cf", str(archive), "."], check=True)
    shutil.rmtree(folder / "base")
    docker("import", str(archive), name)
    archive.unlink()
    say(f"base image {name}: made with debootstrap in {time.monotonic() - began:.0f} s")
