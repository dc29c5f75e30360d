"""Trace: what really happened in one forward pass, image by image."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from operator import index
from typing import Any

import numpy as np

from foveate.errors import FoveateError


@dataclass(eq=False)
class Pass:
    """One effort's run over a part of the images of a cascade.

    effort: 1-based. images: which images of the batch ran it, in the order of `trace`, the Trace of that run.
    nan: how many of them got no probabilities, because a logit was NaN or infinite; such images count as hard.
    """

    effort: int
    images: list[int]
    trace: "Trace"
    nan: int = 0


@dataclass(eq=False)
class Trace:
    """Decisions and counts of a pass over `images` images.

    tokens[stage][image]: live tokens after that pruning stage, prefix and package tokens included.
    block_tokens[block - 1][image]: tokens that each block worked on (the cost of every plan follows from these).
    kept[stage]: bool array [images, patch slots]: which patches live on after that stage; empty if not recorded.
    after: the 1-based block behind which each stage stands.
    exits[image], efforts[image]: block of the exit taken and 1-based effort used, empty without exits or efforts.
    skipped: 1-based blocks whose attention was not computed.
    short: images that left with an answer they were not sure of, because their budget could not pay for more.
    rescued: images of which a stage wanted to keep no patch, by a threshold too high for them; the best-scored one lived on.
    passes: of a cascade, one Pass for each effort that ran, lowest first; what the efforts did stands in there, not beside it.
    """

    images: int
    tokens: list[list[int]] = field(default_factory=list)
    block_tokens: list[list[int]] = field(default_factory=list)
    kept: list[np.ndarray] = field(default_factory=list)
    after: tuple[int, ...] = ()
    exits: list[int] = field(default_factory=list)
    efforts: list[int] = field(default_factory=list)
    skipped: tuple[int, ...] = ()
    short: list[int] = field(default_factory=list)
    rescued: list[int] = field(default_factory=list)
    passes: list[Pass] = field(default_factory=list)

    def __eq__(self, other: object) -> bool:
        """Equal counts and equal decisions."""
        if not isinstance(other, Trace):
            return NotImplemented
        inner = all(one.trace == two.trace for one, two in zip(self.passes, other.passes))
        kept = len(self.kept) == len(other.kept) and all(map(np.array_equal, self.kept, other.kept))
        return self.to_json() == other.to_json() and kept and inner

    @property
    def tokens_mean(self) -> tuple[float, ...]:
        """Mean live tokens after each stage."""
        return tuple(float(np.mean(stage)) for stage in self.tokens)

    @property
    def keep_rates(self) -> tuple[float, ...]:
        """Share of patch slots alive after each stage, mean over images; needs `kept`."""
        return tuple(float(k.mean()) for k in self.kept)

    @classmethod
    def concatenate(cls, traces: list["Trace"]) -> "Trace":
        """One trace of all images of `traces`, which come from the same plan."""
        first = traces[0]
        join = lambda name: [sum((list(getattr(t, name)[i]) for t in traces), []) for i in range(len(getattr(first, name)))]
        return cls(
            images=sum(t.images for t in traces), tokens=join("tokens"), block_tokens=join("block_tokens"),
            kept=[np.concatenate([t.kept[s] for t in traces]) for s in range(len(first.kept))], after=first.after,
            exits=sum((t.exits for t in traces), []), efforts=sum((t.efforts for t in traces), []), skipped=first.skipped,
            short=_numbered(traces, "short"), rescued=_numbered(traces, "rescued"), passes=cls._joined_passes(traces))

    @classmethod
    def _joined_passes(cls, traces: list["Trace"]) -> list[Pass]:
        """The passes of each effort as one, with images counted through all of `traces`."""
        starts = _starts(traces)
        found: dict[int, list[tuple[int, Pass]]] = {}
        for start, trace in zip(starts, traces):
            for one in trace.passes:
                found.setdefault(one.effort, []).append((start, one))
        return [Pass(effort, [start + i for start, one in parts for i in one.images], cls.concatenate([one.trace for _, one in parts]),
                     sum(one.nan for _, one in parts)) for effort, parts in sorted(found.items())]

    def shuffled(self, seed: int) -> "Trace":
        """The same count of patches per image and stage at random places, nested from stage to stage.

        The fair random baseline (semantics.md 26): replay it with `model.traced(images, decisions=...)`.
        Only for backbones whose patch grid stays the same from stage to stage.
        """
        if len({k.shape for k in self.kept}) > 1:
            raise FoveateError("a trace of a hierarchical backbone (the patch grid changes between stages)",
                               "traces whose stages share one patch grid", "use the method `random` there instead")
        rng = np.random.default_rng(seed)
        order = np.argsort(rng.random(self.kept[0].shape), axis=1).argsort(axis=1) if self.kept else None
        kept = [order < k.sum(axis=1, keepdims=True) for k in self.kept]
        return Trace(images=self.images, kept=kept, after=self.after)

    def to_json(self) -> str:
        """Counts only (not which patches), enough to compute costs."""
        return json.dumps(self._to_dict())

    def _to_dict(self) -> dict[str, Any]:
        form = {"images": self.images, "after": list(self.after), "tokens": self.tokens, "block_tokens": self.block_tokens,
                "exits": self.exits, "efforts": self.efforts, "skipped": list(self.skipped), "short": self.short, "rescued": self.rescued}
        passes = [{"effort": one.effort, "images": one.images, "nan": one.nan, "trace": one.trace._to_dict()} for one in self.passes]
        return form | {"passes": passes} if passes else form

    @classmethod
    def from_json(cls, text: str) -> "Trace":
        try:
            return cls._from_dict(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise FoveateError(f"a trace that cannot be read ({type(error).__name__}: {error})",
                               "JSON written by Trace.to_json (`trace.json` of a run)",
                               "make it anew: `foveate eval RUN --trace`") from None

    @classmethod
    def _from_dict(cls, data: dict[str, Any]) -> "Trace":
        counts = {name: [[index(n) for n in row] for row in data[name]] for name in ("tokens", "block_tokens")}
        data = {"short": [], "rescued": []} | data  # traces of earlier versions are without
        flat = {name: [index(n) for n in data[name]] for name in ("after", "exits", "efforts", "skipped", "short", "rescued")}
        passes = [Pass(index(p["effort"]), [index(i) for i in p["images"]], cls._from_dict(p["trace"]), index(p["nan"])) for p in data.get("passes", ())]
        trace = cls(images=index(data["images"]), **counts, **flat | {n: tuple(flat[n]) for n in ("after", "skipped")}, passes=passes)
        rows = [*trace.tokens, *trace.block_tokens, *filter(None, (trace.exits, trace.efforts))]
        if any(len(row) != trace.images for row in rows) or len(trace.after) != len(trace.tokens):
            raise ValueError(f"its counts are not those of {trace.images} images after blocks {trace.after}")
        if trace.passes:
            _check_passes(trace)
        return trace


def _numbered(traces: list[Trace], name: str) -> list[int]:
    """The images that the field `name` of each trace lists, counted through all of `traces`."""
    return [start + i for start, trace in zip(_starts(traces), traces) for i in getattr(trace, name)]


def _starts(traces: list[Trace]) -> list[int]:
    """The number of the first image of each trace when they follow one another."""
    return np.cumsum([0, *(t.images for t in traces)]).tolist()


def _check_passes(trace: Trace) -> None:
    """Raises ValueError unless every image climbs from the first effort to the one that answered it."""
    climbed = [0] * trace.images
    for one in trace.passes:
        if one.trace.images != len(one.images) or not 0 <= one.nan <= len(one.images):
            raise ValueError(f"effort {one.effort} has a trace of {one.trace.images} images and {one.nan} without an answer for {len(one.images)}")
        for image in one.images:
            if not 0 <= image < trace.images or climbed[image] != one.effort - 1:
                raise ValueError(f"image {image} runs effort {one.effort} without the efforts below it")
            climbed[image] = one.effort
    if climbed != trace.efforts:
        raise ValueError("its efforts are not those of its passes")
