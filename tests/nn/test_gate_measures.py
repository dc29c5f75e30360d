"""Entropy (Eq. 3 of PIVOT), the other measures, and who passes on."""

import math

import pytest
import torch

import foveate as fv
from foveate.nn.gates import MEASURES, difficulty, entropy, margin, max_probability, no_answer, passes_on

INF, NAN = float("inf"), float("nan")


def logits_of(p: float, classes: int = 1000) -> torch.Tensor:
    """Logits whose softmax is `p` for one class and uniform for the rest."""
    chances = torch.full((classes,), (1 - p) / (classes - 1), dtype=torch.float64)
    chances[3] = p
    return chances.log().float()


def naive(logits: torch.Tensor) -> float:
    """Eq. 3 term by term in float64."""
    scores = logits.double().tolist()
    total = sum(math.exp(s - max(scores)) for s in scores)
    chances = [math.exp(s - max(scores)) / total for s in scores]
    return -sum(p * math.log(p) for p in chances if p > 0) / math.log(len(chances))


@pytest.mark.parametrize("p, expected", [(0.5, 0.6003), (0.8, 0.2724), (0.9, 0.1470), (0.95, 0.0787), (0.99, 0.0181)])
def test_entropies_of_a_thousand_classes(p, expected):
    assert round(float(entropy(logits_of(p))), 4) == expected


def test_two_way_tie():
    logits = torch.full((1000,), -1e3)
    logits[:2] = 0
    assert float(entropy(logits)) == pytest.approx(math.log(2) / math.log(1000), abs=1e-6)


@pytest.mark.parametrize("classes", [2, 3, 10, 1000, 21841])
def test_the_ends_of_the_scale(classes):
    one_hot = torch.full((classes,), -1e4)
    one_hot[1] = 1e4
    assert float(entropy(torch.zeros(classes))) == pytest.approx(1, abs=1e-6)
    assert float(entropy(torch.zeros(classes))) <= 1
    assert float(entropy(one_hot)) == 0 and float(max_probability(one_hot)) == 1 and float(margin(one_hot)) == 1
    assert float(margin(torch.zeros(classes))) == 0 and float(max_probability(torch.zeros(classes))) == pytest.approx(1 / classes)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e4, 1e30])
def test_entropy_is_the_naive_sum_at_any_scale(scale):
    logits = torch.randn(20, 7) * scale
    assert entropy(logits).tolist() == pytest.approx([naive(row) for row in logits], abs=2e-6)
    shifted = entropy(logits + 100) if scale == 1 else entropy(logits)
    assert torch.allclose(entropy(logits), shifted, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_measures_are_float32_whatever_the_logits(measure, dtype):
    logits = torch.randn(4, 9).to(dtype)
    assert measure(logits).dtype == torch.float32 and torch.equal(measure(logits), measure(logits.float()))
    assert measure(torch.randn(0, 9)).shape == (0,) and measure(torch.randn(2, 3, 9)).shape == (2, 3)


def test_margin_and_largest_probability():
    logits = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]]).log()
    assert max_probability(logits).tolist() == pytest.approx([0.6, 0.6]) and margin(logits).tolist() == pytest.approx([0.3, 0.4])


def test_a_class_ruled_out_has_no_share():
    assert float(entropy(torch.tensor([0.0, 0.0, -INF, -INF]))) == pytest.approx(math.log(2) / math.log(4))
    assert float(entropy(torch.tensor([3.0, -INF, -INF]))) == 0


@pytest.mark.parametrize("gate", [fv.Entropy(1.0), fv.MaxProbability(0.0), fv.Margin(0.0)], ids=str)
def test_logits_without_probabilities_are_hard_even_for_a_gate_that_lets_all_stay(gate):
    logits = torch.tensor([[NAN, 0, 0], [INF, 0, 0], [-INF, -INF, -INF], [1, 2, 3], [0, 0, 0]])
    assert passes_on(gate, logits).tolist() == [True, True, True, False, False]
    assert no_answer(logits).tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("kind", [fv.Entropy, fv.MaxProbability, fv.Margin])
def test_on_the_threshold_an_image_stays(kind):
    logits = torch.randn(50, 5)
    measure = MEASURES[kind.name](logits)
    for value in measure.tolist():
        hard = passes_on(kind(value), logits)
        assert torch.equal(hard, measure > value if kind.rises else measure < value)
    assert difficulty(kind(0.5), logits).argsort().tolist() == (measure if kind.rises else -measure).argsort().tolist()


def test_thresholds_are_compared_in_float32():
    """0.3 is no float32; a measure that rounds to it is on the threshold."""
    logits = torch.tensor([[0.7, 0.3]]).log()
    value = float(max_probability(logits))
    assert value != 0.7 and not passes_on(fv.MaxProbability(0.7), logits).any()


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_a_single_class_is_refused(measure):
    with pytest.raises(fv.FoveateError, match="1 class"):
        measure(torch.zeros(4, 1))


def test_entropy_has_gradients():
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    entropy(logits).sum().backward()
    naive_gradient = torch.autograd.functional.jacobian(lambda z: -(z.softmax(-1) * z.log_softmax(-1)).sum() / math.log(5), logits.detach())
    assert torch.allclose(logits.grad, naive_gradient, atol=1e-6)
    certain = torch.tensor([[500.0, 0.0, -INF]], requires_grad=True)
    entropy(certain).sum().backward()
    assert not certain.grad.isnan().any()
