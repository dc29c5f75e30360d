"""What `bench attention` found, as a report: tables with every version's time, speed-ups over lengths, crossovers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from foveate.measure.race import TAYLOR, Race, fastest
from foveate.report import Chart, Line, Results, Table

if TYPE_CHECKING:
    from foveate.card import Card
    from foveate.measure.clock import Timing

CHOSEN = ("The baseline of a row is the softmax version with the least median of that very row; all versions took turns, round by round. "
          "A speed-up is the median of the rounds' ratios with its quartiles; “helps” needs even the lower quartile above 1.")  # fmt: skip


def kernel_results(races: Sequence[Race], crossovers: Mapping[str, int | None], settings: Mapping[str, Any]) -> Results:
    """The report of attention alone. crossovers: precision -> the length from which Taylor attention helps, or None."""
    rows, every = [], list(dict.fromkeys(name for race in races for name in race.timings))
    for race in races:
        key = (race.setting.precision, f"{race.setting.tokens:,}")
        rows.append((*key, race.baseline.name, _ms(race.baseline), *_compared(race.timings, every)))
    times = [(race.setting.precision, f"{race.setting.tokens:,}", *(_ms(race.timings.get(name)) for name in every)) for race in races]
    count = settings["threads"]
    about = f"{settings['heads']} heads of {settings['dim']}, batch {settings['batch']}, {settings['device']}, {count} thread{'s' * (count != 1)}."
    crossing = [f"Crossover in {precision}: " + ("Taylor attention does not help at the longest of these lengths." if length is None else
                f"Taylor attention helps from about {length:,} tokens on (eager versions, searched between the lengths).")
                for precision, length in crossovers.items()]  # fmt: skip
    return Results(
        "Taylor attention and softmax attention", f"Taylor attention over the best softmax attention: {_said(races)}.",
        tables=(Table("Taylor attention over the best softmax version", ("precision", "tokens", "best softmax", "ms", *_heads(every)), tuple(rows), CHOSEN, 3),
                Table("Milliseconds an image of every version", ("precision", "tokens", *every), tuple(times), about, 2)),
        charts=(_speedups(races, every),), notes=(*crossing, *_left_out(races)),
        figures=dict(settings) | {
            "results": [{"tokens": race.setting.tokens, "precision": race.setting.precision} | figures_of(race.timings) for race in races],
            "crossover_tokens": dict(crossovers),
        })  # fmt: skip


def model_results(rows: Sequence[tuple[str, Card, Mapping[str, Timing], Mapping[str, str]]], settings: Mapping[str, Any]) -> Results:
    """The report of whole models; rows: precision, the backbone's card at that size, its timings, what did not compile."""
    every = list(dict.fromkeys(name for _, _, timings, _ in rows for name in timings))
    table, times, found = [], [], []
    for precision, card, timings, left_out in rows:
        tokens, baseline = card.prefix_tokens + card.blocks[0].patches, timings[next(iter(timings.values())).baseline]
        key = (precision, "x".join(map(str, card.image_size)), f"{tokens:,}")
        table.append((*key, baseline.name, _ms(baseline), *_compared(timings, every)))
        times.append((*key, *(_ms(timings.get(name)) for name in every)))
        found.append({"precision": precision, "image_size": list(card.image_size), "tokens": tokens, "left_out": dict(left_out)} | figures_of(timings))
    count = settings["threads"]
    about = f"Batch {settings['batch']}, {settings['device']}, {count} thread{'s' * (count != 1)}."
    said = ", ".join(f"{row['speedup']:.3g} times as fast at {row['image_size'][0]} px in {row['precision']}" for row in found)
    return Results(
        f"{settings['model']} with Taylor attention", f"The plan vitality() over the best dense version: {said}.",
        tables=(Table("Taylor attention over the best dense version", ("precision", "pixels", "tokens", "best dense", "ms", *_heads(every)),
                      tuple(table), CHOSEN, 4),
                Table("Milliseconds an image of every version", ("precision", "pixels", "tokens", *every), tuple(times), about, 3)),
        notes=("Dense versions differ in how softmax attention is computed; random weights, with which times are those of trained ones.",
               *(f"{name} was left out at {row['image_size'][0]} px: {why}" for row in found for name, why in row["left_out"].items())),
        figures=dict(settings) | {"plan": "vitality()", "results": found})  # fmt: skip


