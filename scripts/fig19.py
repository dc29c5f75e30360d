"""Accuracy against MACs (Fig. 19 of IRET): printed points of the papers, and below them our own measured ones.

python scripts/fig19.py [RUN | FILE.json ...] --out fig19.svg

RUN: a run folder that was tested (`foveate train`, `adapt`). FILE.json: what `foveate eval MODEL --plan P --json` prints.
The printed points are those of results/published_accuracy.csv: what the four papers print as numbers, with computed costs where they
print only an accuracy. Fig. 19 itself is a picture without numbers: ATS, ResNet and AdaViT are drawn there and printed nowhere.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

from foveate.errors import FoveateError
from foveate.report.style import to_svg
from foveate.report.tradeoff import Panel, Point, panel_in_words, tradeoff_figure

PUBLISHED = Path(__file__).resolve().parent.parent / "results" / "published_accuracy.csv"
TITLE = "Printed in the papers, ImageNet"


def published(path: Path = PUBLISHED) -> Panel:
    """The rows of the table, by family."""
    families: dict[str, list[Point]] = {}
    for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines()):
        found = families.setdefault(row["family"], [])
        if row["gmacs"]:
            name = " ".join(filter(None, (row["model"], row["setting"])))
            found.append(Point(name, float(row["gmacs"]), float(row["top1_percent"]) if row["top1_percent"] else None))
    return Panel(TITLE, {name: tuple(points) for name, points in families.items() if points}, tuple(name for name, points in families.items() if not points))


def measured(paths: list[Path]) -> Panel:
    """Our own rows, by the methods of their plans; raises FoveateError for a file without accuracy and cost."""
    families: dict[str, list[Point]] = {}
    data = []
    for path in paths:
        record = _record(path)
        methods = [part.split("(")[0].strip() for part in str(record["plan"]).split(" + ")]
        families.setdefault("+".join(methods), []).append(
            Point(str(record["plan"]), record["macs"] / 1e9, record["accuracy_percent"], record.get("uncertainty_percent")))
        data.append(f"{record.get('model', 'model')}, {record.get('data', 'data')}")
    return Panel("Ours: " + "; ".join(dict.fromkeys(data)), {name: tuple(points) for name, points in families.items()})


def _record(path: Path) -> dict[str, Any]:
    """Accuracy, cost and plan of a run folder, or of one JSON object."""
    file = path / "run.json" if path.is_dir() else path
    try:
        form = json.loads(file.read_text(encoding="utf-8"))
        plan = json.loads((path / "plan.json").read_text(encoding="utf-8")) if path.is_dir() else None
        found = form | form.get("test", {}) | ({"plan": "+".join(m["method"] for m in plan["methods"]) or "dense"} if plan else {})
        return {"plan": found["plan"], "macs": float(found["macs"]), "accuracy_percent": float(found["accuracy_percent"])} | found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FoveateError(f"{path}, which has no accuracy and cost ({type(error).__name__}: {error})",
                           "a tested run folder, or a file of `foveate eval --json`",
                           "test it: foveate eval RUN --json > FILE.json") from error


def main() -> None:
    """Writes the figure and prints it in words."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, default=Path("fig19.svg"))
    arguments = parser.parse_args()
    panels = [published(), *([measured(arguments.runs)] if arguments.runs else [])]
    words = [panel_in_words(panel) for panel in panels]
    arguments.out.write_text(to_svg(tradeoff_figure(panels), "; ".join(words)), encoding="utf-8")
    print(*words, f"-> {arguments.out}", sep="\n")


if __name__ == "__main__":
    main()
