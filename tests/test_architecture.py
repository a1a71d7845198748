"""The rooms of the house: who may know whom, what starts fast, and that nothing is left without a builder or a word."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Union, get_args, get_origin

import pytest
from pydantic import BaseModel

from service.spec import capabilities
from service.spec.base import Spec
from service.spec.job import JobSpec

ROOT = Path(__file__).resolve().parent.parent


def specs_in(annotation: object) -> Iterator[type[Spec]]:
    """Every specification class that a field may hold."""
    if get_origin(annotation) is Annotated:
        yield from specs_in(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType, list):
        for part in get_args(annotation):
            yield from specs_in(part)
    elif isinstance(annotation, type) and issubclass(annotation, Spec):
        yield annotation
        for field in annotation.model_fields.values():
            yield from specs_in(field.annotation)


ALL_SPECS = sorted(set(specs_in(JobSpec)), key=lambda found: found.__name__)
KINDS = [(found, found.model_fields["kind"].default) for found in ALL_SPECS if "kind" in found.model_fields]


def test_the_contracts_between_rooms_are_kept() -> None:
    checked = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "0 broken" in checked.stdout


@pytest.mark.parametrize(
    ("module", "strangers"),
    [
        ("service.api.app", {"torch", "numpy", "scipy", "sklearn", "workers"}),
        ("service.cli", {"torch", "numpy", "scipy", "sklearn", "workers", "fastapi", "sqlalchemy"}),
        ("workers.supervisor", {"torch", "numpy", "scipy", "sklearn", "fastapi"}),
        ("workers.reconciler", {"torch", "numpy", "scipy", "sklearn", "fastapi"}),
        ("service.spec.job", {"torch", "numpy", "sqlalchemy", "redis", "rq", "fastapi"}),
    ],
)
def test_what_starts_fast_loads_nothing_heavy(module: str, strangers: set[str]) -> None:
    code = f"import {module}, sys, time; print(time.process_time()); print(*sys.modules)"
    runs = [
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for _ in range(3)
    ]
    loaded = set(runs[0].split("\n", 1)[1].split())
    assert loaded.isdisjoint(strangers), sorted(loaded & strangers)
    # CPU time and the best of three, since other tests run beside this one.
    assert min(float(run.split("\n", 1)[0]) for run in runs) < 1.0


def imports_of(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            yield node.module


def test_one_module_on_each_side_knows_the_message_queue() -> None:
    knowing = {
        file.relative_to(ROOT).as_posix()
        for folder in ("service", "workers")
        for file in (ROOT / folder).rglob("*.py")
        if any(name.split(".")[0] == "rq" for name in imports_of(file))
    }
    assert knowing == {"service/queue.py", "workers/bell.py"}


def test_sql_is_only_in_the_store() -> None:
    knowing = {
        file.relative_to(ROOT / "service").parts[0]
        for file in (ROOT / "service").rglob("*.py")
        if any(name.split(".")[0] == "sqlalchemy" for name in imports_of(file))
    }
    # The doctor compares the database's clock with its own.
    assert knowing <= {"store", "tables.py", "cli"}
    for file in (ROOT / "workers").rglob("*.py"):
        assert not any(name.split(".")[0] == "sqlalchemy" for name in imports_of(file)), file


def test_nothing_reads_pickles() -> None:
    for folder in ("service", "workers"):
        for file in (ROOT / folder).rglob("*.py"):
            assert not {"pickle", "cloudpickle", "joblib", "dill", "shelve", "marshal"} & set(imports_of(file)), file
            assert not re.search(r"torch\.load\(|allow_pickle=True|yaml\.load\(", file.read_text()), file


def test_nothing_happens_when_a_module_is_loaded() -> None:
    """Settings are read, and engines made, by entry points only."""
    for folder in ("service", "workers"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.parse(file.read_text()).body:
                calls = [inner for inner in ast.walk(node) if isinstance(inner, ast.Call)]
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.If):
                    continue
                names = {ast.unparse(call.func) for call in calls}
                assert names.isdisjoint({"Settings", "create_engine", "Database", "Redis", "FastAPI", "create_app"}), (
                    file
                )


def test_a_class_is_abstract_or_final() -> None:
    """Nobody overrides a concrete method."""
    concrete: dict[str, set[str]] = {}
    bases: list[tuple[Path, ast.ClassDef]] = []
    for folder in ("service", "workers"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ClassDef):
                    bases.append((file, node))
                    concrete[node.name] = {
                        part.name
                        for part in node.body
                        if isinstance(part, ast.FunctionDef)
                        and not part.name.startswith("__")
                        and not any("abstractmethod" in ast.unparse(mark) for mark in part.decorator_list)
                    }
    for file, node in bases:
        methods = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
        for base in node.bases:
            inherited = concrete.get(ast.unparse(base).rpartition(".")[2], set())
            # A validator of the same private name belongs to its own class.
            overridden = {name for name in methods & inherited if not name.startswith("_")}
            assert not overridden, f"{file}: {node.name} overrides {overridden}"


def test_there_are_no_names_that_say_nothing() -> None:
    for folder in ("service", "workers"):
        for file in (ROOT / folder).rglob("*"):
            assert file.stem not in ("utils", "util", "helpers", "helper", "common", "misc", "manager"), file


def test_every_kind_of_a_specification_says_what_it_is() -> None:
    assert len(KINDS) > 10
    for found, kind in KINDS:
        assert found.__doc__, found
        assert found.model_json_schema()["properties"]["kind"]["const"] == kind


def test_every_kind_is_built_somewhere_and_by_one_exhaustive_match() -> None:
    """mypy proves by `assert_never` that no kind is forgotten; this proves that the matches are there."""
    sources = {file: file.read_text() for file in (ROOT / "workers").rglob("*.py")}
    matches = "\n".join(source for source in sources.values() if "assert_never" in source)
    for found, _ in KINDS:
        name = found.__name__
        union = [other for other, _ in KINDS if _discriminates(other, found)]
        if len(union) > 1:  # with one member there is nothing to choose
            assert re.search(rf"case (?:\w+\.)?(?:\w+\(\) \| )*{name}\(|isinstance\([^)]*\b{name}\b", matches), name


def _discriminates(one: type[BaseModel], other: type[BaseModel]) -> bool:
    return one.__module__ == other.__module__


def test_the_table_of_capabilities_speaks_of_kinds_that_there_are() -> None:
    kinds = {kind for _, kind in KINDS}
    for method, models in capabilities.CAPABILITIES.items():
        assert {method, *models} <= kinds
        for regularizers in models.values():
            assert regularizers <= kinds


def test_no_word_of_the_workshop_is_left_in_the_house() -> None:
    words = re.compile(r"\bTODO\b|\bFIXME\b|\bXXX\b|/work/|/root/")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    for name in tracked:
        file = ROOT / name
        if file.suffix in (".py", ".md", ".toml", ".yml", ".ini") and file.is_file() and file != Path(__file__):
            assert not words.search(file.read_text()), name
