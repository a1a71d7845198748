"""What the data may be refused for."""

from typing import final


@final
class BadData(Exception):
    """The data cannot be used; the message is a sentence for the person who sent it."""
