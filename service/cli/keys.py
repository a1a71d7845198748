"""Commands about API keys. They work on the database itself: the first key is made before any can be used."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.display import age, rows_table
from service.cli.exits import CommandError, ExitCode
from service.cli.options import AsJson, err, out, print_json, print_table, settings
from service.errors import NotFound, StoreUnavailable
from service.records import KeyScope

if TYPE_CHECKING:
    from service.store import Store


@contextmanager
def _store() -> "Iterator[Store]":
    # Here, not above: other commands start faster without the store.
    from service.store import Database, Store

    try:
        database = Database(settings().database)
    except ValueError as error:
        raise CommandError(
            str(error), code=ExitCode.USAGE, hint="see HYPERDIAL_DATABASE_URL in docs/operate.md"
        ) from error
    try:
        yield Store(database)
    except StoreUnavailable as error:
        raise CommandError(
            "the database cannot be reached, or has no tables yet",
            code=ExitCode.UNREACHABLE,
            hint="check HYPERDIAL_DATABASE_URL or HYPERDIAL_DATA_DIR, run `hyperdial migrate`, then `hyperdial doctor`",
        ) from error
    finally:
        database.close()


def create_key(
    name: Annotated[str, typer.Argument(help="Whose key it is, for people.")],
    *,
    scope: Annotated[KeyScope, typer.Option(help="What it may do; each scope includes those before it.")] = (
        KeyScope.SUBMIT
    ),
    as_json: AsJson = False,
) -> int:
    """Make an API key and print it. It is shown this once: only its hash is kept."""
    with _store() as store:
        key, secret = store.keys.create(name, scope)
    if as_json:
        print_json(json.dumps({"id": key.id, "name": key.name, "scope": key.scope, "secret": secret}).encode())
        return ExitCode.OK
    out.print(secret, soft_wrap=True)
    err.print(f"{key.id}, scope {key.scope}: set it as HYPERDIAL_API_KEY; it cannot be shown again", style="dim")
    return ExitCode.OK


def list_keys(*, as_json: AsJson = False) -> int:
    """List API keys, without their secrets."""
    with _store() as store:
        keys = store.keys.list()
    if as_json:
        rows = [
            {
                "id": key.id,
                "name": key.name,
                "scope": key.scope,
                "created_at": key.created_at.isoformat(),
                "last_used_at": key.last_used_at.isoformat() if key.last_used_at else None,
                "revoked_at": key.revoked_at.isoformat() if key.revoked_at else None,
            }
            for key in keys
        ]
        print_json(json.dumps(rows).encode())
        return ExitCode.OK
    print_table(
        rows_table(
            [
                {
                    "id": key.id,
                    "name": key.name,
                    "scope": key.scope,
                    "created": age(key.created_at),
                    "last used": age(key.last_used_at),
                    "revoked": age(key.revoked_at),
                }
                for key in keys
            ],
            ("id", "name", "scope", "created", "last used", "revoked"),
        )
    )
    return ExitCode.OK


def revoke_key(key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id (key_…).")]) -> int:
    """Revoke an API key: it is refused from now on."""
    try:
        with _store() as store:
            store.keys.revoke(key_id)
    except NotFound as error:
        raise CommandError(
            f"there is no key {key_id!r}", code=ExitCode.USAGE, hint="`hyperdial key list` shows them"
        ) from error
    out.print(f"{key_id} is revoked")
    return ExitCode.OK
