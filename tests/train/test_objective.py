from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from foveate.train.objective import Objective, teacher_kl, token_distillation

IMAGES, CLASSES, TOKENS, WIDTH = 3, 4, 5, 6


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def naive_softmax(row: np.ndarray) -> np.ndarray:
    return np.exp(row - row.max()) / np.exp(row - row.max()).sum()


def naive_cross_entropy(logits: np.ndarray, labels: list[int], smoothing: float) -> float:
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        for k, p in enumerate(naive_softmax(row)):
            total -= ((1 - smoothing) * (k == label) + smoothing / len(row)) * np.log(p)
    return total / len(logits)


def naive_kl(logits: np.ndarray, teacher: np.ndarray) -> float:
    total = 0.0
    for row, other in zip(logits, teacher, strict=True):
        for q, p in zip(naive_softmax(row), naive_softmax(other), strict=True):
            total += p * (np.log(p) - np.log(q))
    return total / len(logits)


def naive_distillation(tokens: np.ndarray, teacher: np.ndarray, live: np.ndarray) -> float:
    images = []
    for image in range(len(tokens)):
        error = weight = 0.0
        for n in range(tokens.shape[1]):
            error += live[image, n] * sum((tokens[image, n, d] - teacher[image, n, d]) ** 2 for d in range(tokens.shape[2]))
            weight += live[image, n]
        images.append(error / tokens.shape[2] / max(weight, 1.0))
    return sum(images) / len(images)


def naive_gradient(function, at: np.ndarray) -> np.ndarray:
    gradient, step = np.zeros_like(at), 1e-6
    for index in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (function(up) - function(down)) / (2 * step)
    return gradient


def agrees(value: torch.Tensor, variable: torch.Tensor, naive) -> None:
    """Hold a value and its gradient with respect to `variable` against float64 loops."""
    at = variable.detach().double().numpy()
    assert value.item() == pytest.approx(naive(at), rel=1e-5)
    (gradient,) = torch.autograd.grad(value, variable, retain_graph=True)
    assert np.allclose(gradient.double().numpy(), naive_gradient(naive, at), atol=1e-5)


