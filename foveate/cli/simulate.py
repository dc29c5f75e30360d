"""targets, simulate: machines, and what a plan costs on them, without torch for backbones that have a card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.cli.answer import answering, note, table
from foveate.cli.options import Json, ModelOrRun, PlanText
from foveate.cli.seen import Exits, Fractions, Tokens, TraceOf, exits_of, fractions_of, tokens_of, trace_of
from foveate.errors import FoveateError

if TYPE_CHECKING:
    from collections.abc import Callable

    from foveate.simulated import Simulation


def targets(
    what: Annotated[
        str | None, typer.Argument(metavar="[check] [TARGET]", show_default=False, help="A target to explain; `check FILE` for a machine file of your own.")
    ] = None,
    file: Annotated[str | None, typer.Argument(metavar="[FILE]", show_default=False, help="The machine file to check (TOML).")] = None,
    toml: Annotated[bool, typer.Option("--toml", help="Print the target's machine file itself, to start your own from.")] = False,
    json: Json = False,
) -> None:
    """List machines to simulate on, explain one, or check your own.

    A machine is one TOML file: arrays, processors, memories, and which operation runs where. Every number has its unit in the name of its
    key, and may say where it comes from. `foveate targets check FILE` lists all mistakes at once, or explains what the file describes.
    """
    from foveate import sim
    from foveate.sim.catalog import SHIPPED
    from foveate.sim.explain import explain
    from foveate.simulation import machine_of

    with answering(json) as answer:
        if what is None:
            machines = [explain(machine_of(name)) for name in sim.targets()]
            keys = ("target", "kind", "about", "peak_gmac_per_s", "bandwidth_gb_s", "power_w")
            answer.data = {"targets": [{key: one[key] for key in keys} for one in machines]}
            shown = table("target", "kind", "GMAC/s", "GB/s", "W", "about", left=2)
            shown.columns[5].justify = "left"
            for one in machines:
                shown.add_row(one["target"], one["kind"], *(_figure(one[key]) for key in ("peak_gmac_per_s", "bandwidth_gb_s", "power_w")), one["about"])
            answer.shown = [shown, "A roofline is for planning: no program is as fast as it says. A table holds measurements."]
            return
        if what == "check" and file is None:
            raise FoveateError("`foveate targets check`", "foveate targets check FILE.toml", "name the machine file")
        if what != "check" and file is not None:
            raise FoveateError(f"`foveate targets {what} {file}`", "one target, or check FILE", f"write foveate targets {what}")
        name = file if what == "check" else what
        answer.data = explain(machine_of(name))
        shipped = SHIPPED / f"{name.partition('@')[0]}.toml"
        answer.shown = [(shipped if shipped.is_file() else Path(name)).read_text(encoding="utf-8").rstrip()] if toml else _explained(answer.data)


def simulate(
    model_or_run: ModelOrRun,
    plan: PlanText = None,
    target: Annotated[str, typer.Option(metavar="TARGET", help="A name of `foveate targets`, or your own machine file.")] = "zcu102",
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Equal images that run together; figures stay those of one image.")] = 1,
    trace: TraceOf = None,
    tokens: Tokens = None,
    fractions: Fractions = None,
    exits: Exits = None,
    mapping: Annotated[
        str | None, typer.Option(metavar="FILE", show_default=False, help="A TOML file of [[mapping]] tables instead of the machine's own.".replace("[", "\\["))
    ] = None,
    timeline: Annotated[
        Path | None, typer.Option(metavar="FILE", show_default=False, help="Draw when each unit works in the first block whose units overlap.")
    ] = None,
    stalls: Annotated[bool, typer.Option("--stalls", help="Let arrays wait for the memory outside (published figures do not).")] = False,
    scale_sim: Annotated[
        Path | None, typer.Option(metavar="FOLDER", show_default=False, help="Also write SCALE-Sim's configuration, topology and layout there.")
    ] = None,
    json: Json = False,
) -> None:
    """Simulate milliseconds and millijoules per image on a machine.

    A plan whose cost depends on the image needs --trace, --tokens, --exits or (for a cascade) --fractions; without them the figure is an
    upper bound and says so. In the JSON object, edp is energy times delay and edp_of_passes the sum over a cascade's passes, both in J ms; shares are
    those of the latency; operations has a row for each operation and unit.
    """
    from foveate.cli.targets import cards_of_target, plan_of, target_of
    from foveate.simulation import machine_of, simulate as simulated, write_scale_sim

    with answering(json) as answer:
        named = target_of(model_or_run)
        chosen, cards = plan_of(named, plan), cards_of_target(named)
        card, models = cards[-1], cards if len(cards) > 1 and hasattr(chosen, "efforts") else cards[-1]
        given = {"trace": trace_of(trace), "tokens": tokens_of(tokens), "fractions": fractions_of(fractions), "exits": exits_of(exits)}
        found = simulated(models, chosen, target, batch, mapping=mapping, stalls=stalls, **given)
        dense = _dense(lambda: simulated(card, None, target, batch, mapping=mapping, stalls=stalls))
        costs = {f"{figure}_dense": getattr(dense, figure, None) for figure in ("latency_ms", "energy_mj")}
        answer.data = {"model": card.name, "plan": str(chosen)} | _figures(found) | costs
        answer.shown = [f"{card.name}, {chosen}", found.table(), _units(found), _summary(found, dense)]
        if scale_sim is not None:
            paths = write_scale_sim(scale_sim, found, machine_of(target))
            answer.data["scale_sim"] = paths
            command = f"-c {paths['config']} -t {paths['topology']} -l {paths['layout']} -i gemm"
            answer.shown.append(f"SCALE-Sim: python -m scalesim.scale {command}")
        if timeline is not None:
            _draw(found, target, mapping, timeline)
            answer.data["timeline"] = timeline
            answer.shown.append(f"timeline: {timeline}")
        for text in found.remarks:
            note(text)
        if "upper bound" in found.label:
            note("this plan's cost depends on the image; give --trace RUN, --tokens N,N,..., --exits F,F,... or, for a cascade, --fractions F,F,...")


def _dense(simulated: Callable[[], Simulation]) -> Simulation | None:
    """The dense model on the same machine; None on machines that have no unit for its softmax."""
    try:
        return simulated()
    except FoveateError:
        return None


def _draw(found: Simulation, target: str, mapping: str | None, path: Path) -> None:
    """The attention of the first block whose units overlap, with what is done beforehand, into a file."""
    from foveate.report.timelines import Span, timeline_figure, write_timeline
    from foveate.simulation import timeline

    block, line = timeline(found.passes[0][0] if found.passes else found, target, mapping)
    spans = []
    for event in line.events:
        name, _, piece = event.task.name.partition("@")
        spans.append(Span(event.task.unit, name, event.start, event.end, int(piece.rpartition("#")[2])))
    mixing = [span.end for span in spans if span.start >= 0 and span.name.startswith("attn.") and "proj" not in span.name]
    last = max(mixing, default=line.cycles)
    title = f"Block {block} on {found.target}"
    write_timeline(path, timeline_figure(spans, title, -0.3 * last, last, "0: the projections are done; figures on the bars: heads"))


def _figures(found: Simulation) -> dict[str, Any]:
    rows = [
        {"operation": cost.origin, "kind": cost.kind, "unit": cost.unit, "cycles": cost.cycles, "latency_ms": cost.latency_ms, "energy_mj": cost.energy_mj}
        for cost in found.costs
    ]
    units = {unit: {"latency_ms": ms, "energy_mj": found.by_unit("energy_mj")[unit]} for unit, ms in found.by_unit().items()}
    passes = [{"share": share, "latency_ms": one.latency_ms, "energy_mj": one.energy_mj, "label": one.label} for one, share in found.passes]
    return {
        "target": found.target, "batch": found.batch, "label": found.label, "latency_ms": found.latency_ms, "energy_mj": found.energy_mj,
        "edp": found.edp, "edp_of_passes": found.edp_of_passes, "fps_per_w": found.fps_per_w, "images_per_s": found.images_per_s,
        "macs": found.macs, "params": found.params, "shares": found.shares(), "by_operation": found.by_operation("latency_ms"),
        "by_module": found.by_module(), "by_unit": units, "passes": passes, "operations": rows, "remarks": list(found.remarks),
    }  # fmt: skip


def _units(found: Simulation) -> Any:
    shown = table("unit", "ms", "mJ", "share of ms")
    energy = found.by_unit("energy_mj")
    for unit, latency in found.by_unit().items():
        if latency or energy[unit]:
            shown.add_row(unit, f"{latency:.3f}", _figure(energy[unit] or None), f"{100 * latency / found.latency_ms:.1f} %")
    return shown


def _summary(found: Simulation, dense: Simulation | None) -> str:
    parts = [f"{found.latency_ms:.4g} ms", f"{found.images_per_s:.4g} images/s"]
    if found.energy_mj is not None:
        parts += [f"{found.energy_mj:.4g} mJ", f"{found.edp:.4g} J ms (energy x delay)", f"{found.fps_per_w:.4g} images/s/W"]
    if found.passes and found.energy_mj is not None:
        parts.append(f"{found.edp_of_passes:.4g} J ms (sum over passes)")
    if dense is None:
        return ", ".join(parts) + "; the dense model needs units that this machine does not have"
    return ", ".join(parts) + f"; {dense.latency_ms / found.latency_ms:.3g} times as fast as the dense {dense.latency_ms:.4g} ms"


def _explained(data: dict[str, Any]) -> list[Any]:
    facts = [f"{data['target']}: {data['about']}", f"kind       {data['kind']}"]
    facts += [f"peak       {data['peak_gmac_per_s']:,.6g} GMAC/s"] if data["peak_gmac_per_s"] else []
    if data["knee_macs_per_byte"]:
        facts.append(f"roofline   {data['bandwidth_gb_s']:g} GB/s; below {data['knee_macs_per_byte']:.3g} MACs a byte the memory is the limit")
    facts += [f"power      {data['power_w']:g} W"] if data["power_w"] else []
    facts += [f"synthesis  {data['area_mm2']:.4g} mm2, {1000 * data['rated_power_w']:.5g} mW"] if data["area_mm2"] and data["rated_power_w"] else []
    facts += [f"copies     {data['copies']:.4g} of it share the work"] if data["copies"] != 1 else []
    shown = table("unit", "is", "figures", left=3)
    for unit in data["units"]:
        shown.add_row(unit["unit"], unit["is"], ", ".join(f"{key} {value}" for key, value in unit.items() if key not in ("unit", "is")))
    rules = table("runs on", "kinds", "of", "because", left=4)
    for rule in data["rules"]:
        rules.add_row(rule["unit"], ", ".join(rule["kinds"]), ", ".join(rule["origins"]), rule["why"])
    lists = [("not modelled", data["missing"]), ("without a source", data["unsourced"]), ("fitted", data["fitted"]), ("notes", data["notes"])]
    texts = [f"{title}:\n" + "\n".join(f"  {line}" for line in lines) for title, lines in lists if lines]
    figures = [f"figures    {', '.join(f'{key} {value:g}' for key, value in data['figures'].items())}"] if data["figures"] else []
    return ["\n".join(facts), *([shown] if data["units"] else []), *([rules] if data["rules"] else []), *figures, *texts]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
