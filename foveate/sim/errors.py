"""What is wrong with a machine file or a workload, in three parts like every message of foveate."""


class SimError(ValueError):
    """A user's mistake: what was given, what is allowed, what to do. `foveate.simulate` shows it as a FoveateError."""

    def __init__(self, given: str, allowed: str, do: str):
        self.given, self.allowed, self.do = given, allowed, do
        super().__init__(f"given:   {given}\nallowed: {allowed}\ndo:      {do}")

    def __reduce__(self):
        return type(self), (self.given, self.allowed, self.do)
