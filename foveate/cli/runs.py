"""What becomes of a training's run folder: not overwritten, tested once, and reported."""

from __future__ import annotations

from pathlib import Path

from foveate.cli.answer import Answer, leading, note
from foveate.errors import FoveateError


def check_folder(out: Path, resume: bool) -> None:
    """Before anything is loaded: never train over another run."""
    if out.is_file():
        raise FoveateError(f"--out {out}, which is a file", "a new folder", "choose another --out")
    held = [name for name in ("checkpoints/last.ckpt", "plan.json", "model.safetensors") if (out / name).exists()]
    if held and not (resume and held[0].startswith("checkpoints")):
        raise FoveateError(
            f"--out {out}, which already holds a run ({held[0]})",
            "a new folder, or an interrupted run with --resume",
            "add --resume or choose another --out" if held[0].startswith("checkpoints") else "choose another --out",
        )


def test_once(out: Path, model, images, device: str) -> None:
    """Test a complete run and write its trace, unless an earlier call did."""
    from foveate.cli.judge import judged
    from foveate.train.files import write_json, write_text
    from foveate.train.folder import read_record

    record = read_record(out)
    if not leading() or record.get("steps") != record.get("of_steps") or "test" in record:
        return
    result, trace = judged(model, images, device=device)
    write_text(out / "trace.json", trace.to_json())
    write_json(out / "run.json", record | {"test": {k: v for k, v in result.items() if k != "correct"}})


def report_run(answer: Answer, out: Path) -> None:
    """What the finished (or paused) run says of itself."""
    from foveate.plan import Plan
    from foveate.train.folder import read_record

    record = read_record(out)
    test = record.get("test") or {}
    paused = record.get("steps") != record.get("of_steps")
    plan = Plan.parse(str(out)) if (out / "plan.json").is_file() else Plan()
    answer.data = {
        "run": str(out), "model": record.get("model"), "plan": str(plan), "data": record.get("data"), "steps": record.get("steps"),
        "of_steps": record.get("of_steps"), "seconds": record.get("seconds"), **({"images": test["n"]} if test else {}),
        **{k: v for k, v in test.items() if k != "n"},
    }  # fmt: skip
    accuracy = f"{test['accuracy_percent']:.2f} % ± {test['uncertainty_percent']:.2f} on {test['n']:,} test images" if test else ""
    answer.facts({
        "run": out, "plan": plan if plan.methods else "", "trained": f"{record.get('steps')} of {record.get('of_steps')} steps",
        "took": f"{record.get('seconds', 0):.0f} s", "accuracy": accuracy, "tokens": ", ".join(f"{t:.1f}" for t in test.get("tokens_mean", [])),
    })  # fmt: skip
    if paused:
        note("the same command with --resume and without --steps trains to the end")
    if "not_loadable" in record:
        note(f"only the weights were saved: {record['not_loadable']}")
