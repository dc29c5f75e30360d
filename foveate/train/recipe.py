"""A recipe: everything that decides how a model is trained, as a frozen value that goes to JSON and back."""

import json
import math
from dataclasses import asdict, dataclass, fields, replace

from foveate.errors import FoveateError

PRECISIONS = ("32-true", "bf16-mixed")
SCHEDULES = ("cosine", "linear", "constant")
AUGMENTATIONS = ("none", "light", "full")
QUANTISE = ("none", "int8")


@dataclass(frozen=True)
class Recipe:
    """Training settings.

    lr: peak learning rate of the methods' parameters; backbone_lr: of all others (None: the same; 0: frozen, BatchNorm too).
    warmup: epochs of linear warm-up (fractions allowed). batch_size: images a step over all processes.
    drop_path: highest rate of stochastic depth, rising linearly with depth (None: as the model was built).
    patch_drop: share of patch tokens dropped while training, one value an epoch, the last one repeated.
    kl_weight, distill_weight: weights of the teacher's logits and tokens in the loss (Eq. 12 of SPViT: 0.5 and 0.5).
    hard_weight: share of the cross-entropy in which a distillation token's classifier learns the teacher's top class (DeiT: 0.5).
    clip_norm: largest norm of the gradient (0: no clipping). mixup, cutmix: alpha of the Beta distribution (0: off).
    quantise: "int8" trains with linears and convolutions of the backbone fake-quantised to 8 bits (weights a channel, inputs a tensor).
    optimizer: any name of timm's factory; betas: None takes that optimizer's own. split: the training images used, "train" or "train+validation".
    Raises FoveateError for a value outside its range.
    """

    epochs: int = 10
    batch_size: int = 128
    optimizer: str = "adamw"
    lr: float = 1e-3
    backbone_lr: float | None = None
    schedule: str = "cosine"
    warmup: float = 0.0
    min_lr: float = 0.0
    weight_decay: float = 0.05
    betas: tuple[float, float] | None = None
    clip_norm: float = 1.0
    label_smoothing: float = 0.1
    drop_path: float | None = None
    augmentation: str = "light"
    mixup: float = 0.0
    cutmix: float = 0.0
    patch_drop: tuple[float, ...] = (0.0,)
    kl_weight: float = 0.5
    distill_weight: float = 0.5
    hard_weight: float = 0.0
    precision: str = "bf16-mixed"
    quantise: str = "none"
    split: str = "train"
    seed: int = 0

    def __post_init__(self):
        for name in ("betas", "patch_drop"):
            value = getattr(self, name)
            if isinstance(value, list | tuple):
                object.__setattr__(self, name, tuple(value))
        for name, allowed, test in _RULES:
            value = getattr(self, name)
            try:
                good = bool(test(value))
            except TypeError:
                good = False
            if not good:
                raise FoveateError(f"recipe with {name}={value!r}", allowed, f"correct {name}")

    def patch_drop_at(self, epoch: int) -> float:
        """Return the share of patch tokens dropped in an epoch (0-based)."""
        return self.patch_drop[min(epoch, len(self.patch_drop) - 1)]

    def but(self, **changes) -> "Recipe":
        """Return the recipe with some settings changed; unknown names are refused."""
        unknown = sorted(set(changes) - {field.name for field in fields(self)})
        if unknown:
            raise FoveateError(
                f"recipe setting {', '.join(unknown)}",
                ", ".join(field.name for field in fields(self)),
                "correct the name",
            )
        return replace(self, **changes)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """Read a recipe; settings that are left out keep their defaults, unknown ones are refused."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise FoveateError(f"a recipe that is not JSON ({error})", "a JSON object", "correct the file") from error
        if not isinstance(values, dict):
            raise FoveateError(f"a recipe that is a {type(values).__name__}", "a JSON object", "correct the file")
        return cls().but(**values)


def _number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _at_least(low: float):
    return lambda value: _number(value) and low <= value


def _share(value) -> bool:
    return _number(value) and 0 <= value < 1


_POSITIVE = ("a number > 0", lambda value: _number(value) and 0 < value)
_NOT_NEGATIVE = ("a number >= 0", _at_least(0))
_COUNT = ("a whole number >= 1", lambda value: type(value) is int and value >= 1)
_SHARE = ("a share in [0, 1)", _share)

_RULES = (
    ("epochs", *_COUNT),
    ("batch_size", *_COUNT),
    ("optimizer", "the name of one of timm's optimizers", lambda value: isinstance(value, str) and value),
    ("lr", *_POSITIVE),
    ("backbone_lr", "a number >= 0 or None", lambda value: value is None or _at_least(0)(value)),
    ("schedule", " | ".join(SCHEDULES), lambda value: value in SCHEDULES),
    ("warmup", *_NOT_NEGATIVE),
    ("min_lr", *_NOT_NEGATIVE),
    ("weight_decay", *_NOT_NEGATIVE),
    ("betas", "two shares in [0, 1) or None", lambda value: value is None or (len(value) == 2 and all(map(_share, value)))),
    ("clip_norm", *_NOT_NEGATIVE),
    ("label_smoothing", *_SHARE),
    ("drop_path", "a share in [0, 1) or None", lambda value: value is None or _share(value)),
    ("augmentation", " | ".join(AUGMENTATIONS), lambda value: value in AUGMENTATIONS),
    ("mixup", *_NOT_NEGATIVE),
    ("cutmix", *_NOT_NEGATIVE),
    ("patch_drop", "at least one share in [0, 1)", lambda value: len(value) > 0 and all(map(_share, value))),
    ("kl_weight", *_NOT_NEGATIVE),
    ("distill_weight", *_NOT_NEGATIVE),
    ("hard_weight", *_SHARE),
    ("precision", " | ".join(PRECISIONS), lambda value: value in PRECISIONS),
    ("quantise", " | ".join(QUANTISE), lambda value: value in QUANTISE),
    ("split", "train | train+validation", lambda value: value in ("train", "train+validation")),
    ("seed", "a whole number in [0, 2**63)", lambda value: type(value) is int and 0 <= value < 2**63),
)

# "spvit" is section 6.1 of its paper, "vitality" DeiT's recipe from a pretrained start; the nano ones fit 28x28 images on two CPU cores.
# "pivot": section 4.1 of PIVOT says 30 epochs and 8 bits, section 3.2 cross-entropy, distilled final features and (in its plan) L_En; the
# rest is ours: a tenth of DeiT's rate, as the start is trained, and no smoothed or mixed labels, which would raise the entropy that L_En lowers.
# "earlyexit" trains exits afterwards, on a frozen backbone; ours, as IRET does not say how its heads were trained.
RECIPES = {
    "base-nano": Recipe(epochs=12, batch_size=64, optimizer="nmuon", lr=5e-3, warmup=0.5, drop_path=0.0),
    "spvit": Recipe(epochs=60, batch_size=256, lr=5e-4, backbone_lr=5e-6, warmup=0.0, augmentation="full"),
    "vitality": Recipe(
        epochs=300, batch_size=1024, lr=1e-3, warmup=5.0, min_lr=1e-5, drop_path=0.1, augmentation="full", mixup=0.8, cutmix=1.0,
        kl_weight=0.0, distill_weight=0.0, hard_weight=0.5,
    ),
    "vitality-nano": Recipe(
        epochs=3, batch_size=64, optimizer="nmuon", lr=1e-3, warmup=0.2, label_smoothing=0.0, drop_path=0.0, kl_weight=0.0, distill_weight=0.0,
        hard_weight=0.5,
    ),
    "spvit-nano": Recipe(epochs=3, batch_size=64, lr=3e-3, backbone_lr=2e-4, warmup=0.2, label_smoothing=0.0, drop_path=0.0),
    "iret": Recipe(
        epochs=300, batch_size=1024, lr=1e-3, warmup=5.0, min_lr=1e-5, drop_path=0.1, augmentation="full", mixup=0.8, cutmix=1.0,
        kl_weight=0.0, distill_weight=0.0, hard_weight=0.5,
    ),
    "iret-nano": Recipe(
        epochs=12, batch_size=64, optimizer="nmuon", lr=5e-3, warmup=0.5, drop_path=0.0, kl_weight=0.0, distill_weight=0.0, hard_weight=0.5,
    ),
    "pivot": Recipe(
        epochs=30, batch_size=256, lr=5e-5, min_lr=1e-6, label_smoothing=0.0, drop_path=0.1, augmentation="full", kl_weight=0.0, distill_weight=0.5,
        quantise="int8",
    ),
    "pivot-nano": Recipe(
        epochs=3, batch_size=64, optimizer="nmuon", lr=1e-3, warmup=0.2, label_smoothing=0.0, drop_path=0.0, kl_weight=0.0, distill_weight=0.5,
        quantise="int8",
    ),
    "earlyexit": Recipe(
        epochs=10, batch_size=256, lr=1e-3, backbone_lr=0.0, drop_path=0.0, label_smoothing=0.0, augmentation="light", kl_weight=0.0, distill_weight=0.0,
    ),
    "earlyexit-nano": Recipe(
        epochs=2, batch_size=64, lr=3e-3, backbone_lr=0.0, warmup=0.2, label_smoothing=0.0, drop_path=0.0, kl_weight=0.0, distill_weight=0.0,
    ),
}


def recipe_named(name: str) -> Recipe:
    """Return a preset recipe."""
    if name not in RECIPES:
        raise FoveateError(f"recipe {name!r}", ", ".join(RECIPES), "choose one of these or give a JSON file")
    return RECIPES[name]
