"""What plans gain on a GPU: `python benchmarks/gpu.py [--model NAME ...] [--rounds N] [--device cuda] [--quick] [--csv FILE]`.

Dense DeiT-S, DeiT-B, ViT-L and DINOv2-L (224 and 518 pixels) under torch.compile in bfloat16, against top-k plans compiled alike, and against
per-image counts, which run packed with varlen attention and are not compiled. Images a second, % of what one large product of matrices
reaches on the device, peak memory. Then varlen attention by itself on a packed batch, over padding to the longest image. Weights are random.

`--device cpu --quick` runs all of it on a small model, so that the script cannot rot; its figures say nothing of GPUs.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import timm
import torch
from cells import timed
from rich.console import Console
from rich.table import Table
from torch import nn

import foveate as fv
from foveate.nn.attention import dense_attention
from foveate.nn.ragged import by_image, varlen_attention, varlen_runs
from foveate.runtime import load_engine
from foveate.runtime.loading import synthetic_images

MODELS = {
    "deit_small_patch16_224": (224,), "deit_base_patch16_224": (224,), "vit_large_patch16_224": (224,), "vit_large_patch14_dinov2": (224, 518)}
QUICK = {"foveate_nano_p4": (28,)}
KEEP = (0.637, 0.406, 0.259)
"""After a quarter, a half and three quarters of the blocks: 58 % of DeiT-S's MACs."""
ANY = 10.0
"""Random weights decide narrowly: what the engines' logits differ by does not matter here."""
PRODUCT = {"cuda": 8192, "cpu": 1024}


@dataclass(frozen=True)
class Row:
    """What one model in one form came to. percent: of the device's product of matrices. mib: the most that was held at once, None on a CPU."""

    model: str
    pixels: int
    batch: int
    form: str
    gmacs: float
    images_per_s: float
    speedup: float
    percent: float
    mib: float | None


def forms(depth: int) -> dict[str, fv.Plan]:
    """What is timed, dense first."""
    after = tuple(max(1, round(depth * share)) for share in (0.25, 0.5, 0.75))
    made = {select: fv.Plan([fv.SPViT(after=after, keep=KEEP, select=select)]) for select in ("topk", "argmax")}
    return {"dense": fv.Plan(), "top-k": made["topk"], "per-image counts, packed": made["argmax"]}


def rows(name: str, pixels: int, batch: int, device: str, compiled: bool, rounds: int, most: float) -> Iterator[Row]:
    """One model at one size. most: tera multiply-accumulates a second of the device."""
    torch.manual_seed(0)
    base = timm.create_model(name, img_size=pixels).eval().to(device)
    images = synthetic_images(fv.adapt(base, fv.Plan()).card, batch).to(device)
    runs, costs, memory = {}, {}, {}
    for form, plan in forms(len(base.blocks)).items():
        model = fv.adapt(base, plan).eval()
        with torch.inference_mode():
            costs[form] = fv.count(model, trace=model.traced(images[:4])[1] if plan.data_dependent else None).macs / 1e9
        backend = "torch-compile" if compiled and not plan.data_dependent else "torch"
        engine = load_engine(model, backend, "bf16", images, tolerance=ANY)
        runs[form], memory[form] = (lambda engine=engine: engine(images)), _peak_mib(lambda: engine(images), device)
    runs = {form: _waited(run, device) for form, run in runs.items()}
    timings = timed(runs, batch, rounds, 100.0 if rounds > 1 else 0.0)
    for form, timing in timings.items():
        speed = timing.images_per_s
        yield Row(name, pixels, batch, form, costs[form], speed, timing.speedup.median, 100 * speed * costs[form] / 1000 / most, memory[form])


