"""Tasks on units in time: what pipelined accelerators need beyond a sum of operations.

A task works on one unit for some cycles. It starts when its unit is free, when every task `after` which it comes has ended, and
one step after the start of every task whose results it takes as they come (`follows`), or later, so that it ends no earlier than
one step after the last of those results: a quick unit does not wait with a slow one, but does something else first. A unit that
is free takes the task that can begin first, and of several the one that was given first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

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
        return max((event.end for event in self.events), default=0.0) - min((event.start for event in self.events), default=0.0)

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

    def shifted(self, cycles: float) -> "Timeline":
        """The same, so many cycles later."""
        return Timeline(tuple(Event(event.task, event.start + cycles, event.end + cycles) for event in self.events))

    def exposed(self) -> dict[str, float]:
        """Cycles of the whole that each task stands for: at every moment the one on the busiest unit; these add up to `cycles`."""
        busy, running, now = self.busy(), [], min((event.start for event in self.events), default=0.0)
        added = {event.task.name: 0.0 for event in self.events}
        coming = sorted(self.events, key=lambda event: event.start, reverse=True)
        while coming or running:
            end = min([event.end for event in running] + [event.start for event in coming[-1:]])
            if running:
                added[max(running, key=lambda event: busy[event.task.unit]).task.name] += end - now
            now, running = end, [event for event in running if event.end > end]
            while coming and coming[-1].start <= now:
                running.append(coming.pop())
        return added


def schedule(tasks: Sequence[Task]) -> Timeline:
    """Places tasks in time. Raises SimError for two tasks of one name and for a task that waits for one not given before it."""
    queues: dict[str, _Queue] = {}
    waiting, behind = _waiting(tasks)
    placed: list[Event | None] = [None] * len(tasks)
    for number, missing in enumerate(waiting):
        queue = queues.setdefault(tasks[number].unit, _Queue())
        if not missing:
            queue.add(number, 0.0)
    starts = {name: number for number, name in enumerate(task.name for task in tasks)}
    for _ in tasks:
        queue = min((queue for queue in queues.values() if queue.tasks), key=lambda queue: queue.begin)
        number, start = queue.take()
        task = tasks[number]
        placed[number] = Event(task, start, start + task.cycles)
        queue.free = start + task.cycles
        for other in behind[number]:
            waiting[other] -= 1
            if not waiting[other]:
                queues[tasks[other].unit].add(other, _ready(tasks[other], placed, starts))
    return Timeline(tuple(placed))


class _Queue:
    """Tasks of one unit that wait for it alone. free: when it is. begin: when the next of them can."""

    def __init__(self):
        self.free, self.tasks = 0.0, []

    @property
    def begin(self) -> float:
        return max(self.free, self.tasks[0][0])

    def add(self, number: int, ready: float) -> None:
        heappush(self.tasks, (ready, number))

    def take(self) -> tuple[int, float]:
        """The task to run now, and its start: of those that are ready when the first can begin, the one that was given first."""
        start, open_ = self.begin, []
        while self.tasks and self.tasks[0][0] <= start:
            open_.append(heappop(self.tasks))
        first = min(open_, key=lambda task: task[1])
        for task in open_:
            if task is not first:
                heappush(self.tasks, task)
        return first[1], start


def _waiting(tasks: Sequence[Task]) -> tuple[list[int], list[list[int]]]:
    """How many tasks each waits for, and which wait for it."""
    numbers: dict[str, int] = {}
    waiting, behind = [], [[] for _ in tasks]
    for number, task in enumerate(tasks):
        needs = dict.fromkeys((*task.after, *task.follows))
        unknown = [name for name in needs if name not in numbers]
        if unknown or task.name in numbers or task.cycles < 0:
            raise SimError(
                f"task {task.name!r} of {task.cycles:g} cycles that waits for {', '.join(unknown) or 'nothing new'}",
                "tasks of distinct names and of 0 cycles or more, each after those it waits for",
                "put the task behind them",
            )
        numbers[task.name] = number
        waiting.append(len(needs))
        for name in needs:
            behind[numbers[name]].append(number)
    return waiting, behind


def _ready(task: Task, placed: Sequence[Event | None], numbers: dict[str, int]) -> float:
    """When the last of what a task waits for lets it begin."""
    follows = [placed[numbers[name]] for name in task.follows]
    first = [max(event.start + task.step, event.end + task.step - task.cycles) for event in follows]
    return max([*(placed[numbers[name]].end for name in task.after), *first])