def figures_of(timings: Mapping[str, Timing]) -> dict[str, Any]:
    """One row for programs: the fastest Taylor version against the baseline, and every version."""
    best, baseline = fastest(timings), timings[next(iter(timings.values())).baseline]
    return {
        "version": best.name, "baseline": baseline.name, **_spread("latency_ms", best.latency_ms), **_spread("baseline_latency_ms", baseline.latency_ms),
        **_spread("speedup", best.speedup), "verdict": best.verdict, "repetitions": len(best.samples_ms),
        "versions": {name: _spread("latency_ms", t.latency_ms) | _spread("speedup", t.speedup) for name, t in timings.items()},
    }  # fmt: skip


def _said(races: Sequence[Race]) -> str:
    """The speed-up at the shortest and the longest length of each precision."""
    said = []
    for precision in dict.fromkeys(race.setting.precision for race in races):
        own = [race for race in races if race.setting.precision == precision]
        ends = " and ".join(f"{race.best.speedup.median:.3g} times as fast at {race.setting.tokens:,} tokens" for race in own[:: max(1, len(own) - 1)])
        said.append(f"{ends} in {precision}")
    return ", ".join(said)


def _spread(name: str, spread) -> dict[str, float]:
    return {name: spread.median, f"{name}_low": spread.low, f"{name}_high": spread.high}


def _heads(every: Sequence[str]) -> list[str]:
    forms = [name for name in every if name.startswith(TAYLOR)]
    return [title for name in forms for title in (f"{name} (ms)", "speed-up", "quartiles")] + ["verdict"]


def _compared(timings: Mapping[str, Timing], every: Sequence[str]) -> list[str]:
    """Time, speed-up and quartiles of each Taylor version, and the verdict on the fastest."""
    cells = []
    for name in every:
        if name.startswith(TAYLOR):
            timing = timings.get(name)
            low, high = (timing.speedup.low, timing.speedup.high) if timing else (0, 0)
            cells += [_ms(timing), f"{timing.speedup.median:.3g}", f"{low:.3g} to {high:.3g}"] if timing else ["–"] * 3
    return [*cells, fastest(timings).verdict]


def _ms(timing: Timing | None) -> str:
    return "–" if timing is None else f"{timing.latency_ms.median:.3g}" if timing.latency_ms.median < 1000 else f"{timing.latency_ms.median:.0f}"


def _speedups(races: Sequence[Race], every: Sequence[str]) -> Chart:
    lengths = np.array(sorted({race.setting.tokens for race in races}))
    lines = []
    for precision in dict.fromkeys(race.setting.precision for race in races):
        for name in (one for one in every if one.startswith(TAYLOR)):
            spread = {race.setting.tokens: race.timings[name].speedup for race in races if race.setting.precision == precision and name in race.timings}
            median, low, high = (np.array([spread[n][part] if n in spread else np.nan for n in lengths.tolist()]) for part in range(3))
            lines.append(Line(f"{precision}, {name}", median, low, high))
    return Chart("Taylor attention over the best softmax", "tokens", "times as fast", lengths, tuple(lines), "Medians and quartiles of the rounds' ratios.",
                 log=True, marks=(1.0,))  # fmt: skip


def _left_out(races: Sequence[Race]) -> list[str]:
    return [f"{name} was left out at {race.setting.tokens:,} tokens in {race.setting.precision}: {why}"
            for race in races for name, why in race.left_out.items()]  # fmt: skip
