"""The fleet's files hold what runs: their very commands, with their very environment, against real servers.

There is no container engine here, so each service's command is started as a process, with what a container would give
it put in its place: the servers' addresses, a folder for the volume, an image's own programs.
"""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import yaml
from psycopg.conninfo import conninfo_to_dict

from service.embedded import redis
from service.settings import Settings
from tests.conftest import Server

ROOT = Path(__file__).resolve().parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("api", "worker", "worker-gpu", "migrate")
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SECRETS = {"POSTGRES_PASSWORD": "0123abcd", "REDIS_PASSWORD": "4567ef"}


def interpolated(text: str, given: dict[str, str]) -> str:
    """What compose makes of `${NAME}`, `${NAME:-default}`, `${NAME:?message}` and `$$`."""

    def value(match: re.Match[str]) -> str:
        if match["name"] is None:
            return "$"
        found = given.get(match["name"], "")
        if found:
            return found
        if match["operator"] == ":?":
            raise LookupError(match["word"])
        return match["word"] or ""

    pattern = r"\$(?:\$|\{(?P<name>\w+)(?:(?P<operator>:[-?])(?P<word>[^}]*))?\})"
    return re.sub(pattern, value, text)


def environment_of(name: str, given: dict[str, str]) -> dict[str, str]:
    """The environment that compose gives a service; a variable without a value comes from outside or is left out."""
    declared: dict[str, str | None] = SERVICES[name].get("environment", {})
    resolved = {
        key: given.get(key) if value is None else interpolated(str(value), given) for key, value in declared.items()
    }
    return {key: value for key, value in resolved.items() if value is not None}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


