"""Which version of the service this is."""

from functools import cache
from importlib import metadata


@cache
def version() -> str:
    """The installed version, or `0+source` when the sources run without having been installed."""
    try:
        return metadata.version("hyperdial")
    except metadata.PackageNotFoundError:
        return "0+source"
