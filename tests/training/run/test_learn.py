import copy

import pytest
import torch

from training.architectures import find_architecture
from training.recipes import Recipe, find_recipe
from training.run.checkpoint import Learner
from training.run.lessons import Batch
from training.run.optimization import make_optimizer
from training.run.train import learn, learn_hardest

RECIPE = find_recipe("fc").replace(optimizer="adamw", learning_rate=0.01, precision="float32")


def _learner(recipe: Recipe) -> Learner:
    torch.manual_seed(0)
    network = find_architecture("fc").build(10, 0.0)
    return Learner(recipe, network, network, make_optimizer(recipe, network))


def _batch(images: int) -> Batch:
    torch.manual_seed(1)
    return Batch(torch.randn(images, 3, 32, 32), torch.randint(0, 10, (images,)))


def test_a_batch_in_parts_is_learned_from_as_in_one() -> None:
    batch = _batch(10)
    whole, parts = _learner(RECIPE), _learner(RECIPE.replace(micro_batch=4))
    results = [learn(learner, batch, rate=1.0) for learner in (whole, parts)]
    assert results[0][0].item() == pytest.approx(results[1][0].item(), rel=1e-6)
    assert results[0][1].item() == results[1][1].item()
    for a, b in zip(whole.network.parameters(), parts.network.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.allclose(a.grad, b.grad, atol=1e-7)


def test_a_smaller_share_is_cut_into_as_many_parts_as_the_largest() -> None:
    learner, batch = _learner(RECIPE.replace(micro_batch=4)), _batch(4)
    calls: list[int] = []
    learner.network.register_forward_hook(
        lambda _module, images, _out: calls.append(len(images[0]))
    )
    learn(learner, batch, rate=0.0, largest=5)
    assert calls == [2, 2]


def test_a_smaller_share_without_parts_is_one_part() -> None:
    learner, batch = _learner(RECIPE), _batch(4)
    calls: list[int] = []
    learner.network.register_forward_hook(lambda _, images, __: calls.append(len(images[0])))
    learn(learner, batch, rate=0.0, largest=5)
    assert calls == [4]


def test_the_hardest_images_are_those_with_the_highest_loss() -> None:
    learner, batch = _learner(RECIPE), _batch(20)
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(
            learner.network(batch.images), batch.targets, reduction="none"
        )
    hardest = learn_hardest(learner, batch, 5, rate=0.0)
    assert sorted(hardest.tolist()) == sorted(losses.topk(5).indices.tolist())


def test_it_is_the_hardest_images_that_are_learned_from() -> None:
    learner, batch = _learner(RECIPE), _batch(20)
    reference = copy.deepcopy(learner)
    hardest = learn_hardest(learner, batch, 5, rate=0.0)
    learn(reference, batch[hardest], rate=0.0)
    for a, b in zip(learner.network.parameters(), reference.network.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.allclose(a.grad, b.grad, atol=1e-7)


def test_the_loss_is_that_of_smoothed_labels() -> None:
    learner, batch = _learner(RECIPE.replace(label_smoothing=0.3)), _batch(8)
    logits = learner.network(batch.images)
    truth = torch.nn.functional.one_hot(batch.targets, 10) * 0.7 + 0.03
    expected = -(truth * logits.log_softmax(1)).sum(1).mean()
    loss, _ = learn(learner, batch, rate=0.0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
