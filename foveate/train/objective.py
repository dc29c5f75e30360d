"""What training minimises: cross-entropy, the teacher's logits and tokens, and whatever the model's methods add."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax


@dataclass(frozen=True)
class Loss:
    """The sum to minimise and its parts before weighting, all scalars."""

    total: torch.Tensor
    parts: dict[str, torch.Tensor]


def teacher_kl(logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """Return KL(teacher || model) of the class distributions, the mean over images; both [B, C] (Eq. 12 of SPViT)."""
    return kl_div(
        log_softmax(logits.float(), -1), log_softmax(teacher_logits.float(), -1), reduction="batchmean", log_target=True
    )


def token_distillation(tokens: torch.Tensor, teacher_tokens: torch.Tensor, live: torch.Tensor) -> torch.Tensor:
    """Return the mean squared difference of final features over live tokens (Eq. 12 of SPViT).

    tokens, teacher_tokens: [B, N, D]; live: decisions or weights [B, N], differentiated through as well.
    Normalised an image at a time by its live count and D, so that an image weighs the same in any batch.
    """
    error = (tokens.float() - teacher_tokens.float()).square().mean(-1)
    live = live.float()
    return ((live * error).sum(-1) / live.sum(-1).clamp_min(1.0)).mean()


class Objective:
    """cross-entropy + kl_weight KL(teacher logits) + distill_weight token distillation + the model's own terms.

    hard_weight: where the model has a distillation token, the share of the cross-entropy in which its classifier learns the
    teacher's top class (hard distillation of DeiT, arXiv:2012.12877: 0.5), while the class token's learns the label; 0: the
    mean of both learns the label.
    teacher: a frozen model of the same kind, or None. The teacher sees the same images as the model.
    A model without `training_outputs` (a plain timm model) is trained on its logits.
    """

    def __init__(
        self, teacher: nn.Module | None = None, kl_weight: float = 0.5, distill_weight: float = 0.5, label_smoothing: float = 0.0,
        hard_weight: float = 0.0,
    ):
        self.teacher, self.kl_weight, self.distill_weight = teacher, kl_weight, distill_weight
        self.label_smoothing, self.hard_weight = label_smoothing, hard_weight

    def __call__(self, model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> Loss:
        """images: [B, 3, H, W]; targets: labels [B] or class distributions [B, C] (already smoothed by mixup).

        """
        outputs = model.training_outputs(images) if hasattr(model, "training_outputs") else None
        logits = model(images) if outputs is None else outputs.logits
        smoothing = self.label_smoothing if targets.dim() == 1 else 0.0
        hard = self.hard_weight if self.teacher is not None and outputs is not None and len(outputs.heads) > 1 else 0.0
        judged = outputs.heads[0] if hard else logits
        parts = {"cross_entropy": cross_entropy(judged.float(), targets, label_smoothing=smoothing)}
        total = (1 - hard) * parts["cross_entropy"]
        if self.teacher is not None and (self.kl_weight or self.distill_weight or hard):
            teacher_logits, teacher_tokens = self._teach(images)
            if hard:
                parts["hard_distillation"] = cross_entropy(outputs.heads[-1].float(), teacher_logits.argmax(-1))
                total = total + hard * parts["hard_distillation"]
            if self.kl_weight:
                parts["kl"] = teacher_kl(logits, teacher_logits)
                total = total + self.kl_weight * parts["kl"]
            if self.distill_weight and outputs is not None and teacher_tokens is not None:
                parts["distillation"] = token_distillation(outputs.tokens, teacher_tokens, outputs.live)
                total = total + self.distill_weight * parts["distillation"]
        if outputs is not None:
            judging = model.label_losses(outputs, targets) if hasattr(model, "label_losses") else {}
            for name, term in (outputs.terms | judging).items():
                parts[name] = term
                total = total + term
            parts.update({name: metric for name, metric in outputs.metrics.items() if name not in parts})
        return Loss(total, {name: part.detach().float().mean() for name, part in parts.items()})

    def _teach(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        with torch.no_grad():
            if not hasattr(self.teacher, "training_outputs"):
                return self.teacher(images), None
            outputs = self.teacher.training_outputs(images)
            return outputs.logits, outputs.tokens
