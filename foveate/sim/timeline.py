"""Tasks on units in time: what pipelined accelerators need beyond a sum of operations.

A task works on one unit for some cycles. It starts when its unit is free, when every task `after` which it comes has ended, and
one step after the start of every task whose results it takes as they come (`follows`); it ends no earlier than one step after
the last of those results. Units take their tasks in the order in which they are given.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from foveate.sim.errors import SimError


@dataclass(frozen=True)
class Task:
    """Work for one unit. step: cycles between the start (or end) of a followed task and what it makes possible here."""

    name: str
    unit: str
    cycles: float
    after: tuple[str, ...] = ()
    follows: tuple[str, ...] = ()
    step: float = 1


@dataclass(frozen=True)
class Event:
    """A task with its place in time, in cycles from 0."""

    task: Task
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """Events in the order of their tasks."""

    events: tuple[Event, ...]

    @property
    def cycles(self) -> float:
        """From the first start to the last end."""
        return max((event.end for event in self.events), default=0)

    @property
    def serial_cycles(self) -> float:
        """What the same tasks take one after the other."""
        return sum(event.task.cycles for event in self.events)

    def busy(self) -> dict[str, float]:
        """Cycles that each unit works."""
        totals: dict[str, float] = {}
        for event in self.events:
            totals[event.task.unit] = totals.get(event.task.unit, 0) + event.task.cycles
        return totals

    def exposed(self) -> dict[str, float]:
        """How much later each task makes the end of all tasks before it; these add up to `cycles`."""
        end, added = 0.0, {}
        for event in self.events:
            added[event.task.name] = max(0.0, event.end - end)
            end = max(end, event.end)
        return added


def schedule(tasks: Sequence[Task]) -> Timeline:
    """Places tasks in time. Raises SimError for two tasks of one name and for a task that waits for one not given before it."""
    placed: dict[str, Event] = {}
    free: dict[str, float] = {}
    for task in tasks:
        unknown = [name for name in (*task.after, *task.follows) if name not in placed]
        if unknown or task.name in placed or task.cycles < 0:
            raise SimError(
                f"task {task.name!r} of {task.cycles:g} cycles that waits for {', '.join(unknown) or 'nothing new'}",
                "tasks of distinct names and of 0 cycles or more, each after those it waits for",
                "put the task behind them",
            )
        waits = [placed[name].end for name in task.after] + [placed[name].start + task.step for name in task.follows]
        start = max([free.get(task.unit, 0.0), *waits])
        end = max([start + task.cycles, *(placed[name].end + task.step for name in task.follows)])
        placed[task.name], free[task.unit] = Event(task, start, end), end
    return Timeline(tuple(placed.values()))
