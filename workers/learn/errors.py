"""What the mathematics refuses."""


class LearnError(Exception):
    """The problem and what was asked of it do not fit together.

    Raised only when a contract is broken (a wrong shape, a method that cannot take this problem); a computation
    that merely failed returns its residual and status, and the method decides. A subclass's docstring is its
    message where it is raised without one.
    """

    def __str__(self) -> str:
        """Return the message, or the first paragraph of the class's docstring."""
        given = super().__str__()
        if given:
            return given
        doc = type(self).__doc__ or type(self).__name__
        return " ".join(doc.split("\n\n")[0].split())


class AllDiverged(LearnError):
    """No trial ended with finite losses."""
