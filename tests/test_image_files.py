"""What `docker/` says to Docker, Compose and Kubernetes. `make image-test` runs the image."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from hubmeter.receiver.credentials import Tls
from hubmeter.settings import SETTINGS
from real_collector import collector_binary, needs_collector
from receivers import Served, certificates

PROJECT = Path(__file__).parents[1]
FOLDER = PROJECT / "docker"
COMPOSE = FOLDER / "compose.yaml"
COMPOSE_SCHEMA = json.loads((PROJECT / "tests/image/compose-spec.json").read_text())
KUBERNETES = ("1.29", "1.37")
"""The first that has sidecars without a feature gate, and the newest whose schema is known here."""
COLLECTOR = PROJECT / "collector-config/agent.yaml"


def test_compose_file_obeys_the_specification() -> None:
    """The official schema accepts it; it does not accept a misspelt key."""
    compose = _yaml(COMPOSE)

    jsonschema.Draft202012Validator(COMPOSE_SCHEMA).validate(compose)

    compose["services"]["hubmeter"]["enviroment"] = {}
    with pytest.raises(jsonschema.ValidationError, match="enviroment"):
        jsonschema.Draft202012Validator(COMPOSE_SCHEMA).validate(compose)


def test_compose_file_names_only_what_it_has() -> None:
    """Volumes, services that are waited for, and files that are mounted or built from."""
    compose = _yaml(COMPOSE)
    services = compose["services"]
    for service in services.values():
        assert set(service.get("depends_on", ())) <= set(services)
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert source in compose["volumes"] or (FOLDER / source).exists()
        if build := service.get("build"):
            assert (FOLDER / build["context"] / build.get("dockerfile", "Dockerfile")).is_file()
        for condition in service.get("depends_on", {}).values():
            assert condition["condition"] in {"service_healthy", "service_started"}


def test_docker_compose_reads_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is installed; it needs no daemon for that."""
    if not shutil.which("docker") or _code("docker", "compose", "version"):
        pytest.skip("no docker compose here")
    config = ["docker", "compose", "--file", str(COMPOSE), "config", "--quiet"]
    assert _code(*config) != 0  # without a token
    monkeypatch.setenv("HUBMETER_SERVE_TOKEN", "a-token-of-the-tests")
    assert _code(*config) == 0


@needs_collector
def test_collector_accepts_what_compose_starts_it_with(tmp_path: Path) -> None:
    """The configuration with the change that the command line makes to it."""
    service = _yaml(COMPOSE)["services"]["collector"]
    command = [
        word.replace("/etc/otelcol/agent.yaml", str(COLLECTOR)) for word in service["command"]
    ]
    given = {"HUBMETER_SERVE_TOKEN": "a-token", "HOST_NAME": "a", "COLLECTOR_STATE": str(tmp_path)}
    binary = collector_binary()

    assert binary
    subprocess.run([binary, "validate", *command], env=service["environment"] | given, check=True)


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_manifest_obeys_the_schema(version: str) -> None:
    """That of Kubernetes, strictly; it does not accept a misspelt key."""
    for resource in _manifest():
        kubernetes_validate.validate(resource, version, strict=True)

    job = _manifest()[-1]
    job["spec"]["template"]["spec"]["terminationGracePeriod"] = 30
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        kubernetes_validate.validate(job, version, strict=True)


