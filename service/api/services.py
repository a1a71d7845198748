"""What the API is made of, handed to it by an entry point."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

from service.files import FileStore
from service.settings import Settings
from service.store import Store

if TYPE_CHECKING:
    from service.queue import Bell  # brings all of Redis, which the API itself never speaks to


@dataclass(frozen=True)
class Services:
    """Everything outside the process that requests need."""

    settings: Settings
    store: Store
    files: FileStore
    bell: "Bell"


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


Injected = Annotated[Services, Depends(_services)]
"""The services, as a parameter of an endpoint."""
