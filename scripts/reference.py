"""Write the pages of docs/reference from the code, so that they say what it does. `--check` only compares.

python scripts/reference.py [--check]
"""

import inspect
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

import typer
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from service.cli import make_app
from service.cli.exits import EXIT_CODES
from service.settings import SECRETS, Settings
from service.spec.base import Spec
from service.spec.capabilities import CAPABILITIES
from service.spec.job import JobSpec

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "reference"
NOTE = "<!-- Written by scripts/reference.py from the code: change it there. -->"


def pages() -> dict[str, str]:
    """The pages by file name."""
    return {
        "specification.md": specification(),
        "settings.md": settings(),
        "command-line.md": command_line(),
    }


def specification() -> str:
    """Every part of a job specification."""
    parts = list(dict.fromkeys(specs_in(JobSpec)))
    lines = [
        NOTE,
        "# The job specification",
        "",
        "What `POST /v1/jobs` takes. Unknown fields are refused, and numbers are not read out of strings. "
        "A dry run (`hyperdial submit --dry-run`) fills in all defaults. The shortest one is "
        '`{"data": {"dataset": "builtin:digits"}}`.',
        "",
        "## What can be learned",
        "",
        "| method | model | regularizers |",
        "| --- | --- | --- |",
    ]
    for method, models in sorted(CAPABILITIES.items()):
        for model, regularizers in sorted(models.items()):
            names = ", ".join(f"`{name}`" for name in sorted(regularizers))
            lines.append(f"| `{method}` | `{model}` | {names} |")
    for part in parts:
        kind = part.model_fields["kind"].default if "kind" in part.model_fields else None
        lines += ["", f"## {part.__name__}{f': `{kind}`' if kind else ''}", "", prose(part.__doc__)]
        source = getattr(part, "source", None)
        if source:
            lines += ["", f"Source: {source}"]
        fields = {name: field for name, field in part.model_fields.items() if name != "kind"}
        if fields:
            lines += ["", "| field | is | default | |", "| --- | --- | --- | --- |"]
            lines += [
                f"| `{name}` | {shown(field.annotation)}{limits(field)} | {default(field)} "
                f"| {cell(field.description)} |"
                for name, field in fields.items()
            ]
    return "\n".join(lines) + "\n"


def settings() -> str:
    """Every setting."""
    lines = [
        NOTE,
        "# Settings",
        "",
        "Environment variables, read once when a process starts. All processes of a service take the same ones.",
        "",
        "| variable | default | |",
        "| --- | --- | --- |",
    ]
    for name, field in Settings.model_fields.items():
        choices = ""
        if isinstance(field.annotation, type) and issubclass(field.annotation, Enum):
            choices = f" One of {', '.join(f'`{choice.value}`' for choice in field.annotation)}."
        lines.append(f"| `HYPERDIAL_{name.upper()}` | {default(field)} | {cell(field.description)}{choices} |")
    files = ", ".join(f"`HYPERDIAL_{name.upper()}_FILE`" for name in SECRETS)
    lines += [
        "",
        f"{files} name files to read those settings from, as container secrets do it.",
        "",
        "The command line also reads `HYPERDIAL_URL`, the server, and `HYPERDIAL_API_KEY` or `HYPERDIAL_API_KEY_FILE`.",
        "",
        "A file store behind a URL takes its credentials from the environment as its own tools do: for S3-like stores "
        "`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL`, and `AWS_ALLOW_HTTP=true` "
        "where there is no TLS.",
    ]
    return "\n".join(lines) + "\n"


