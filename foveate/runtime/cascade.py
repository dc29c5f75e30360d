"""Cascades on engines: every effort has an engine of its own, and what a gate passes on is regrouped between them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from foveate.cascade import Cascade
from foveate.gates import Gate
from foveate.nn.gates import passes_on
from foveate.runtime.engine import Engine
from foveate.runtime.maker import Maker, precisions_of


@dataclass
class Regrouped:
    """images [B, C, H, W] -> logits [B, classes] in their order, each from the effort that answered.

    engines: one an effort, lowest first. gates: between them. ran: images that each engine has run so far.
    """

    engines: Sequence[Engine]
    gates: Sequence[Gate]
    ran: list[int] = field(default_factory=list)

    def __post_init__(self):
        self.ran = [0] * len(self.engines)

    def __call__(self, images: Tensor) -> Tensor:
        self.ran[0] += len(images)
        logits = self.engines[0](images)
        waiting = passes_on(self.gates[0], logits).nonzero()[:, 0]
        for number in range(1, len(self.engines)):
            if len(waiting) == 0:
                break
            self.ran[number] += len(waiting)
            found = self.engines[number](images if len(waiting) == len(images) else images[waiting])
            logits = logits.index_copy(0, waiting, found)
            if number < len(self.gates):
                waiting = waiting[passes_on(self.gates[number], found)]
        return logits


class CascadeMaker:
    """Makes engines of a cascade; arguments as of `load_engine`.

    The agreement of its engines is that of the effort that agrees least: behind a gate a rounding may send an image on, so that
    single logits of the whole are no measure.
    """

    def __init__(self, cascade: Cascade, example: Tensor, threads: int | None = None, tolerance: float | None = None):
        self.gates = cascade.plan.gates
        # All sizes of groups come by behind a gate: a graph compiled for each would cost more than it saves.
        self.makers = [Maker(effort, example, threads, tolerance, any_size=number > 0) for number, effort in enumerate(cascade.efforts)]

    def engine(self, backend: str, precision: str) -> Engine:
        """An engine of every effort behind the gates; raises FoveateError where one of them cannot be made or disagrees.

        In int8 the efforts that were trained with it compute in 8 bits, others, such as the dense model they come from, in float32.
        """
        own = [precisions_of(backend, maker.model) for maker in self.makers]
        mixed = precision == "int8" and any(precision in allowed for allowed in own)
        engines = [maker.engine(backend, allowed[0] if mixed else precision) for maker, allowed in zip(self.makers, own)]
        least = max((engine.agreement for engine in engines), key=lambda found: found.typical)
        limit = min((engine.max_batch for engine in engines if engine.max_batch), default=None)
        return Engine(Regrouped(engines, self.gates), backend, precision, limit, least)
