import torch

from raycnn.models import dropout

CPU = torch.device("cpu")


def test_shares_drop_what_the_whole_batch_drops() -> None:
    drop, x = dropout.Dropout(0.5), torch.ones(10, 64)
    dropout.seed_step(3, 0, 10, CPU)
    whole = drop(x)
    parts = []
    for first, last in ((0, 4), (4, 10)):
        dropout.seed_step(3, first, 10, CPU)
        parts.append(drop(x[first:last]))
    assert torch.equal(torch.cat(parts), whole)


def test_a_step_drops_the_same_again_and_another_step_does_not() -> None:
    drop, x = dropout.Dropout(0.5), torch.ones(10, 64)
    masks = []
    for number in (1, 2, 1):
        dropout.seed_step(number, 0, 10, CPU)
        masks.append(drop(x))
    assert torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0], masks[1])


def test_dropout_keeps_the_expected_value_and_is_still_in_evaluation() -> None:
    drop, x = dropout.Dropout(0.3), torch.ones(200, 500)
    dropout.seed_step(0, 0, 200, CPU)
    dropped = drop(x)
    assert abs(dropped.mean().item() - 1) < 0.02
    assert abs((dropped == 0).float().mean().item() - 0.3) < 0.02
    assert torch.equal(drop.eval()(x), x)
