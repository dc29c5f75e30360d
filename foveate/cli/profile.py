"""profile: where the milliseconds of an attention go, step by step."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.cli.answer import answering, bar, sheets, waiting
from foveate.cli.options import Device, EnergyTarget, Json, PlanText, Threads
from foveate.cli.segments import profile_segments
from foveate.errors import FoveateError

if TYPE_CHECKING:
    from foveate.measure.attention import Profile
    from foveate.measure.clock import Timing
    from foveate.report import Results

WHAT = ("attention", "segments")
STEPS = {
    "k_hat": "1: centred keys", "g": "2: G", "sums": "3: sums of keys and values", "t_d": "4: t_D", "t_n": "5: T_N", "z": "6: Z",
    "qk": "1: Q K^T", "softmax": "2: S = softmax", "av": "3: S V", "closed form": "the same in one go: closed form",
    "fused softmax": "the same in one go: fused",
    "qkv": "1: Q, K, V", "map": "2: softmax attention map", "score": "3: attention score S V", "proj": "output projection", "mlp": "MLP",
}  # fmt: skip


def profile(
    ctx: typer.Context,
    what: Annotated[str, typer.Argument(metavar="WHAT", show_default=False, help="attention, or segments (from exit to exit).")],
    model_or_run: Annotated[
        str, typer.Argument(metavar="MODEL_OR_RUN", help="A backbone's name or a run folder: its shapes count, weights and data do not.")
    ] = "deit_tiny_patch16_224",
    plan: PlanText = None,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Images a call.")] = 1,
    precision: Annotated[str, typer.Option(metavar="PRECISION", help="fp32 or bf16.")] = "fp32",
    threads: Threads = None,
    repetitions: Annotated[int, typer.Option(min=1, metavar="N", help="Rounds that count; each runs every step once, in turn.")] = 30,
    warmup: Annotated[int, typer.Option(min=0, metavar="N", help="Rounds before them that do not count.")] = 3,
    device: Device = "cpu",
    energy: EnergyTarget = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", show_default=False, help="Also write results.json and report.html there.")] = None,
    json: Json = False,
) -> None:
    """Measure each step of a backbone's attention by itself, on this machine.

    The six steps of Algorithm 1 of ViTALiTy stand beside the three of softmax attention, over all heads and layers, as in Table II of that
    paper; then come the three steps of multi-head attention as in its Fig. 1, with the output projection and the MLP. Milliseconds an image,
    medians with their quartiles. Tensors are random. The paper's own columns are of an edge GPU and not comparable.

    segments: what each segment between two exits (each effort of a cascade) takes for groups of 1 to --batch images, and costs in millijoules:
    the table that budgets go by. A run keeps it as segment_costs.json.
    """
    from foveate.cli.targets import card_of_target, target_of

    with answering(json) as answer:
        if what not in WHAT:
            raise FoveateError(f"profile {what}", ", ".join(WHAT), "choose one of these")
        if what == "segments":
            profile_segments(answer, model_or_run, plan, batch, precision, threads, device, energy, out)
            return
        started, clock = time.strftime("%Y-%m-%dT%H:%M:%S%z"), time.perf_counter()
        card = card_of_target(target_of(model_or_run))
        with waiting("loading torch"):
            import torch

            from foveate.cli.judge import chosen_device
            from foveate.machine import machine
            from foveate.measure.attention import profile_attention
            from foveate.report import Made, save_results, write_report

            if threads:
                torch.set_num_threads(threads)
            place, found = chosen_device(device), machine()
        with bar("timing") as progress:
            measured = profile_attention(card, batch, precision, place, repetitions, warmup, progress)
        settings = {"model": card.name, "batch": batch, "precision": precision, "device": place, "threads": torch.get_num_threads()}
        made = Made(ctx.obj, round(time.perf_counter() - clock, 1), started, versions=found["versions"])
        results = profile_results(measured, settings, found, made)
        answer.data, answer.shown = results.figures, sheets(results)
        if out is not None:
            save_results(out, results)
            answer.shown.append(f"report: {write_report(out / 'report.html', results)}")


def profile_results(measured: Profile, settings: dict[str, Any], machine: dict[str, Any], made: Any) -> Results:
    """The profile as a report: Table II, Fig. 1, and the same as bars."""
    from foveate.report import Bar, Bars, Results, Table

    mha = {name: measured.mha[name] for name in ("qkv", "map", "score")}
    parts = {"Taylor attention, Algorithm 1": measured.taylor, "softmax attention": measured.softmax}
    totals = {name: _total(timings) for name, timings in parts.items()}
    closed, fused = (one.latency_ms.median for one in measured.whole.values())
    head = ("attention", "step", "ms an image", "quartiles", "share (%)")
    table = [row for (name, timings), whole in zip(parts.items(), measured.whole) for row in _rows(name, timings, totals[name], measured.whole[whole])]
    block = _rows("multi-head attention", mha, _total(mha))
    block += [("around it", *row[1:4], "") for row in _rows("", {name: measured.mha[name] for name in ("proj", "mlp")}, 1)[:-1]]
    count = settings["threads"]
    about = f"{settings['model']}, batch {settings['batch']}, {settings['precision']}, {settings['device']}, {count} thread{'s' * (count != 1)}"
    share = 100 * measured.mha["map"].latency_ms.median / _total(mha)
    bars = tuple(Bar(name, _parts(timings)) for name, timings in parts.items())
    return Results(
        f"Attention of {settings['model']}, step by step",
        f"Algorithm 1 takes {totals['Taylor attention, Algorithm 1']:.3g} ms an image step by step and {closed:.3g} in closed form, softmax attention "
        f"{totals['softmax attention']:.3g} step by step and {fused:.3g} fused; the softmax attention map is {share:.0f} % of multi-head attention.",
        machine=machine, made=made,
        tables=(Table("Taylor attention and softmax attention", head, tuple(table), f"All heads and layers; {about}. The layout of Table II of ViTALiTy.", 2),
                Table("Steps of the attention block", head, tuple(block), "Shares are of multi-head attention, as in Fig. 1 of ViTALiTy.", 2)),
        bars=(Bars("Steps of attention", "milliseconds an image", bars),
              Bars("The attention block", "milliseconds an image", (Bar("all blocks", _parts(measured.mha)),))),
        notes=("Each step runs for all heads and layers before the clock is read; all steps take turns, round by round.",
               "Biases, norms and convolutions around attention are left out. In bf16 the steps of Algorithm 1 run in bfloat16 for their time; "
               "the closed form is what inference runs."),
        figures=settings | {
            "taylor": _figures(measured.taylor), "taylor_latency_ms": totals["Taylor attention, Algorithm 1"], "closed_form_latency_ms": closed,
            "softmax": _figures(measured.softmax), "softmax_latency_ms": totals["softmax attention"], "fused_softmax_latency_ms": fused,
            "mha": _figures(mha), "around": _figures({name: measured.mha[name] for name in ("proj", "mlp")}),
            "repetitions": len(measured.mha["map"].samples_ms),
        })  # fmt: skip


def _total(timings: dict[str, Timing]) -> float:
    return sum(timing.latency_ms.median for timing in timings.values())


def _rows(part: str, timings: dict[str, Timing], total: float, whole: Timing | None = None) -> list[tuple[str, ...]]:
    """A row a step, their sum, and the time of the same attention in one go."""
    rows = [(part if index == 0 else "", STEPS[name], *_spread(timing), f"{100 * timing.latency_ms.median / total:.0f}")
            for index, (name, timing) in enumerate(timings.items())]  # fmt: skip
    rows.append(("", "overall", f"{total:.3g}", "", "100"))
    return rows if whole is None else [*rows, ("", STEPS[whole.name], *_spread(whole), "")]


def _spread(timing: Timing) -> tuple[str, str]:
    median, low, high = timing.latency_ms
    return f"{median:.3g}", f"{low:.3g} to {high:.3g}"


def _parts(timings: dict[str, Timing]) -> tuple[tuple[str, float], ...]:
    return tuple((STEPS[name], timing.latency_ms.median) for name, timing in timings.items())


def _figures(timings: dict[str, Timing]) -> list[dict[str, Any]]:
    total = _total(timings)
    return [{"step": name, "latency_ms": t.latency_ms.median, "latency_ms_low": t.latency_ms.low, "latency_ms_high": t.latency_ms.high,
             "percent": 100 * t.latency_ms.median / total} for name, t in timings.items()]  # fmt: skip
