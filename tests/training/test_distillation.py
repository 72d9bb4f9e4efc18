"""The loss of distillation and its gradient, against NumPy in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qil_deploy.errors import ConfigError, DataError
from qil_deploy.training import distillation_loss
from qil_deploy.training.distillation import divergence

IMAGES, CLASSES = 6, 5
Floats = NDArray[np.float64]


def softmax(values: Floats) -> Floats:
    powers = np.exp(values - values.max(1, keepdims=True))
    shares: Floats = powers / powers.sum(1, keepdims=True)
    return shares


def expected(
    student: Floats, teacher: Floats, labels: NDArray[np.int64], weight: float, temperature: float, smoothing: float
) -> tuple[float, Floats]:
    """Loss, and its gradient with respect to the student's logits."""
    targets = (1 - smoothing) * np.eye(CLASSES)[labels] + smoothing / CLASSES
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    cross_entropy = -(targets * np.log(softmax(student))).sum(1)
    distance = (p * np.log(p / q)).sum(1)
    loss = (cross_entropy + weight * temperature**2 * distance).mean()
    gradient: Floats = (softmax(student) - targets + weight * temperature * (q - p)) / len(student)
    return float(loss), gradient


@pytest.fixture
def logits(rng: np.random.Generator) -> tuple[Floats, Floats]:
    return rng.normal(0, 3, (IMAGES, CLASSES)), rng.normal(0, 3, (IMAGES, CLASSES))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize(("weight", "smoothing"), [(1.0, 0.0), (0.3, 0.1), (0.0, 0.0)])
def test_loss_and_gradient_are_those_of_the_docstring(
    logits: tuple[Floats, Floats], rng: np.random.Generator, weight: float, temperature: float, smoothing: float
) -> None:
    labels = rng.integers(0, CLASSES, IMAGES)
    student, teacher = (torch.tensor(values, requires_grad=True) for values in logits)
    loss = distillation_loss(
        student, teacher, torch.tensor(labels), weight=weight, temperature=temperature, smoothing=smoothing
    )
    loss.backward()
    value, gradient = expected(*logits, labels, weight, temperature, smoothing)
    assert float(loss.detach()) == pytest.approx(value, rel=1e-12)
    assert student.grad is not None
    np.testing.assert_allclose(student.grad.numpy(), gradient, rtol=1e-10, atol=1e-14)
    assert teacher.grad is None


def test_the_loss_is_cross_entropy_plus_weighted_divergence_at_temperature_4(logits: tuple[Floats, Floats]) -> None:
    student, teacher = (torch.tensor(values) for values in logits)
    labels = torch.arange(IMAGES) % CLASSES
    parts = torch.nn.functional.cross_entropy(student, labels) + divergence(student, teacher, 4.0)
    assert float(distillation_loss(student, teacher, labels)) == pytest.approx(float(parts), rel=1e-14)


def test_a_student_that_agrees_with_its_teacher_diverges_by_nothing(logits: tuple[Floats, Floats]) -> None:
    student = torch.tensor(logits[0])
    assert float(divergence(student, student, 4.0)) == pytest.approx(0.0, abs=1e-14)
    assert float(divergence(student + 5.0, student, 4.0)) == pytest.approx(0.0, abs=1e-14)


def test_predictions_of_positions_count_like_images(rng: np.random.Generator) -> None:
    maps = [torch.tensor(rng.normal(0, 3, (2, CLASSES, 3, 4))) for _ in range(2)]
    labels = torch.tensor(rng.integers(0, CLASSES, (2, 3, 4)))
    rows = [values.movedim(1, -1).reshape(-1, CLASSES) for values in maps]
    found = float(distillation_loss(maps[0], maps[1], labels))
    assert found == pytest.approx(float(distillation_loss(rows[0], rows[1], labels.flatten())), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(logits: tuple[Floats, Floats], dtype: torch.dtype) -> None:
    student, teacher = (torch.tensor(values).to(dtype) for values in logits)
    labels = torch.arange(IMAGES) % CLASSES
    loss = distillation_loss(student, teacher, labels)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, distillation_loss(student.float(), teacher.float(), labels))


def test_large_logits_overflow_nowhere() -> None:
    student = torch.tensor([[3e4, -3e4, 0.0]], requires_grad=True)
    loss = distillation_loss(student, torch.tensor([[-3e4, 3e4, 0.0]]), torch.tensor([2]))
    loss.backward()
    assert student.grad is not None
    assert bool(loss.isfinite())
    assert bool(student.grad.isfinite().all())


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_temperatures_that_soften_nothing_are_refused(temperature: float) -> None:
    logits = torch.zeros(2, 3)
    with pytest.raises(ConfigError, match=r"temperature is .*; predictions are softened with a finite one above 0"):
        divergence(logits, logits, temperature)


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_weights_below_zero_are_refused(weight: float) -> None:
    logits = torch.zeros(2, 3)
    with pytest.raises(ConfigError, match=r"weight is .*; .* a finite weight of at least 0"):
        distillation_loss(logits, logits, torch.tensor([0, 1]), weight=weight)


@pytest.mark.parametrize("shape", [(2, 4), (1, 3), (2, 1), (6,)])
def test_logits_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        DataError, match=r"logits have shape \[2, 3\] and the teacher's .*both need \[images, classes\]"
    ):
        divergence(torch.zeros(2, 3), torch.zeros(shape), 4.0)
