"""Text of programs, made storable."""


def storable(text: str) -> str:
    """Return `text` with what a database cannot store, NUL and lone surrogates, replaced by U+FFFD or `?`."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")
