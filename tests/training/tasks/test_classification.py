import numpy as np
import pytest
import torch

from training.tasks import classification


def test_smoothed_labels_spread_a_part_of_the_target_over_all_classes() -> None:
    logits, labels = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 3.0]]), torch.tensor([0, 1])
    found = classification.losses(logits, labels, label_smoothing=0.3)
    target = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]])
    expected = -(target * logits.log_softmax(1).numpy()).sum(1)
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_an_answer_is_correct_where_the_highest_logit_is_the_labels() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0]])
    assert classification.count_correct(logits, torch.tensor([0, 1, 1])).item() == 2


def test_served_figures_are_those_of_the_probabilities_as_they_are() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [1.0, 0.0]])
    found = classification.measure_served(probabilities, torch.tensor([0, 1, 1, 1]))
    tiny = float(np.finfo(np.float32).tiny)
    assert found.accuracy == 0.5
    assert found.cross_entropy == pytest.approx(-np.log([0.9, 0.4, 0.7, tiny]).mean(), abs=1e-5)
    # Four bins of one image each: |0.9 - 1|, |0.6 - 0|, |0.7 - 1| and |1 - 0|.
    assert found.ece == pytest.approx((0.1 + 0.6 + 0.3 + 1.0) / 4, abs=1e-6)


def test_the_temperature_undoes_a_known_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 10, generator=generator) * 2
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    assert classification.fit_temperature(logits, labels) == pytest.approx(1, abs=0.03)
    assert classification.fit_temperature(logits * 3, labels) == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize(("label", "temperature"), [(0, 0.05), (1, 20.0)])
def test_a_few_images_do_not_drive_the_temperature_out_of_all_bounds(
    label: int, temperature: float
) -> None:
    logits, labels = torch.tensor([[3.0, 0.0], [0.5, 0.0]]), torch.tensor([label, label])
    assert classification.fit_temperature(logits, labels) == temperature
