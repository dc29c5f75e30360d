"""Does a high path score mean a good path (Fig. 4a of PIVOT)? `python benchmarks/path_score.py [--effort 9] [--paths 70]`.

Random paths of one effort of `foveate_nano_p4`, without fine-tuning: the rank correlation of their score with their accuracy on
validation photos, for each way to compare features, and beside it that of the mean position of the skipped blocks alone.
"""

import argparse
import itertools

import numpy as np
import timm
import torch
from rich.console import Console
from rich.table import Table

import foveate as fv
import foveate.backbones  # noqa: F401  registers foveate_nano_p4
from foveate.methods.pivot.paths import path_score
from foveate.redundancy import cka_matrix, sampled
from foveate.train.data import load_data

DATA, SCORED, JUDGED = "fashion-mnist-subset", 256, 500


def rank_correlation(one, other) -> float:
    """Spearman's: the correlation of ranks, equal values sharing their mean rank."""
    def ranks(values) -> np.ndarray:
        values = np.asarray(values, dtype=float)
        return (values[:, None] > values).sum(1) + ((values[:, None] == values).sum(1) - 1) / 2

    return float(np.corrcoef(ranks(one), ranks(other))[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--effort", type=int, default=9)
    parser.add_argument("--paths", type=int, default=70)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    base = timm.create_model("foveate_nano_p4", pretrained=True).eval()
    train, validation = (load_data(DATA, split) for split in ("train", "validation"))
    seen = train.batch(sampled(len(train), SCORED)).images
    judged = validation.batch(sampled(len(validation), JUDGED, 1))
    depth = len(base.blocks)
    every = list(itertools.combinations(range(1, depth + 1), depth - chosen.effort))
    places = np.random.default_rng(chosen.seed).choice(len(every), min(chosen.paths, len(every)), replace=False)
    paths = [every[place] for place in places]
    accuracy = []
    with torch.inference_mode():
        for skip in paths:
            model = fv.adapt(base, fv.Plan([fv.PIVOT(skip=skip)])).eval()
            accuracy.append(float((model(judged.images).argmax(-1) == judged.labels).float().mean()))
    table = Table("compared", "residual", "rank correlation with accuracy", title=f"{len(paths)} paths of effort {chosen.effort}, {JUDGED} photos")
    for features, residual in itertools.product(("tokens", "mean"), ("before", "after")):
        matrix = cka_matrix(base, seen.split(64), features, residual)
        table.add_row(features, residual, f"{rank_correlation([path_score(matrix, skip) for skip in paths], accuracy):.2f}")
    table.add_row("mean position of the skipped blocks", "", f"{rank_correlation([np.mean(skip) for skip in paths], accuracy):.2f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
