"""Measures the masks of a trained SPARSE model: how dense they are and how well they pack. An input of the machine `sanger`.

    foveate sweep foveate_nano_p4 --plan "vitality()" --vary mode=sparse --data fashion-mnist-subset --epochs 3 --out runs/vitality-modes
    python scripts/sparse_masks.py runs/vitality-modes/vitality-mode=sparse

writes results/sparse_masks.jsonl, one line that `sanger@density=results/sparse_masks.jsonl` reads: for every block the share of pairs of a
query and a key that the 4-bit predictor keeps on test images, and the share of the array's slots that hold a pair after packing.

Sanger cuts each row of a mask into pieces that fit the 16 columns of its array (split) and lays pieces of several rows side by side (pack).
Here each head packs for itself, longest pieces first, each into the first row of slots with room. That is our model: its code is not public.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

import foveate as fv
from foveate import sim
from foveate.methods.vitality import layers
from foveate.train.data import load_data
from foveate.train.preprocessing import Preprocessing

DATA = "fashion-mnist-subset"
RESULT = Path(__file__).parents[1] / "results" / "sparse_masks.jsonl"


def pieces(mask: np.ndarray, columns: int) -> list[int]:
    """Lengths of the pieces, at most `columns` each, that the rows of a mask [n, m] are cut into, longest first."""
    counts = mask.sum(1)
    return sorted([columns] * int((counts // columns).sum()) + [int(rest) for rest in counts % columns if rest], reverse=True)


def packed_rows(lengths: list[int], columns: int) -> int:
    """Rows of `columns` slots that pieces fill, each laid into the first row with room."""
    room: list[int] = []
    for length in lengths:
        place = next((row for row, left in enumerate(room) if left >= length), len(room))
        room[place:] = [columns] if place == len(room) else room[place:]
        room[place] -= length
    return len(room)


@torch.no_grad()
def masks(run: Path, images: int) -> list[np.ndarray]:
    """The mask of every block, bool [images, heads, n, m], on the first of the test images."""
    model, found, mask_of = fv.load(run).eval(), [], layers.strong_mask

    def seen(*arguments, **options):
        found.append(mask_of(*arguments, **options))
        return found[-1]

    preprocessing = Preprocessing.from_json((run / "preprocessing.json").read_text(encoding="utf-8"))
    layers.strong_mask = seen
    try:
        model(load_data(DATA, "test", preprocessing=preprocessing).batch(range(images)).images)
    finally:
        layers.strong_mask = mask_of
    return [mask.cpu().numpy() for mask in found]


def measured(found: list[np.ndarray], columns: int) -> dict[str, float]:
    """Density, slots filled after splitting alone, and after packing, of every block."""
    line = {}
    for block, mask in enumerate(found, 1):
        heads = [pieces(head, columns) for head in mask.reshape(-1, *mask.shape[-2:])]
        line |= {
            f"vitality_density_block_{block}": mask.mean(), f"split_efficiency_block_{block}": mask.sum() / columns / sum(map(len, heads)),
            f"pack_efficiency_block_{block}": mask.sum() / columns / sum(packed_rows(lengths, columns) for lengths in heads),
        }  # fmt: skip
    return {key: round(float(value), 4) for key, value in line.items()}


def main() -> None:
    """Measures the run named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=500)
    options = parser.parse_args()
    record, plan = json.loads((options.run / "run.json").read_text()), fv.Plan.parse(str(options.run))
    trained = record["command"].partition(" --resume")[0]
    line = {"model": record["model"], "plan": str(plan), "trained": trained, "data": f"{DATA}, test", "images": options.images}
    line |= measured(masks(options.run, options.images), sim.load("sanger").unit("RePE").columns)
    RESULT.write_text(json.dumps(line) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
