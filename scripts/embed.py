"""Put a finished run into the package: float16 weights and a card (figure, command, time, machine).

    python scripts/embed.py runs/base-p4 foveate_nano_p4            # a dense base, for pretrained=True
    python scripts/embed.py runs/spvit spvit-nano --as-run          # an adapted run, for fv.load and the demo

The accuracy on the card is measured here, on the full test set, with the float16 weights that are shipped.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from foveate.adoption import adapt
from foveate.backbones.blueprint import Blueprint
from foveate.counting import count
from foveate.plan import Plan
from foveate.store import load, load_weights, save
from foveate.train.data import load_data
from foveate.train.evaluate import evaluate
from foveate.train.preprocessing import Preprocessing

ASSETS = Path(__file__).parents[1] / "foveate" / "assets"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--as-run", action="store_true", help="keep the whole run folder's form, under assets/runs")
    parser.add_argument("--command", help="the command that reproduces the run, if it was not started by it")
    arguments = parser.parse_args()
    if arguments.as_run:
        folder = ASSETS / "runs" / arguments.name
        trained = load(arguments.run)
        settings = json.loads((arguments.run / "preprocessing.json").read_text())
        save(trained.half(), folder, settings, list(trained.pretrained_cfg["label_names"]))
        model, card = load(folder), folder / "card.json"
    else:
        ASSETS.mkdir(exist_ok=True)
        half = {k: v.half() for k, v in load_file(arguments.run / "model.safetensors").items()}
        path = ASSETS / f"{arguments.name}.safetensors"
        save_file(half, path)
        path.chmod(0o644)  # safetensors makes files that only their owner may read
        model = adapt(Blueprint(arguments.name).build(), Plan())
        load_weights(model, ASSETS / f"{arguments.name}.safetensors")
        card = ASSETS / f"{arguments.name}.card.json"
    record = json.loads((arguments.run / "run.json").read_text())
    preprocessing = Preprocessing.from_json((arguments.run / "preprocessing.json").read_text())
    test = load_data("fashion-mnist", "test", preprocessing=preprocessing)
    torch.manual_seed(0)
    result = evaluate(model.eval(), test)
    ledger = count(model)
    card.write_text(json.dumps({
        "name": arguments.name,
        "accuracy_percent": round(result["accuracy_percent"], 2),
        "uncertainty_percent": round(result["uncertainty_percent"], 2),
        "test_images": result["n"],
        "data": "fashion-mnist, full test set, read once, at the end",
        "macs": ledger.macs,
        "params": ledger.params,
        "plan": str(model.plan),
        "command": arguments.command or record["command"],
        "seconds": record["seconds"],
        "train_images": record["train_images"],
        "seed": record["seed"],
        "machine": record.get("machine"),
        "versions": record.get("versions"),
        "recipe": json.loads((arguments.run / "recipe.json").read_text()),
    }, indent=1) + "\n")
    print(card, json.dumps({"accuracy_percent": result["accuracy_percent"], "n": result["n"]}))


if __name__ == "__main__":
    main()
