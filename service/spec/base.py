"""What every part of a job specification has in common."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict
from pydantic_core import PydanticCustomError


class Spec(BaseModel):
    """A frozen value that refuses unknown fields and non-finite numbers.

    Numbers and strings are not converted into one another: a client that sends `"10"` for a number
    has made a mistake that it wants to hear about.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


def _storable(text: str) -> str:
    # PostgreSQL stores neither; without this check they would surface as a server error.
    if "\x00" in text:
        raise ValueError("must not contain the NUL character")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("must be valid Unicode: a lone surrogate was found") from None
    return text


SafeText = Annotated[str, AfterValidator(_storable)]
"""A string that every database can store: no NUL, no lone surrogate."""


def wrong_at(field: str, message: str) -> PydanticCustomError:
    """Return the error of a check over several fields, placed at the one that the client should change.

    Args:
        field: path below the model that checks, `objective/loss`; the API appends it to the model's own place.
        message: what was found and what would be accepted.
    """
    return PydanticCustomError("value_error", "{message}", {"message": message, "field": field})
