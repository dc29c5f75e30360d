"""Who still waits for an answer, and what the gates of exits measure."""

import math

import pytest
import torch

from foveate.nn.exits import Waiting, agreement, stayed, sureness
from foveate.nn.tokens import dense

NAN = float("nan")


def logits(*named: int) -> torch.Tensor:
    """Logits [n, 4] that name these classes."""
    return torch.eye(4)[list(named)]


def offer(waiting: Waiting, block: int, answer: torch.Tensor, sure) -> torch.Tensor | None:
    """What `waiting` says where budgets do not matter."""
    return waiting.offer(block, answer, sure, 1, list)


def leaving(*gone: bool):
    return lambda answers: torch.tensor(gone)


class Purse:
    """A budget that pays for the segments of some images only, and notes what it was asked."""

    def __init__(self, *rich: int, short: tuple[int, ...] = ()):
        self.rich, self.short, self.asked = rich, short, []

    def cannot_pay(self, segment, images, tokens):
        self.asked.append((segment, list(images), list(tokens)))
        return [image not in self.rich for image in images]


def test_images_leave_with_their_own_answers_and_come_back_in_order():
    waiting = Waiting.all(5)
    assert offer(waiting, 2, logits(0, 1, 2, 3, 0) * 2, leaving(False, True, False, False, True)).tolist() == [0, 2, 3]
    assert waiting.places == [0, 2, 3]
    assert offer(waiting, 5, logits(1, 1, 1) * 3, leaving(False, False, False)) is None
    assert offer(waiting, 7, logits(2, 2, 3) * 5, leaving(True, False, True)).tolist() == [1]
    answer = waiting.finish(9, logits(3) * 7)
    assert torch.equal(answer, torch.cat([logits(2) * 5, logits(1) * 2, logits(3) * 7, logits(3) * 5, logits(0) * 2]))
    assert waiting.exits == [7, 2, 9, 7, 2] and waiting.short == []


def test_everybody_may_leave_early():
    waiting = Waiting.all(2)
    staying = offer(waiting, 3, logits(1, 2), leaving(True, True))
    assert len(staying) == 0 and waiting.places == [] and stayed(dense(torch.zeros(2, 5, 3), 1, (2, 2)), staying) is None
    assert torch.equal(waiting.finish(4, None), logits(1, 2)) and waiting.exits == [3, 3]


def test_the_gate_sees_the_answers_of_those_that_still_run():
    seen = []

    def sure(answers):
        seen.append([answer.argmax(-1).tolist() for answer in answers])
        return answers[-1].argmax(-1) == 1

    waiting = Waiting.all(3)
    for block, named in ((1, (0, 1, 2)), (2, (1, 3)), (3, (2,))):
        offer(waiting, block, logits(*named), sure)
    assert seen == [[[0, 1, 2]], [[0, 2], [1, 3]], [[2], [3], [2]]]


def test_replayed_images_leave_where_they_did():
    waiting, exits = Waiting.all(4), [4, 2, 9, 4]
    assert waiting.replay(2, logits(0, 1, 2, 3), exits).tolist() == [0, 2, 3]
    assert waiting.replay(3, logits(0, 0, 0), exits) is None
    assert waiting.replay(4, logits(1, 1, 1), exits).tolist() == [1]
    assert waiting.finish(9, logits(2)).argmax(-1).tolist() == [1, 1, 2, 1] and waiting.exits == exits


def test_a_budget_is_asked_for_those_that_are_not_sure_and_lets_the_poor_go():
    purse = Purse(3, short=(1,))
    waiting = Waiting.all(4, purse)
    assert waiting.short == [1]
    staying = waiting.offer(2, logits(0, 1, 2, 3), leaving(False, True, False, False), 1, lambda: [7, 8, 9, 10])
    assert staying.tolist() == [3] and purse.asked == [(1, [0, 2, 3], [7, 9, 10])]
    assert waiting.short == [1, 0, 2] and waiting.exits == [2, 2, 2, 0] and waiting.places == [3]


def test_answers_of_another_precision_are_kept_in_that_of_the_first():
    waiting = Waiting.all(2)
    offer(waiting, 1, logits(0, 1).bfloat16(), leaving(True, False))
    assert waiting.finish(2, logits(2)).dtype == torch.bfloat16


# gates


def test_measures_of_the_latest_answer():
    chances = torch.tensor([[0.5, 0.25, 0.25], [0.9, 0.06, 0.04]])
    answers = [torch.zeros(2, 3), chances.log()]
    torch.testing.assert_close(sureness("confidence", answers), torch.tensor([0.5, 0.9]))
    assert torch.equal(sureness("max_probability", answers), sureness("confidence", answers))
    torch.testing.assert_close(sureness("margin", answers), torch.tensor([0.25, 0.84]))
    expected = -(chances * chances.log()).sum(-1) / math.log(3)
    torch.testing.assert_close(sureness("entropy", answers), expected)


@pytest.mark.parametrize("gate", ["confidence", "margin", "entropy"])
def test_answers_without_probabilities_have_no_measure(gate):
    measure = sureness(gate, [torch.tensor([[0.0, NAN], [math.inf, 0.0], [1.0, 0.0]])])
    assert measure.isnan().tolist() == [True, True, False]


def counted(predictions: list[int | None]) -> int:
    """PABEE's counter as its paper's Eq. 4 has it: up by one where an exit agrees with the one before, back to 0 where not."""
    count = 0
    for before, after in zip(predictions, predictions[1:]):
        count = count + 1 if before is not None and before == after else 0
    return count


def test_patience_counts_exits_in_a_row_that_agree():
    generator = torch.Generator().manual_seed(0)
    named = torch.randint(0, 2, (6, 40), generator=generator)
    for exits in range(1, 7):
        found = agreement([logits(*row.tolist()) for row in named[:exits]])
        assert found.tolist() == [counted(column.tolist()) for column in named[:exits].T]
        assert torch.equal(found, sureness("patience", [logits(*row.tolist()) for row in named[:exits]]))
    assert found.max() >= 3


def test_patience_starts_anew_at_an_exit_without_probabilities():
    broken = torch.full((1, 4), NAN)
    assert agreement([logits(1), logits(1), broken]).item() == 0
    assert agreement([logits(1), logits(1), broken, logits(1)]).item() == 0
    assert agreement([broken, broken]).item() == 0
    assert agreement([broken, logits(1), logits(1)]).item() == 1
