"""Every command, as a person types it, against a real service."""

import csv
import io
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.cli.conftest import DIGITS, ENDLESS, CommandLine


@pytest.fixture(scope="module")
def job(hyperdial: CommandLine) -> str:
    """A job that has succeeded."""
    run = hyperdial("submit", "-", "--watch", stdin=json.dumps(DIGITS))
    assert run.code == 0, run.err + run.out
    return run.out.split()[0]


def test_watching_shows_every_step_the_end_and_the_evidence(hyperdial: CommandLine, spec: Path) -> None:
    run = hyperdial("submit", str(spec), "--watch")
    assert run.code == 0, run.err
    assert re.match(r"job_\w+\n", run.out)
    steps = [int(step) for step in re.findall(r"^step (\d+)/30", run.out, re.MULTILINE)]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > 2
    assert "succeeded" in run.out
    assert re.search(r"^(optimum|at_bound): ", run.out, re.MULTILINE)


def test_an_ended_job_can_be_watched_too(hyperdial: CommandLine, job: str) -> None:
    run = hyperdial("watch", job)
    assert run.code == 0
    assert "accuracy" in run.out


def test_the_same_idempotency_key_gives_the_same_job(hyperdial: CommandLine, spec: Path) -> None:
    first, second = (hyperdial("submit", str(spec), "--idempotency-key", "once") for _ in range(2))
    assert (first.code, second.code) == (0, 0)
    assert first.out == second.out


def test_a_dry_run_fills_in_what_was_left_out_and_stores_nothing(hyperdial: CommandLine, spec: Path) -> None:
    before = hyperdial("list", "--json", "--limit", "1000").out
    run = hyperdial("submit", str(spec), "--dry-run")
    assert run.code == 0
    assert json.loads(run.out)["spec"]["data"]["split"]["kind"] == "holdout"
    assert len(json.loads(hyperdial("list", "--json", "--limit", "1000").out)) == len(json.loads(before))


def test_jobs_are_listed_and_shown(hyperdial: CommandLine, job: str) -> None:
    listed = json.loads(hyperdial("list", "--json", "--status", "succeeded", "--label", "team=tests").out)
    assert job in [entry["id"] for entry in listed]
    assert job in hyperdial("list").out
    assert json.loads(hyperdial("show", job, "--json").out)["status"] == "succeeded"
    shown = hyperdial("show", job)
    assert "succeeded" in shown.out
    assert "team:tests" in shown.out
    assert hyperdial("list", "--label", "team:nobody").out == ""


def test_a_result_is_printed_for_people_and_for_programs(hyperdial: CommandLine, job: str) -> None:
    assert "accuracy" in hyperdial("result", job).out
    result = json.loads(hyperdial("result", job, "--json").out)
    assert result["evidence"]["verdict"] in ("optimum", "at_bound")


def test_a_trajectory_is_exported_in_every_format(hyperdial: CommandLine, job: str, tmp_path: Path) -> None:
    points = [json.loads(line) for line in hyperdial("export", job, "-f", "ndjson").out.splitlines()]
    assert [point["step"] for point in points] == list(range(len(points)))
    rows = list(csv.DictReader(io.StringIO(hyperdial("export", job).out)))
    assert [int(row["step"]) for row in rows] == list(range(len(points)))
    assert len(json.loads(hyperdial("export", job, "--format", "json").out)["items"]) == len(points)
    file = tmp_path / "points.parquet"
    assert hyperdial("export", job, "-f", "parquet", "-o", str(file)).code == 0
    assert pq.read_table(file).num_rows == len(points)  # type: ignore[no-untyped-call]
    assert [found.name for found in tmp_path.iterdir()] == ["points.parquet"]


def test_a_refused_specification_names_the_field(hyperdial: CommandLine) -> None:
    run = hyperdial("submit", "-", stdin=json.dumps({**DIGITS, "seed": "one"}))
    assert run.code == 3
    assert "/seed" in run.err
    assert run.out == ""


