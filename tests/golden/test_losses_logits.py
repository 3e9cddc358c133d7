"""Losses on logits and pooled features recomputed longhand, with loops and plain floats, across dtypes."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from stillhouse.distill.losses.dist import inter_class, intra_class, pearson_distance
from stillhouse.distill.losses.dkd import other_class_kl, target_class_kl
from stillhouse.distill.losses.logits import distillation_kl
from stillhouse.distill.losses.resolution import mmd, pairwise, squared_distance
from stillhouse.distill.losses.standardised import standardised
from stillhouse.distill.tasks.classification import Classification

DTYPES = [torch.float32, torch.float64]
TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-10}
Rows = list[list[float]]

dtypes = pytest.mark.parametrize("dtype", DTYPES)
temperatures = pytest.mark.parametrize("temperature", [1.0, 4.0])


def pair(dtype: torch.dtype, rows: int = 5, columns: int = 7) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(3)
    first, second = (3 * torch.randn(rows, columns, dtype=torch.float64, generator=made) for _ in range(2))
    return first.to(dtype), second.to(dtype)


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    top = max(row)
    powers = [math.exp((value - top) / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


def correlation(a: list[float], b: list[float]) -> float:
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    covariance = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    spread = [math.sqrt(sum((x - mean) ** 2 for x in row)) for row, mean in ((a, mean_a), (b, mean_b))]
    return covariance / spread[0] / spread[1]


def transposed(rows: Rows) -> Rows:
    return [list(column) for column in zip(*rows, strict=True)]


@dtypes
@temperatures
def test_distillation_kl(dtype: torch.dtype, temperature: float) -> None:
    student, teacher = pair(dtype)
    rows = zip(student.tolist(), teacher.tolist(), strict=True)
    expected = temperature**2 * sum(kl(softmax(t, temperature), softmax(s, temperature)) for s, t in rows) / 5
    assert float(distillation_kl(student, teacher, temperature)) == pytest.approx(expected, rel=TOLERANCE[dtype])
    assert float(distillation_kl(teacher, teacher, temperature)) == pytest.approx(0, abs=TOLERANCE[dtype])


@dtypes
@temperatures
def test_dist(dtype: torch.dtype, temperature: float) -> None:
    student, teacher = pair(dtype)
    p_s, p_t = ([softmax(row, temperature) for row in logits.tolist()] for logits in (student, teacher))
    inter = sum(1 - correlation(s, t) for s, t in zip(p_s, p_t, strict=True)) / 5
    intra = sum(1 - correlation(s, t) for s, t in zip(transposed(p_s), transposed(p_t), strict=True)) / 7
    near = {"rel": TOLERANCE[dtype], "abs": TOLERANCE[dtype]}
    assert float(inter_class(student, teacher, temperature)) == pytest.approx(temperature**2 * inter, **near)
    assert float(intra_class(student, teacher, temperature)) == pytest.approx(temperature**2 * intra, **near)
    assert abs(inter - intra) > 0.005, "the two are not one another"


@dtypes
def test_pearson_does_not_see_scale_or_shift(dtype: torch.dtype) -> None:
    a, b = pair(dtype)
    near = {"rel": TOLERANCE[dtype], "abs": TOLERANCE[dtype]}
    assert float(pearson_distance(a, b)) == pytest.approx(float(pearson_distance(2 * a + 3, 0.5 * b - 1)), **near)
    assert float(pearson_distance(a, 4 * a + 1)) == pytest.approx(0, abs=TOLERANCE[dtype])
    assert float(pearson_distance(a, -a)) == pytest.approx(2, rel=TOLERANCE[dtype])


@dtypes
@temperatures
def test_dkd(dtype: torch.dtype, temperature: float) -> None:
    student, teacher = pair(dtype)
    target = [0, 6, 3, 3, 1]
    of_target = of_others = 0.0
    for s, t, own in zip(student.tolist(), teacher.tolist(), target, strict=True):
        p_s, p_t = softmax(s, temperature), softmax(t, temperature)
        of_target += kl([p_t[own], 1 - p_t[own]], [p_s[own], 1 - p_s[own]]) / 5
        rest_s, rest_t = ([value for k, value in enumerate(row) if k != own] for row in (s, t))
        of_others += kl(softmax(rest_t, temperature), softmax(rest_s, temperature)) / 5
    arguments = (student, teacher, torch.tensor(target), temperature)
    assert float(target_class_kl(*arguments)) == pytest.approx(temperature**2 * of_target, rel=TOLERANCE[dtype])
    assert float(other_class_kl(*arguments)) == pytest.approx(temperature**2 * of_others, rel=TOLERANCE[dtype])


@dtypes
@temperatures
def test_dkd_takes_kd_apart(dtype: torch.dtype, temperature: float) -> None:
    """KL = TCKD + (1 - p_t of the true class) NCKD, picture by picture (Zhao et al. 2022, eq. 6)."""
    student, teacher = pair(dtype)
    target = torch.tensor([0, 6, 3, 3, 1])
    for n in range(5):
        row = (student[n : n + 1], teacher[n : n + 1])
        own = float((row[1] / temperature).softmax(1)[0, target[n]])
        whole = float(distillation_kl(*row, temperature))
        parts = [float(part(*row, target[n : n + 1], temperature)) for part in (target_class_kl, other_class_kl)]
        assert whole == pytest.approx(parts[0] + (1 - own) * parts[1], rel=TOLERANCE[dtype], abs=TOLERANCE[dtype])


@pytest.mark.parametrize("loss", [target_class_kl, other_class_kl])
def test_dkd_is_finite_for_a_teacher_that_is_sure(loss: object) -> None:
    teacher = torch.tensor([[60.0, 0.0, -60.0]])
    student = torch.tensor([[0.0, 1.0, 2.0]], requires_grad=True)
    value = loss(student, teacher, torch.tensor([0]), 1.0)  # type: ignore[operator]
    value.backward()
    assert torch.isfinite(value)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


@dtypes
def test_standardised(dtype: torch.dtype) -> None:
    logits, _ = pair(dtype)
    expected = []
    for row in logits.tolist():
        mean = sum(row) / 7
        deviation = math.sqrt(sum((value - mean) ** 2 for value in row) / 7)
        expected.append([(value - mean) / deviation for value in row])
    assert np.allclose(standardised(logits).numpy(), expected, rtol=1e-5, atol=1e-6)
    assert torch.allclose(standardised(logits), standardised(5 * logits - 2), atol=1e-5)
    assert torch.equal(standardised(torch.ones(1, 4, dtype=dtype)), torch.zeros(1, 4, dtype=dtype)), "no spread"


@dtypes
def test_squared_distance(dtype: torch.dtype) -> None:
    a, b = pair(dtype)
    expected = sum((x - y) ** 2 for x, y in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)) / 35
    assert float(squared_distance(a, b)) == pytest.approx(expected, rel=TOLERANCE[dtype])


def distances(rows: Rows) -> Rows:
    return [[math.dist(a, b) for b in rows] for a in rows]


@dtypes
def test_pairwise(dtype: torch.dtype) -> None:
    student, mentor = pair(dtype)[0], pair(dtype, columns=9)[1]  # widths need not agree
    relative = []
    for features in (student, mentor):
        found = distances(features.tolist())
        mean = sum(map(sum, found)) / 25
        relative.append([[value / mean for value in row] for row in found])
    expected = sum((relative[0][i][j] - relative[1][i][j]) ** 2 for i, j in itertools.product(range(5), repeat=2)) / 25
    assert float(pairwise(student, mentor)) == pytest.approx(expected, rel=max(TOLERANCE[dtype], 1e-6))
    assert float(pairwise(3 * student, student)) == pytest.approx(0, abs=1e-6), "distances are relative"


@dtypes
@pytest.mark.parametrize("counts", [(5, 5), (4, 6)])
def test_mmd(dtype: torch.dtype, counts: tuple[int, int]) -> None:
    n, m = counts
    student, mentor = pair(dtype, rows=n)[0], pair(dtype, rows=m)[1] + 1
    rows = [*student.tolist(), *mentor.tolist()]
    squared = [[value**2 for value in row] for row in distances(rows)]
    mean = sum(map(sum, squared)) / (len(rows) * (len(rows) - 1))

    def kernel(i: int, j: int) -> float:
        return sum(math.exp(-squared[i][j] / (share * mean)) for share in (0.25, 0.5, 1.0, 2.0, 4.0))

    own, other = range(n), range(n, n + m)
    within = sum(kernel(i, j) for i in own for j in own) / n**2
    within += sum(kernel(i, j) for i in other for j in other) / m**2
    across = sum(kernel(i, j) for i in own for j in other) / (n * m)
    assert float(mmd(student, mentor)) == pytest.approx(within - 2 * across, rel=TOLERANCE[dtype])
    assert within - 2 * across > 0
    assert float(mmd(mentor, mentor)) == pytest.approx(0, abs=TOLERANCE[dtype])


@pytest.mark.parametrize("loss", [pairwise, mmd, squared_distance])
def test_equal_pictures_give_finite_gradients(loss: object) -> None:
    """A distance of zero has no slope; none of these may turn it into a nan."""
    student = torch.ones(4, 3, requires_grad=True)
    value = loss(student, torch.arange(12.0).reshape(4, 3))  # type: ignore[operator]
    value.backward()
    assert torch.isfinite(value)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def cross_entropy(logits: Rows, wanted: Rows) -> float:
    total = 0.0
    for row, told in zip(logits, wanted, strict=True):
        total -= sum(share * math.log(p) for share, p in zip(told, softmax(row), strict=True))
    return total / len(logits)


@dtypes
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_with_label_smoothing(dtype: torch.dtype, smoothing: float) -> None:
    """Szegedy et al. (2016): (1 - s) of the label and s / K of every class, its own too."""
    logits, _ = pair(dtype)
    labels = [0, 6, 3, 3, 1]
    wanted = [[(1 - smoothing) * (k == label) + smoothing / 7 for k in range(7)] for label in labels]
    found = Classification().loss(logits, torch.tensor(labels), smoothing=smoothing)
    assert float(found) == pytest.approx(cross_entropy(logits.tolist(), wanted), rel=TOLERANCE[dtype])


@dtypes
def test_labels_of_mixed_views(dtype: torch.dtype) -> None:
    logits, _ = pair(dtype)
    labels, others, own = [0, 6, 3, 3, 1], [2, 6, 4, 0, 0], [0.5, 0.75, 1.0, 0.9, 0.625]
    wanted = [
        [part * (k == label) + (1 - part) * (k == other) for k in range(7)]
        for label, other, part in zip(labels, others, own, strict=True)
    ]
    mixed = Classification().mixed(torch.tensor(labels), torch.tensor(others), torch.tensor(own), 7)
    assert mixed.dtype == torch.float32
    assert np.allclose(mixed.numpy(), wanted, atol=1e-6)
    found = Classification().loss(logits, mixed.to(dtype))
    assert float(found) == pytest.approx(cross_entropy(logits.tolist(), wanted), rel=max(TOLERANCE[dtype], 1e-6))
    plain = Classification().mixed(torch.tensor(labels), torch.tensor(others), torch.ones(5), 7)
    assert torch.equal(plain.argmax(1), torch.tensor(labels))
    assert set(plain.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("loss", [pairwise, mmd])
def test_distances_far_from_zero_survive_autocast(
    loss: Callable[[Tensor, Tensor], Tensor],
) -> None:
    made = torch.Generator().manual_seed(0)
    student, mentor = (3 + 0.3 * torch.randn(32, 1280, generator=made) for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(student, mentor)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(student, mentor), rtol=1e-3, atol=0)
