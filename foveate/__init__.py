"""foveate: Vision Transformers that look harder only where it pays. Names load what they need when they are first used."""

from importlib import import_module

__version__ = "0.1.0"

_NAMES = {
    "Plan": "plan", "SPViT": "methods", "Random": "methods", "Structure": "methods", "ViTALiTy": "methods", "PIVOT": "methods", "IRET": "methods",
    "Linformer": "methods", "Performer": "methods", "LinearTransformer": "methods", "Efficient": "methods", "ViTCoD": "methods", "EarlyExit": "methods",
    "EViT": "methods", "ToMe": "methods", "ATS": "methods",
    "Entropy": "gates", "MaxProbability": "gates", "Margin": "gates", "Cascade": "cascade", "calibrate": "calibration",
    "Trace": "trace", "Ledger": "ledger", "Operation": "ledger", "FoveateError": "errors",
    "adapt": "adoption", "restore": "adoption", "replan": "adoption", "AdaptiveModel": "adaptive",
    "save": "store", "load": "store", "count": "counting", "simulate": "simulation",
}
_ROOMS = ("backbones", "train", "measure", "runtime", "report")

__all__ = ["__version__", *_NAMES, *_ROOMS]


def __getattr__(name: str):
    if name in _NAMES:
        value = getattr(import_module(f"foveate.{_NAMES[name]}"), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return import_module(f"foveate.{name}")
    raise AttributeError(f"module 'foveate' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
