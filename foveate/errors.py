"""One exception family: what was given, what is allowed, what to do."""


class FoveateError(ValueError):
    """A user's mistake in three parts; `str()` shows them on three lines.

    given: what foveate was handed, named so that the user recognises it.
    allowed: what would have been accepted.
    do: the next thing to type or change.
    """

    def __init__(self, given: str, allowed: str, do: str):
        self.given, self.allowed, self.do = given, allowed, do
        super().__init__(f"given:   {given}\nallowed: {allowed}\ndo:      {do}")

    def __reduce__(self):
        return type(self), (self.given, self.allowed, self.do)