def command_line() -> str:
    """Every command."""
    lines = [
        NOTE,
        "# The command line",
        "",
        "`hyperdial COMMAND --help` says the same. Commands that work with jobs and datasets talk to a server "
        "(`--url`, `HYPERDIAL_URL`); those that run or manage the service read its [settings](settings.md).",
        "",
        "| exit code | means |",
        "| ---: | --- |",
        *(f"| {code.value} | {meaning} |" for code, meaning in EXIT_CODES.items()),
    ]
    for path, command in commands(typer.main.get_command(make_app()), ()):
        arguments = " ".join(
            (param.metavar or param.name).upper() for param in command.params if param.param_type_name == "argument"
        )
        title = " ".join(["hyperdial", *path, arguments]).strip()
        lines += ["", f"## `{title}`", "", prose(command.help)]
        options = [
            param
            for param in command.params
            if param.param_type_name == "option" and "--help" not in param.opts and not getattr(param, "hidden", False)
        ]
        if options:
            lines += ["", "| option | |", "| --- | --- |"]
            for param in options:
                names = ", ".join(f"`{name}`" for name in param.opts)
                variable = f" (`{param.envvar}`)" if getattr(param, "envvar", None) else ""
                lines.append(f"| {names} | {cell(getattr(param, 'help', ''))}{variable} |")
    return "\n".join(lines) + "\n"


def commands(group: object, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], object]]:
    """Every command below a group, with its path."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def specs_in(annotation: object) -> Iterator[type[Spec]]:
    """Every specification class that a field may hold, from the outside in."""
    if get_origin(annotation) is Annotated:
        yield from specs_in(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType, list):
        for part in get_args(annotation):
            yield from specs_in(part)
    elif isinstance(annotation, type) and issubclass(annotation, Spec):
        yield annotation
        for field in annotation.model_fields.values():
            yield from specs_in(field.annotation)


def shown(annotation: object) -> str:
    """A type in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return shown(arguments[0])
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(shown(part) for part in arguments))
    if origin is list:
        return f"list of {shown(arguments[0])}"
    if origin is dict:
        return f"object of {shown(arguments[1])}"
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " or ".join(f"`{choice.value}`" for choice in annotation)
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        kind = annotation.model_fields.get("kind")
        return f"[{kind.default if kind else annotation.__name__}](#{anchor(annotation)})"
    names = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "null"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def anchor(part: type[Spec]) -> str:
    """The address of a part on its page."""
    kind = part.model_fields["kind"].default if "kind" in part.model_fields else None
    return f"{part.__name__.lower()}{f'-{kind}' if kind else ''}"


def limits(field: FieldInfo) -> str:
    """The bounds of a number."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [
        f"{sign} {bound}" if isinstance(bound := getattr(item, name), int) else f"{sign} {bound:g}"
        for item in field.metadata
        for name, sign in signs.items()
        if hasattr(item, name)
    ]
    return f", {', '.join(found)}" if found else ""


def default(field: FieldInfo) -> str:
    """A default as JSON would have it."""
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "required"
    return literal(value)


def literal(value: object) -> str:
    """A value as JSON would have it."""
    match value:
        case None:
            return "null"
        case bool():
            return f"`{str(value).lower()}`"
        case SecretStr():
            return f"`{value.get_secret_value()}`"
        case Enum():
            return f"`{value.value}`"
        case Spec():
            kind = getattr(value, "kind", None)
            return f"`{kind}`" if kind else "its defaults"
        case float():
            return f"`{value:g}`"
        case "":
            return "empty"
        case list():
            return ", ".join(literal(item) for item in value) or "none"
        case dict():
            return "none"
        case _:
            return f"`{value}`"


def prose(text: str | None) -> str:
    """A docstring as a paragraph or several."""
    return inspect.cleandoc(text or "").strip()


def cell(text: str | None) -> str:
    """Text in a table."""
    return " ".join((text or "").replace("|", "\\|").split())


def main() -> None:
    """Write the pages, or with `--check` end badly if they would change."""
    stale = []
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        file = FOLDER / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            stale.append(name)
            if "--check" not in sys.argv[1:]:
                file.write_text(text, encoding="utf-8")
    if stale and "--check" in sys.argv[1:]:
        sys.exit(f"out of date: {', '.join(stale)}; run python scripts/reference.py")


if __name__ == "__main__":
    main()
