"""
Builds docker/Dockerfile and runs the image: `make image-test`, some minutes.

It needs Linux, root, `buildah` and `debootstrap`; no container engine, no registry. The base is
Debian with Python, made once::

    ~/.cache/hubmeter-tests/images       buildah's store with the base: 0.2 GB, 2 GB while it runs
    ~/.cache/hubmeter-tests/image.log    what the last build said

Packages come from where pip gets them on this machine; nothing of that is in the image.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from buildah import CACHE, Failed, buildah, command

PROJECT = Path(__file__).parents[2]
CHECKS = Path(__file__).with_name("checks.py")
LOG = CACHE / "image.log"
SUITE = "bookworm"
MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
PACKAGES = "python3,python3-venv,ca-certificates"
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
OF_PIP = ("INDEX_URL", "EXTRA_INDEX_URL", "TRUSTED_HOST", "DEFAULT_TIMEOUT", "RETRIES", "PROXY")
IS_REQUIRED = os.environ.get("IMAGE_IS_REQUIRED") == "1"
"""Whether an image that cannot be built or run is a failure, and not only a warning."""


class Missing(Exception):
    """This machine cannot; the message says what it lacks."""


def main() -> int:
    """The exit code of the checks; 1 if there can be none and they are required."""
    try:
        _look_around()
    except Missing as reason:
        _say(f"WARNING: the container image is NOT BUILT AND NOT TESTED here: {reason}")
        return 1 if IS_REQUIRED else 0
    CACHE.mkdir(parents=True, exist_ok=True)
    try:
        with _image(_base()) as image:
            os.environ["HUBMETER_TEST_IMAGE"] = image
            return int(pytest.main([str(CHECKS), "--durations=0", *sys.argv[1:]]))
    except Failed as reason:
        _say(f"{reason}\nsee {LOG}")
        return 1


def _look_around() -> None:
    lacking = [name for name in ("buildah", "debootstrap", "unshare") if not shutil.which(name)]
    if lacking:
        raise Missing(f"{' and '.join(lacking)} missing: apt-get install buildah debootstrap")
    if os.geteuid():
        raise Missing("debootstrap and namespaces need root")


def _base() -> str:
    """Name of the image that stands for ``python:3.12-slim``: Debian, and what it has of Python."""
    made_of = hashlib.sha256(f"{SUITE} {MIRROR} {PACKAGES}".encode()).hexdigest()[:12]
    name = f"localhost/hubmeter-base:{made_of}"
    if name in buildah("images", "--format={{.Name}}:{{.Tag}}").split():
        return name
    with _timed("Debian with Python"), tempfile.TemporaryDirectory(dir=CACHE) as tree:
        variant = ["--variant=minbase", f"--include={PACKAGES}"]
        command("debootstrap", *variant, SUITE, tree, MIRROR, log=LOG)
        command("rm", "-rf", f"{tree}/var/cache/apt", f"{tree}/var/lib/apt/lists")
        Path(tree).chmod(0o755)
        container = buildah("from", "scratch")
        buildah("add", "--quiet", container, tree, "/")
        buildah("commit", "--quiet", "--rm", "--format=docker", container, name)
    return name


@contextmanager
def _image(base: str) -> Iterator[str]:
    """Build it, and remove it at the end."""
    name = f"localhost/hubmeter-test:{os.getpid()}"
    try:
        with _timed("docker/Dockerfile"), tempfile.TemporaryDirectory() as folder:
            settings = Path(folder, "pip.conf")
            settings.write_text(_pip_settings())
            _build(name, base, {settings: "/etc/pip.conf", AUTHORITIES: str(AUTHORITIES)})
        yield name
    finally:
        for unused in buildah("images", "--quiet", "--filter=dangling=true").split():
            buildah("rmi", unused)
        if name in buildah("images", "--format={{.Name}}:{{.Tag}}").split():
            buildah("rmi", name)


def _build(name: str, base: str, mounts: dict[Path, str]) -> None:
    """*mounts* are there while it is built, and are not in the image."""
    volumes = [f"--volume={ours}:{theirs}:ro" for ours, theirs in mounts.items()]
    # Of the two formats only Docker's has health checks.
    how = ["--isolation=chroot", "--format=docker", "--layers=false", f"--tag={name}"]
    what = [f"--file={PROJECT / 'docker/Dockerfile'}", f"--build-arg=BASE_IMAGE={base}", PROJECT]
    buildah("build", *how, *volumes, *what, log=LOG)


def _pip_settings() -> str:
    """Of this machine, as far as they mean something in another tree."""
    found = {name: value for name in OF_PIP if (value := os.environ.get(f"PIP_{name}"))}
    lines = [f"{name.lower().replace('_', '-')} = {value}" for name, value in found.items()]
    return "\n".join(["[global]", f"cert = {AUTHORITIES}", *lines, ""])


@contextmanager
def _timed(what: str) -> Iterator[None]:
    _say(f"building {what}")
    began = time.monotonic()
    yield
    _say(f"built {what} in {time.monotonic() - began:.0f} s")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