def attention(device: str, rounds: int, heads: int = 6, dim: int = 64, images: int = 64, tokens: int = 197) -> str:
    """Attention of a packed batch by varlen, image by image, and padded to its longest image, in words."""
    dice = torch.Generator().manual_seed(0)
    lengths = tuple(torch.randint(tokens // 3, tokens + 1, (images,), generator=dice).tolist())
    q, k, v = torch.randn(sum(lengths), 3, heads, dim).to(device, torch.bfloat16).unbind(1)
    there = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    padded = [t.new_zeros(images, max(lengths), heads, dim) for t in (q, k, v)]
    for wide, t in zip(padded, (q, k, v)):
        wide[there.to(device)] = t
    mask = there.to(device)[:, None, None]
    attend = lambda *given: dense_attention(*given, dim**-0.5)
    runs = {
        "padded": lambda: nn.functional.scaled_dot_product_attention(*(t.transpose(1, 2) for t in padded), attn_mask=mask),
        "image by image": lambda: by_image(attend, q, k, v, lengths)}
    if varlen_runs(q, v):
        runs["varlen"] = lambda: varlen_attention(q, k, v, lengths, dim**-0.5)
    with torch.inference_mode():
        timings = timed({name: _waited(run, device) for name, run in runs.items()}, 1, rounds, 20.0 if rounds > 1 else 0.0)
    said = ", ".join(f"{name} {timing.latency_ms.median:.3f} ms (x{timing.speedup.median:.2f})" for name, timing in timings.items())
    why = "" if "varlen" in timings else "; no varlen attention here: torch has it for half precision on a GPU"
    return f"attention of {images} images with {min(lengths)} to {max(lengths)} tokens, packed: {said}{why}"


@torch.inference_mode()
def most_tmacs(device: str) -> float:
    """Tera multiply-accumulates a second of one large bfloat16 product."""
    size = PRODUCT[device]
    x, y = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    run = _waited(lambda: x @ y, device)
    return size**3 / 1e9 / min(timed({"product": run}, 1, 5, 20.0)["product"].samples_ms)


def _waited(run, device: str):
    """The call with the device idle at its end."""
    if device == "cpu":
        return run

    def call() -> None:
        run()
        torch.cuda.synchronize()

    return call


def _peak_mib(run, device: str) -> float | None:
    if device == "cpu":
        return None
    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**20


def shown(found: list[Row]) -> Table:
    made = Table("model", "pixels", "batch", "form", "GMACs", "images/s", "over dense", "% of GEMM", "peak MiB")
    for row in found:
        made.add_row(row.model, str(row.pixels), str(row.batch), row.form, f"{row.gmacs:.2f}", f"{row.images_per_s:.0f}", f"{row.speedup:.2f}",
                     f"{row.percent:.0f}", "" if row.mib is None else f"{row.mib:.0f}")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", choices=MODELS, help="all by default")
    parser.add_argument("--batch", type=int, help="images a call (256 at 224 pixels, 64 at 518)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="a small model, one round, nothing compiled: whether everything runs")
    parser.add_argument("--csv", type=Path, help="also write the rows there")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no GPU here: torch.cuda.is_available() is False. Run this on a machine with one, or try the script with --device cpu --quick")
    console, rounds, found, start = Console(width=150), 1 if given.quick else given.rounds, [], time.perf_counter()
    device = torch.cuda.get_device_name() if given.device == "cuda" else "CPU (no GPU is measured)"
    most = most_tmacs(given.device)
    console.print(f"{device}, torch {torch.__version__}: one large bfloat16 product reaches {most:.1f} TMAC/s")
    for name, sizes in (QUICK if given.quick else {name: MODELS[name] for name in given.model or MODELS}).items():
        for pixels in sizes:
            batch = given.batch or (4 if given.quick else 256 if pixels <= 224 else 64)
            found += rows(name, pixels, batch, given.device, not given.quick, rounds, most)
            console.print(f"{time.perf_counter() - start:.0f} s: {name} at {pixels} pixels, {batch} images a call")
    console.print(shown(found))
    console.print(attention(given.device, rounds, images=8 if given.quick else 64))
    if given.csv:
        with open(given.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(Row.__dataclass_fields__))
            writer.writeheader()
            writer.writerows(asdict(row) for row in found)


if __name__ == "__main__":
    main()