def test_text_that_is_not_json_is_told_by_line(hyperdial: CommandLine) -> None:
    run = hyperdial("submit", "-", stdin='{\n "seed": 1,\n}')
    assert run.code == 2
    assert "line 3" in run.err


def test_files_that_are_not_there_are_a_mistake_of_the_caller(hyperdial: CommandLine, tmp_path: Path) -> None:
    assert hyperdial("submit", str(tmp_path / "none.json")).code == 2
    assert hyperdial("dataset", "add", str(tmp_path / "none.csv")).code == 2
    assert hyperdial("dataset", "add", str(tmp_path / "none.what")).code == 2


def test_an_unknown_job_is_refused(hyperdial: CommandLine) -> None:
    for command in ("show", "watch", "result", "export", "cancel"):
        assert hyperdial(command, "job_none").code == 3


def test_a_server_that_is_not_there_has_its_own_exit_code(hyperdial: CommandLine) -> None:
    run = hyperdial("list", "--url", "http://127.0.0.1:9")
    assert run.code == 4
    assert "hyperdial up" in run.err


def test_a_wrong_command_line_is_told_apart(hyperdial: CommandLine) -> None:
    assert hyperdial("submit").code == 2
    assert hyperdial("no-such-command").code == 2
    assert hyperdial("doctor", HYPERDIAL_PORT="many").code == 2


def test_a_job_can_be_cancelled_and_the_watcher_sees_it(hyperdial: CommandLine) -> None:
    job_id = hyperdial("submit", "-", stdin=json.dumps(ENDLESS)).out.strip()
    with subprocess.Popen(
        [sys.executable, "-m", "service", "watch", job_id],
        stdout=subprocess.PIPE,
        text=True,
        env=hyperdial.environment(),
    ) as watching:
        assert watching.stdout is not None
        for line in watching.stdout:
            if line.startswith("step"):
                break
        assert hyperdial("cancel", job_id).code == 0
        assert "cancelled" in watching.stdout.read()
        assert watching.wait() == 1
    again = hyperdial("retry", job_id)
    assert (again.code, "queued" in again.out) == (0, True)
    assert hyperdial("pause", job_id).code == 0
    assert hyperdial("resume", job_id).code == 0
    assert hyperdial("cancel", job_id).code == 0


def test_stopping_to_watch_leaves_the_job_alone(hyperdial: CommandLine) -> None:
    paused = hyperdial("submit", "-", stdin=json.dumps(ENDLESS)).out.strip()
    hyperdial("pause", paused)
    with subprocess.Popen(
        [sys.executable, "-m", "service", "watch", paused],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=hyperdial.environment(PYTHONUNBUFFERED="1"),
    ) as watching:
        assert watching.stdout is not None
        assert watching.stderr is not None
        watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        assert "the job goes on" in watching.stderr.read()
        assert watching.wait() == 130
    assert json.loads(hyperdial("show", paused, "--json").out)["status"] != "cancelled"
    hyperdial("cancel", paused)