def test_kl_equals_its_sum():
    logits, teacher = rand(IMAGES, CLASSES).requires_grad_(), rand(IMAGES, CLASSES, seed=1) * 3
    agrees(teacher_kl(logits, teacher), logits, lambda at: naive_kl(at, teacher.double().numpy()))
    assert float(teacher_kl(teacher, teacher)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", ["topk", "argmax", "one dead image"])
def test_distillation_equals_its_sum_in_tokens_and_decisions(kind):
    tokens, teacher = rand(IMAGES, TOKENS, WIDTH).requires_grad_(), rand(IMAGES, TOKENS, WIDTH, seed=1)
    live = {
        "topk": torch.tensor([[1.0, 1, 0, 0, 0], [0, 0, 0, 1, 1], [1, 0, 0, 0, 1]]),
        "argmax": torch.tensor([[1.0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0.5, 0.9, 1, 0, 1]]),
        "one dead image": torch.tensor([[0.0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0.5]]),
    }[kind]
    other, weights = teacher.double().numpy(), live.double().numpy()
    agrees(token_distillation(tokens, teacher, live), tokens, lambda at: naive_distillation(at, other, weights))
    if kind == "argmax":
        live = (live + 0.25).requires_grad_()
        features = tokens.detach().double().numpy()
        agrees(token_distillation(tokens.detach(), teacher, live), live, lambda at: naive_distillation(features, other, at))


def test_distillation_of_a_batch_is_the_mean_of_its_images():
    tokens, teacher = rand(4, TOKENS, WIDTH), rand(4, TOKENS, WIDTH, seed=1)
    live = (rand(4, TOKENS, seed=2) > -0.5).float()
    halves = [token_distillation(tokens[s], teacher[s], live[s]) for s in (slice(0, 2), slice(2, 4))]
    assert torch.allclose(token_distillation(tokens, teacher, live), sum(halves) / 2)


class Adaptive(nn.Module):
    """Anything with training_outputs."""

    def __init__(self, seed: int):
        super().__init__()
        self.logits = nn.Parameter(rand(IMAGES, CLASSES, seed=seed))
        self.tokens = nn.Parameter(rand(IMAGES, TOKENS, WIDTH, seed=seed))

    def training_outputs(self, images):
        terms = {"method_ratio": self.logits.square().sum(), "method_other": self.tokens.sum()}
        logits = self.logits * 1
        return SimpleNamespace(
            logits=logits, heads=(logits,), tokens=self.tokens * 1, live=torch.ones(IMAGES, TOKENS), terms=terms, metrics={"kept": torch.tensor(0.5)}
        )


class Distilled(nn.Module):
    """A model of two classifiers, the second of a distillation token."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ParameterList([nn.Parameter(rand(IMAGES, CLASSES, seed=s)) for s in (3, 4)])

    def training_outputs(self, images):
        heads = tuple(head * 1 for head in self.heads)
        return SimpleNamespace(logits=sum(heads) / 2, heads=heads, tokens=rand(IMAGES, TOKENS, WIDTH), live=torch.ones(IMAGES, TOKENS), terms={}, metrics={})


def test_a_distillation_token_learns_the_teachers_top_class():
    model, teacher, labels = Distilled(), Adaptive(1), [1, 3, 0]
    loss = Objective(teacher, 0.0, 0.0, 0.1, hard_weight=0.3)(model, torch.zeros(IMAGES, 3, 2, 2), torch.tensor(labels))
    first, second = (head.detach().double().numpy() for head in model.heads)
    taught = teacher.logits.argmax(-1).tolist()
    assert taught != labels, "the teacher says what the labels say: this test shows nothing"
    expected = 0.7 * naive_cross_entropy(first, labels, 0.1) + 0.3 * naive_cross_entropy(second, taught, 0.0)
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("teacher, weight", [(None, 0.3), (Adaptive(1), 0.0)])
def test_without_hard_distillation_both_classifiers_learn_the_label(teacher, weight):
    model, labels = Distilled(), torch.tensor([1, 3, 0])
    loss = Objective(teacher, 0.0, 0.0, hard_weight=weight)(model, torch.zeros(IMAGES, 3, 2, 2), labels)
    mean = (sum(model.heads) / 2).detach().double().numpy()
    assert loss.total.item() == pytest.approx(naive_cross_entropy(mean, labels.tolist(), 0.0), rel=1e-5)
    loss.total.backward()
    assert all(head.grad.abs().max() > 0 for head in model.heads)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_sum_of_all_parts(smoothing):
    model, teacher, labels = Adaptive(0), Adaptive(1), [1, 3, 0]
    loss = Objective(teacher, 0.5, 0.25, smoothing)(model, torch.zeros(IMAGES, 3, 2, 2), torch.tensor(labels))
    logits, tokens = model.logits.detach().double().numpy(), model.tokens.detach().double().numpy()
    other_logits, other_tokens = teacher.logits.detach().double().numpy(), teacher.tokens.detach().double().numpy()
    cross_entropy = naive_cross_entropy(logits, labels, smoothing)
    kl = naive_kl(logits, other_logits)
    distillation = naive_distillation(tokens, other_tokens, np.ones((IMAGES, TOKENS)))
    expected = cross_entropy + 0.5 * kl + 0.25 * distillation + (logits**2).sum() + tokens.sum()
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    parts = {name: float(part) for name, part in loss.parts.items()}
    assert parts.pop("kept") == 0.5
    assert parts == pytest.approx(
        {
            "cross_entropy": cross_entropy,
            "kl": kl,
            "distillation": distillation,
            "method_ratio": (logits**2).sum(),
            "method_other": tokens.sum(),
        },
        rel=1e-4,
    )
    loss.total.backward()
    assert model.tokens.grad is not None and teacher.logits.grad is None


def test_a_plain_model_learns_from_labels_and_mixed_labels():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, CLASSES))
    images, labels = rand(IMAGES, 3, 2, 2), torch.tensor([0, 1, 2])
    loss = Objective(label_smoothing=0.1)(model, images, labels)
    assert set(loss.parts) == {"cross_entropy"}
    smoothed = torch.full((IMAGES, CLASSES), 0.1 / CLASSES) + 0.9 * torch.eye(CLASSES)[labels]
    # Mixed targets come smoothed already: they are not smoothed twice.
    assert torch.allclose(Objective(label_smoothing=0.1)(model, images, smoothed).total, loss.total, atol=1e-6)


def test_a_plain_teacher_gives_its_logits():
    model, teacher = (nn.Sequential(nn.Flatten(), nn.Linear(12, CLASSES)) for _ in range(2))
    loss = Objective(teacher, 0.5, 0.5)(model, rand(IMAGES, 3, 2, 2), torch.tensor([0, 1, 2]))
    assert set(loss.parts) == {"cross_entropy", "kl"}
