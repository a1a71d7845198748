"""The documentation says what the code does: nothing is missing, examples work, links lead somewhere."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.jobs import SPECS
from service.cli import make_app
from service.cli.exits import EXIT_CODES
from service.records import FailureCode, JobStatus, ReasonCode
from service.settings import Settings
from service.spec.capabilities import CAPABILITIES
from service.spec.job import JobSpec
from workers.verdict import Verdict

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
README = (ROOT / "README.md").read_text()
OPERATE = (ROOT / "docs" / "operate.md").read_text()


def blocks(text: str, language: str) -> Iterator[str]:
    yield from re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_reference_is_what_the_code_says() -> None:
    checked = subprocess.run(
        [sys.executable, "scripts/reference.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("status", JobStatus)
def test_every_status_is_explained_to_newcomers_and_operators(status: JobStatus) -> None:
    assert re.search(rf"^\|.*`{status}`", README, re.MULTILINE)
    assert re.search(rf"^\| `{status}` \|", OPERATE, re.MULTILINE)


@pytest.mark.parametrize("code", [*FailureCode, *ReasonCode])
def test_every_code_is_explained_with_what_to_do(code: FailureCode | ReasonCode) -> None:
    assert re.search(rf"^\| (`\w+`, )*`{code}`", OPERATE, re.MULTILINE)


@pytest.mark.parametrize("verdict", Verdict)
def test_every_verdict_is_explained(verdict: Verdict) -> None:
    assert re.search(rf"^\| `{verdict}` \|", (ROOT / "docs" / "quickstart.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("method", CAPABILITIES)
def test_every_method_has_a_page(method: str) -> None:
    assert (ROOT / "docs" / "methods" / f"{method}.md").read_text().startswith(f"# `{method}`")


def test_every_setting_has_a_description() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_every_command_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "reference" / "command-line.md").read_text()
    app = make_app()
    names = [command.name for command in app.registered_commands]
    for group in app.registered_groups:
        assert group.typer_instance is not None
        names += [f"{group.name} {command.name}" for command in group.typer_instance.registered_commands]
    assert len(names) > 20
    for name in names:
        assert re.search(rf"^## `hyperdial {name}\b", page, re.MULTILINE), name
    for code, meaning in EXIT_CODES.items():
        assert f"| {code.value} | {meaning} |" in page


def test_commands_in_the_documentation_exist() -> None:
    page = (ROOT / "docs" / "reference" / "command-line.md").read_text()
    for file in PAGES:
        for block in blocks(file.read_text(), "console"):
            for line in block.splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if not line.startswith("$ hyperdial "):
                    continue
                name = " ".join(words[1:3]) if words[1] in ("dataset", "key") else words[1]
                assert f"## `hyperdial {name}" in page, line
                section = page.split(f"## `hyperdial {name}", 1)[1].split("\n## ", 1)[0]
                for word in words:
                    if word.startswith("--"):
                        assert f"`{word.partition('=')[0]}`" in section, line


def test_make_targets_in_the_documentation_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = {name for file in PAGES for name in re.findall(r"(?:^\$ |`)make ([a-z-]+)", file.read_text(), re.MULTILINE)}
    assert {"demo", "test", "picture"} <= named
    for name in named:
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), name


def test_the_two_commands_of_a_newcomer_come_first() -> None:
    first = next(iter(blocks(README, "console")))
    assert [line.split("#")[0].split() for line in first.splitlines()] == [["$", "make", "demo"], ["$", "make", "test"]]


def specifications() -> Iterator[tuple[str, str]]:
    for file in PAGES:
        text = file.read_text()
        for block in blocks(text, "json"):
            if '"data"' in block:
                yield file.name, block
        for body in re.findall(r"-d '(\{.*?\})'", text, re.DOTALL):
            yield file.name, body


def test_every_specification_in_the_documentation_is_valid() -> None:
    found = list(specifications())
    assert {"README.md", "quickstart.md", "api.md"} <= {name for name, _ in found}
    for _, text in found:
        JobSpec.model_validate(json.loads(text))
    for spec in SPECS:
        JobSpec.model_validate(spec)


def test_links_lead_somewhere() -> None:
    for file in PAGES:
        text = re.sub(r"```.*?```", "", file.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith(("http://", "https://")):
                continue
            path, _, anchor = target.partition("#")
            linked = (file.parent / path) if path else file
            assert linked.exists(), f"{file.name}: {target}"
            if anchor:
                assert anchor in anchors(linked.read_text()), f"{file.name}: {target}"


def anchors(text: str) -> set[str]:
    """The addresses of headings, as they are commonly made."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_changelog_knows_this_version() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert f"## {version[1]}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_dependency_has_its_reason_and_its_pin() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    reasons = (ROOT / "docs" / "design.md").read_text()
    pins = (ROOT / "constraints.txt").read_text().lower().replace("_", "-")
    for requirement in [*project["dependencies"], *extras["worker"], *extras["embedded"], *extras["postgres"]]:
        name = re.split(r"[\[<>=;]", requirement)[0]
        assert re.search(rf"\b{name}\b", reasons), name
    for requirement in [*project["dependencies"], *(entry for extra in extras.values() for entry in extra)]:
        name = re.split(r"[\[<>=;]", requirement)[0].lower()
        assert re.search(rf"^{name}==", pins, re.MULTILINE), name