@contextmanager
def process(argv: list[str], environment: dict[str, str], log: Path, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as stream:
        started = subprocess.Popen(argv, env=environment, stdout=stream, stderr=stream, cwd=folder)
    try:
        yield started
    finally:
        started.send_signal(signal.SIGTERM)
        try:
            assert started.wait(timeout=60) is not None
        finally:
            if started.poll() is None:
                started.kill()
                started.wait()


def program(name: str, *, as_health_check: bool = False) -> list[str]:
    """A service's command line, with the image's entry point before it and its programs where they are here."""
    if as_health_check:
        kind, *words = SERVICES[name]["healthcheck"]["test"]
        assert kind == "CMD"
    else:
        words = [*entry_point(), *SERVICES[name]["command"]]
    assert words[0] == "hyperdial"
    return [sys.executable, "-m", "service", *words[1:]]


def entry_point() -> list[str]:
    match = re.search(r"^ENTRYPOINT (\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert match is not None
    words: list[str] = json.loads(match[1])
    return words


def test_a_fleet_started_by_its_file_runs_a_job(
    postgresql_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = dict(SECRETS)
    api_port, redis_port = free_port(), free_port()
    with psycopg.connect(postgresql_server.get_uri("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE fleet")
    place = conninfo_to_dict(postgresql_server.get_uri("fleet"))
    outside = {key: value for key, value in os.environ.items() if not key.startswith(("HYPERDIAL_", "AWS_"))}

    def environment(name: str) -> dict[str, str]:
        declared = environment_of(name, given)
        # Where containers have names, this machine has a socket and ports.
        database = declared["HYPERDIAL_DATABASE_URL"]
        assert database == f"postgresql://hyperdial:{SECRETS['POSTGRES_PASSWORD']}@postgres:5432/hyperdial"
        declared["HYPERDIAL_DATABASE_URL"] = f"postgresql://{place['user']}@/fleet?host={place['host']}"
        declared["HYPERDIAL_REDIS_URL"] = declared["HYPERDIAL_REDIS_URL"].replace(
            "@redis:6379", f"@127.0.0.1:{redis_port}"
        )
        for key, value in declared.items():
            declared[key] = value.replace("/var/lib/hyperdial", str(tmp_path / "volume"))
        if name == "api":
            assert (declared["HYPERDIAL_HOST"], declared["HYPERDIAL_PORT"]) == ("0.0.0.0", "8000")
            declared |= {"HYPERDIAL_PORT": str(api_port)}
        return {**outside, **declared, "HYPERDIAL_URL": f"http://127.0.0.1:{api_port}", "OMP_NUM_THREADS": "1"}

    def is_well(name: str) -> bool:
        checked = program(name, as_health_check=True)
        return (
            subprocess.run(checked, env=environment(name), capture_output=True, check=False, timeout=60).returncode == 0
        )

    with ExitStack() as stack:
        stack.enter_context(queue(given, redis_port, tmp_path))
        migrated = subprocess.run(
            program("migrate"), env=environment("migrate"), capture_output=True, text=True, check=False, timeout=120
        )
        assert migrated.returncode == 0, migrated.stderr
        assert not is_well("api")
        assert not is_well("worker")
        for name in ("api", "worker"):
            stack.enter_context(process(program(name), environment(name), tmp_path / f"{name}.log", tmp_path))
        deadline = time.monotonic() + 90
        while not (is_well("api") and is_well("worker")):
            assert time.monotonic() < deadline, (tmp_path / "api.log").read_text() + (
                tmp_path / "worker.log"
            ).read_text()
        url = f"http://127.0.0.1:{api_port}"
        spec = {"data": {"dataset": "builtin:wine"}, "budget": {"outer_steps": 5}}
        assert httpx.post(f"{url}/v1/jobs", json=spec).status_code == 401
        created = subprocess.run(
            [sys.executable, "-m", "service", "key", "create", "me", "--scope", "submit"],
            env=environment("api"),
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        headers = {"Authorization": f"Bearer {created.stdout.strip()}"}
        with httpx.Client(base_url=url, headers=headers, timeout=90.0) as client:
            job = client.post("/v1/jobs", json=spec).json()
            ended: dict[str, Any] = {}
            while ended.get("status") not in ("succeeded", "failed", "cancelled"):
                ended = client.get(f"/v1/jobs/{job['id']}", headers={"Prefer": "wait=20"}).json()
            assert ended["status"] == "succeeded", ended
            files = client.get(f"/v1/jobs/{job['id']}/files").json()["items"]
            assert {file["name"] for file in files} >= {"weights.safetensors", "result.json"}


@contextmanager
def queue(given: dict[str, str], port: int, folder: Path) -> Iterator[None]:
    """Run the very command of the queue's container, and its health check."""
    server = redis.executable()
    assert server is not None
    data = folder / "queue"
    data.mkdir()
    outside = {**os.environ, "PATH": f"{server.parent}{os.pathsep}{os.environ['PATH']}"}
    environment = {**outside, **environment_of("redis", given)}
    shell, flag, script = (interpolated(word, given) for word in SERVICES["redis"]["command"])
    assert given["REDIS_PASSWORD"] not in script
    script = script.replace("--dir /data", f"--dir {shlex.quote(str(data))} --port {port}")
    kind, check = SERVICES["redis"]["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    check = interpolated(check, given).replace("redis-cli", f"redis-cli -p {port}")
    with process([shell, flag, script], environment, folder / "queue.log", folder) as started:
        deadline = time.monotonic() + 30
        while subprocess.run(["sh", "-c", check], env=environment, capture_output=True, check=False).returncode != 0:
            assert time.monotonic() < deadline, (folder / "queue.log").read_text()
        refused = subprocess.run(
            [server.parent / "redis-cli", "-p", str(port), "ping"], capture_output=True, text=True, check=True
        )
        assert "NOAUTH" in refused.stdout
        seen = Path(f"/proc/{started.pid}/cmdline").read_bytes().decode()
        assert "redis-server" in seen
        assert given["REDIS_PASSWORD"] not in seen
        yield


def test_every_setting_that_the_fleet_makes_is_one() -> None:
    known = {f"HYPERDIAL_{name.upper()}" for name in Settings.model_fields}
    for name in OURS:
        given = environment_of(name, SECRETS)
        assert {key for key in given if key.startswith("HYPERDIAL_")} <= known
        unset = [key for key in SERVICES[name]["environment"] if key.startswith("HYPERDIAL_")]
        assert set(unset) <= known


def test_passwords_have_no_defaults() -> None:
    for name in SERVICES:
        if name not in ("objects",):
            with pytest.raises(LookupError, match=r"set \w+_PASSWORD in \.env"):
                environment_of(name, {})
    example = (ROOT / ".env.example").read_text()
    for secret in SECRETS:
        assert re.search(rf"^{secret}=$", example, re.MULTILINE)
    # The object store is optional, and refuses to start without keys.
    assert set(environment_of("objects", {}).values()) == {""}


def test_every_container_is_confined() -> None:
    for name, service in SERVICES.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["init"] is True, name
        assert "privileged" not in service, name
        assert not any("docker.sock" in volume for volume in service["volumes"]), name
        assert service["restart"] == "unless-stopped" or name == "migrate"
        if name != "api":
            assert "ports" not in service, name
            assert service["networks"] == ["inside"], name
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    assert SERVICES["api"]["ports"] == ["${HYPERDIAL_PUBLISH:-127.0.0.1:8000}:8000"]


def test_every_container_is_checked_and_has_time_to_stop() -> None:
    grace = Settings.model_fields["grace_seconds"].default
    for name, service in SERVICES.items():
        if name == "migrate":
            continue
        assert service["healthcheck"]["test"], name
        assert service["stop_grace_period"].endswith("s"), name
    for name in ("worker", "worker-gpu"):
        assert int(SERVICES[name]["stop_grace_period"][:-1]) >= grace + 20


def test_nobody_starts_before_what_he_needs() -> None:
    for name in ("api", "worker", "worker-gpu"):
        needs = SERVICES[name]["depends_on"]
        assert needs["migrate"]["condition"] == "service_completed_successfully"
        for server in ("postgres", "redis"):
            assert needs[server]["condition"] == "service_healthy"
        assert needs["objects"]["required"] is False
    assert {name for name, service in SERVICES.items() if "profiles" in service} == {"worker-gpu", "objects"}


def test_volumes_and_networks_are_declared() -> None:
    for service in SERVICES.values():
        assert {volume.partition(":")[0] for volume in service["volumes"]} <= set(COMPOSE["volumes"])
        assert set(service["networks"]) <= set(COMPOSE["networks"])


def test_the_image_runs_as_nobody_in_particular_and_stops_when_told() -> None:
    stages = DOCKERFILE.split("\nFROM ")
    last = stages[-1]
    assert re.search(r"^USER 10001:10001$", last, re.MULTILINE)
    assert re.search(r"^STOPSIGNAL SIGTERM$", last, re.MULTILINE)
    assert "HYPERDIAL_DATA_DIR=/var/lib/hyperdial" in last
    assert not re.search(r"(?i)(password|secret|token)", DOCKERFILE)


def test_what_the_image_copies_is_let_into_the_build_and_is_there() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    let_in = {line[1:].rstrip("/") for line in ignored if line.startswith("!")}
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert source in let_in
            assert (ROOT / source).exists(), source