def test_kubernetes_manifest_is_a_sidecar_that_is_confined() -> None:
    """It outlives the agent, is asked for its health, and nobody has rights that he needs not."""
    pod = _manifest()[-1]["spec"]["template"]["spec"]
    [sidecar], [agent] = pod["initContainers"], pod["containers"]

    assert sidecar["restartPolicy"] == "Always"
    assert sidecar["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert sidecar["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert agent["resources"]["limits"] == {"nvidia.com/gpu": 1}
    assert pod["securityContext"]["runAsUser"] == int(_user(_instructions(FOLDER / "Dockerfile")))
    for container in (sidecar, agent):
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted <= {volume["name"] for volume in pod["volumes"]}


def test_tokens_are_in_no_file() -> None:
    """They come from the shell's environment or from a Secret, and without them nothing starts."""
    for container in _containers():
        for variable in container["env"]:
            if variable["name"] in {"HUBMETER_SERVE_TOKEN", "HF_TOKEN"}:
                assert "secretKeyRef" in variable["valueFrom"]
    for service in _yaml(COMPOSE)["services"].values():
        token = service["environment"].get("HUBMETER_SERVE_TOKEN", "${HUBMETER_SERVE_TOKEN:?}")
        assert token.startswith("${HUBMETER_SERVE_TOKEN:?")


def test_dockerfile_has_what_containers_need() -> None:
    """A user that is not root, a volume, a health check, SIGTERM, and of the driver NVML."""
    image = _instructions(FOLDER / "Dockerfile")
    environment = _environment(image)

    assert _user(image).isdecimal()
    assert _user(image) != "0"
    assert ("STOPSIGNAL", "SIGTERM") in image
    assert ("VOLUME", "/var/lib/hubmeter") in image
    assert environment["HUBMETER_JOURNAL_DIR"].startswith("/var/lib/hubmeter/")
    assert environment["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert environment["NVIDIA_DRIVER_CAPABILITIES"] == "utility"
    assert environment["PYTHONUNBUFFERED"] == "1"
    [check] = [rest for name, rest in image if name == "HEALTHCHECK"]
    assert "healthcheck.py" in check.partition("CMD ")[2]
    assert [rest for name, rest in image if name in {"ENTRYPOINT", "CMD"}] == [
        '["hubmeter"]',
        '["serve"]',
    ]
    assert image[0] == ("ARG", "BASE_IMAGE=python:3.12-slim")
    assert {rest.split()[0] for name, rest in image if name == "FROM"} == {"${BASE_IMAGE}"}


def test_dockerfile_copies_what_the_context_has() -> None:
    """`.dockerignore` lets through what is copied, and no more."""
    lines = (PROJECT / ".dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copies = [rest for name, rest in _instructions(FOLDER / "Dockerfile") if name == "COPY"]
    copied = {word for rest in copies if "--from" not in rest for word in rest.split()[:-1]}

    assert copied == allowed
    assert all((PROJECT / path).exists() for path in copied)


@pytest.mark.parametrize("guard", ["nothing", "tls", "certificates of senders"])
def test_health_check_asks_the_receiver(tmp_path: Path, guard: str) -> None:
    """It finds the receiver by its settings, whatever TLS that has, and says if nobody answers."""
    files = certificates(tmp_path)
    tls = None if guard == "nothing" else Tls(certificate=files.certificate, key=files.key)
    if guard == "certificates of senders":
        tls = files
    with Served(grpc=None, tls=tls) as receiver:
        assert receiver.http_address
        port = receiver.http_address.port
        assert _health(port, tls).returncode == 0
    dead = _health(port, tls)

    assert dead.returncode == 1
    assert dead.stderr.startswith("no answer: ")


def test_health_check_of_a_receiver_without_http() -> None:
    """That cannot be asked, and is not said to be well."""
    assert "off" in _health("off", None).stderr


def test_every_variable_is_a_setting() -> None:
    """No file sets a variable of hubmeter's, or of its Collector's, that does not exist."""
    compose = _yaml(COMPOSE)["services"]
    collector = set(compose["collector"]["environment"])
    named = set(_environment(_instructions(FOLDER / "Dockerfile")))
    named |= {name for service in compose.values() for name in service["environment"]} - collector
    named |= {variable["name"] for container in _containers() for variable in container["env"]}

    ours = {name for name in named if name.startswith("HUBMETER_")}
    assert ours
    assert ours <= {setting.variable for setting in SETTINGS}
    assert collector <= set(re.findall(r"\$\{env:(\w+)", COLLECTOR.read_text()))


def _yaml(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def _manifest() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text()))


def _containers() -> Iterator[dict[str, Any]]:
    pod = _manifest()[-1]["spec"]["template"]["spec"]
    yield from pod["initContainers"]
    yield from pod["containers"]


def _instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Each with the rest of its line, without comments and line breaks."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.split("\n"))
            if name]  # fmt: skip


def _environment(image: list[tuple[str, str]]) -> dict[str, str]:
    pairs = [word for name, rest in image if name == "ENV" for word in shlex.split(rest)]
    return dict(pair.split("=", 1) for pair in pairs)


def _user(image: list[tuple[str, str]]) -> str:
    [*_, user] = [rest for name, rest in image if name == "USER"]
    return user.partition(":")[0]


def _health(port: int | str, tls: Tls | None) -> subprocess.CompletedProcess[str]:
    environment = {"HUBMETER_SERVE_HTTP": f"0.0.0.0:{port}" if port != "off" else "off"}
    if tls is not None:
        environment |= {"HUBMETER_SERVE_CERT": str(tls.certificate)}
        environment |= {"HUBMETER_SERVE_CLIENT_CA": str(tls.client_ca)} if tls.client_ca else {}
    return subprocess.run(
        [sys.executable, FOLDER / "healthcheck.py"],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )


def _code(*command: str) -> int:
    return subprocess.run(command, check=False, capture_output=True).returncode