def test_a_dataset_is_uploaded_once_and_can_be_learned_from(hyperdial: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("a,b,target\n" + "".join(f"{i % 7},{i % 5 - 2.5},{i % 2}\n" for i in range(60)))
    first, second = hyperdial("dataset", "add", str(file), "--name", "rows"), hyperdial("dataset", "add", str(file))
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert first.out == second.out
    assert json.loads(hyperdial("dataset", "show", first.out.strip()).out)["rows"] == 60
    listed = hyperdial("dataset", "list").out
    assert first.out.strip() in listed
    assert "builtin:digits" in listed
    job = {**DIGITS, "data": {"dataset": first.out.strip()}}
    assert hyperdial("submit", "-", "--dry-run", stdin=json.dumps(job)).code == 0


def test_a_key_is_shown_once_and_can_be_revoked(hyperdial: CommandLine) -> None:
    made = hyperdial("key", "create", "me", "--scope", "read")
    assert made.code == 0, made.err
    assert re.fullmatch(r"hd_\w+_[\w-]+\n", made.out)
    keys = json.loads(hyperdial("key", "list", "--json").out)
    key = next(key for key in keys if key["name"] == "me")
    assert (key["scope"], key["revoked_at"]) == ("read", None)
    assert made.out.strip() not in hyperdial("key", "list").out
    assert hyperdial("key", "revoke", key["id"]).code == 0
    assert hyperdial("key", "revoke", "key_none").code == 2
    revoked = next(key for key in json.loads(hyperdial("key", "list", "--json").out) if key["name"] == "me")
    assert revoked["revoked_at"] is not None


def test_a_missing_database_is_said_with_what_to_do(hyperdial: CommandLine, tmp_path: Path) -> None:
    run = hyperdial("key", "list", HYPERDIAL_DATABASE_URL="postgresql://nobody@127.0.0.1:9/none")
    assert run.code == 4
    assert "HYPERDIAL_DATABASE_URL" in run.err
    assert hyperdial("key", "list", HYPERDIAL_DATABASE_URL="mysql://x/y").code == 2


def test_the_doctor_finds_a_running_service_well(hyperdial: CommandLine) -> None:
    run = hyperdial("doctor", "--json")
    findings = {finding["check"]: finding for finding in json.loads(run.out)}
    assert run.code == 0, run.out
    assert {finding["verdict"] for finding in findings.values()} <= {"good", "warning"}
    for check in ("database", "tables", "clock", "queue", "files", "workers", "devices", "server"):
        assert findings[check]["verdict"] == "good", findings[check]


def test_the_doctor_says_what_to_do_where_nothing_is_well(hyperdial: CommandLine, tmp_path: Path) -> None:
    run = hyperdial(
        "doctor",
        "--url",
        "http://127.0.0.1:9",
        HYPERDIAL_QUEUE="redis",
        HYPERDIAL_REDIS_URL="redis://:secret@127.0.0.1:9/0",
        HYPERDIAL_DATABASE_URL="postgresql://me:secret@127.0.0.1:9/none",
        HYPERDIAL_FILES_URL="file:///proc/nowhere",
    )
    assert run.code == 1
    for remedy in ("HYPERDIAL_DATABASE_URL", "HYPERDIAL_REDIS_URL", "HYPERDIAL_FILES_URL", "hyperdial up"):
        assert remedy in run.out
    assert "secret" not in run.out + run.err


def test_health_is_an_exit_code(hyperdial: CommandLine, tmp_path: Path) -> None:
    assert hyperdial("health").code == 0
    assert hyperdial("health", "--worker").code == 0
    assert hyperdial("health", "--url", "http://127.0.0.1:9").code == 4
    empty = tmp_path / "empty"
    assert hyperdial("migrate", HYPERDIAL_DATA_DIR=str(empty)).code == 0
    assert hyperdial("migrate", HYPERDIAL_DATA_DIR=str(empty)).code == 0
    assert hyperdial("health", "--worker", HYPERDIAL_DATA_DIR=str(empty)).code == 1


def test_the_example_of_the_readme_works_as_it_stands(hyperdial: CommandLine, tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert shutil.which("curl"), "install curl: the readme's example uses it"
    script = re.search(r"^```bash\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert script is not None
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script[1].replace("http://127.0.0.1:8000", hyperdial.url)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "event: end" in done.stdout
    assert '"verdict":' in done.stdout
    assert re.search(r"^0,1,.*0\.1", done.stdout, re.MULTILINE)
    assert (tmp_path / "weights.safetensors").stat().st_size > 1000


def test_help_tells_the_exit_codes(hyperdial: CommandLine) -> None:
    run = hyperdial("submit", "--help")
    assert run.code == 0
    assert "Exit codes: 0" in run.out
    assert "130" in run.out
