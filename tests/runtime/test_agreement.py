"""runtime/agreement.py: what is measured between two sets of logits, and what is refused."""

from dataclasses import replace

import pytest
import torch

from foveate.errors import FoveateError
from foveate.runtime.agreement import agreement, require


def differing(*shares):
    """Logits of len(shares) images whose largest is 10, and others that differ from them by these shares of 10: beyond 0.05 in their answer, too."""
    expected = torch.zeros(len(shares), 3)
    expected[:, 0], expected[:, 1] = 10.0, 9.5
    logits = expected.clone()
    logits[:, 1] += 10 * torch.tensor(shares)
    return agreement(logits, expected)


def test_distances_are_shares_of_the_largest_logit():
    found = differing(0.0, 0.01, 0.2)
    assert (found.images, found.scale) == (3, 10.0)
    assert found.worst == pytest.approx(0.2, abs=1e-6)
    assert found.typical == pytest.approx(0.01, abs=1e-6)
    assert found.same_top1 == pytest.approx(2 / 3)
    assert "2.0e-01" in str(found) and "67%" in str(found)


def test_logits_that_are_not_numbers_never_agree():
    found = agreement(torch.tensor([[float("nan"), 1.0]]), torch.tensor([[0.0, 1.0]]))
    assert found.worst == float("inf")
    with pytest.raises(FoveateError):
        require(found, "x", "bf16", True, None)


def test_another_number_of_answers_is_no_agreement():
    found = agreement(torch.zeros(2, 3), torch.zeros(4, 3))
    assert (found.worst, found.same_top1) == (float("inf"), 0)


def test_all_zero_logits_are_compared_absolutely():
    assert agreement(torch.zeros(2, 3), torch.zeros(2, 3)).worst == 0
    assert agreement(torch.ones(2, 3), torch.zeros(2, 3)).worst == 1


@pytest.mark.parametrize(
    "shares, precision, decides, tolerance, accepted",
    [
        ((1e-5, 1e-3), "fp32", False, None, True),
        ((1e-5, 3e-3), "fp32", False, None, False),  # one image is enough where nothing is decided
        ((1e-5, 1e-5, 0.1), "fp32", True, None, True),  # one decision on its threshold
        ((1e-5, 0.1, 0.1), "fp32", True, None, False),
        ((1e-5, 1e-5, 0.6), "fp32", True, None, False),
        ((0.05, 0.05), "bf16", False, None, True),
        ((0.05, 0.2), "bf16", False, None, False),
        ((0.05, 0.2), "bf16", False, 0.25, True),
        ((0.2, 0.2), "bf16", True, None, True),
        ((0.2, 0.2), "bf16", True, 0.1, False),
        ((0.05, 0.05, 0.05, 0.2), "int8", False, None, True),  # one image of four, with another answer
        ((0.05, 0.05, 0.05, 0.4), "int8", False, None, False),
        ((0.09, 0.09, 0.02), "int8", False, None, False),  # most images with another answer
    ],
)
def test_what_a_precision_explains_is_accepted(shares, precision, decides, tolerance, accepted):
    found = differing(*shares)
    if accepted:
        assert require(found, "openvino bf16", precision, decides, tolerance) is found
        return
    with pytest.raises(FoveateError) as caught:
        require(found, "openvino bf16", precision, decides, tolerance)
    assert "openvino bf16" in caught.value.given and f"{found.worst:.1e}" in caught.value.given
    assert "tolerance" in caught.value.do


def judged(right, lost, precision="int8"):
    """What is found where an engine answers `lost` of `right` images wrongly that the model answers rightly, with logits far off."""
    expected, labels = torch.eye(2)[torch.zeros(right, dtype=int)], torch.zeros(right, dtype=int)
    logits = 5 * torch.eye(2)[torch.arange(right).lt(lost).int()]
    return agreement(logits, expected, labels)


def test_in_8_bits_labels_judge_by_the_accuracy_lost():
    assert require(judged(400, 4), "openvino int8", "int8", False, None).lost_percent == pytest.approx(1)
    with pytest.raises(FoveateError) as caught:
        require(judged(400, 6), "openvino int8", "int8", False, None)
    assert "1.5 points of accuracy" in caught.value.given and "at most 1.0" in caught.value.allowed and "calibration" in caught.value.do
    assert require(judged(20, 1), "openvino int8", "int8", False, None).lost_percent == pytest.approx(5)  # one image of few
    with pytest.raises(FoveateError):
        require(judged(400, 0), "openvino bf16", "bf16", False, None)


def test_overlap_and_accuracy_are_part_of_what_is_said():
    said = str(replace(judged(10, 1), overlap=(0.997, 0.5)))
    assert "-10.0 points of accuracy" in said and "kept patches overlap by 0.997, 0.500" in said
