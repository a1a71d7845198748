import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from tests.learn.denoising_cases import expert_problem, field_of_experts, raw_of, scene
from workers.learn.autograd_oracle import AutogradOracle
from workers.learn.errors import LearnError
from workers.learn.hypergradient import hypergradient
from workers.learn.inner.fista import FISTA
from workers.learn.inner.lbfgs import LBFGS
from workers.learn.linear.cg import CG
from workers.learn.method import run
from workers.learn.methods.maid import MAID
from workers.learn.problems.denoising import denoise
from workers.learn.regularizers import filters
from workers.learn.regularizers.filters import FilterBank, cosine_filters
from workers.learn.regularizers.image import Quantity
from workers.learn.verification import directional_check, random_direction

# (images, height, width, channels), (filters, size): odd and even filters, margins as large as the image.
CASES = [((2, 7, 6, 1), (3, 3)), ((1, 6, 5, 3), (2, 2)), ((1, 4, 7, 1), (4, 4)), ((1, 5, 2, 1), (2, 5))]
FIXED = ["", "strength", "weights", "smoothing", "filters"]


def somewhere(size: int, seed: int) -> torch.Tensor:
    return torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def hessian(oracle, w, raw) -> torch.Tensor:
    return torch.stack([oracle.hvp(w, raw)(row) for row in torch.eye(w.numel(), dtype=w.dtype)])


def jacobian(oracle, w, raw) -> torch.Tensor:
    columns = [oracle.cross_forward(w, raw, row) for row in torch.eye(raw.numel(), dtype=raw.dtype)]
    return torch.stack(columns, 1)


@pytest.mark.parametrize(("shape", "bank"), CASES)
@pytest.mark.parametrize("fixed", FIXED)
def test_closed_forms_agree_with_autograd(shape, bank, fixed):
    problem = expert_problem(*shape, count=bank[0], size=bank[1], fixed=fixed)
    closed, auto, raw = problem.oracle(), AutogradOracle(problem), raw_of(problem)
    w = problem.initial_weights(0)
    v, direction = somewhere(w.numel(), 1), somewhere(raw.numel(), 2)
    pairs = [
        (closed.inner(w, raw).value, auto.inner(w, raw).value),
        (closed.inner(w, raw).gradient, auto.inner(w, raw).gradient),
        (closed.hvp(w, raw)(v), auto.hvp(w, raw)(v)),
        (closed.cross(w, raw, v), auto.cross(w, raw, v)),
        (closed.cross_forward(w, raw, direction), auto.cross_forward(w, raw, direction)),
    ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_definitions_differentiate_twice():
    problem = expert_problem(1, 4, 3, count=2, size=3)
    w = problem.initial_weights(0).clone().requires_grad_()
    raw = raw_of(problem).requires_grad_()
    assert gradcheck(problem.inner, (w, raw), atol=1e-6)
    assert gradgradcheck(problem.inner, (w, raw), atol=1e-5)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
@pytest.mark.parametrize("shape", [(6, 5), (5, 6), (2, 9)])
def test_transposes_are_transposes_at_every_border(size, shape):
    bank = FilterBank(somewhere(2 * size * size, 0).reshape(2, size, size))
    x = somewhere(3 * shape[0] * shape[1], 1).reshape(3, 1, *shape)
    u = somewhere(6 * shape[0] * shape[1], 2).reshape(3, 2, *shape)
    assert float((bank(x) * u).sum()) == pytest.approx(float((x * bank.transposed(u)).sum()), rel=1e-12)
    torch.testing.assert_close(bank.transposed_each(u).sum(1, keepdim=True), bank.transposed(u))
    (patches,) = bank.patches(x)
    torch.testing.assert_close((bank.flat @ patches).reshape_as(u), bank(x))


@pytest.mark.parametrize("cached", [1, 150, 1000])
def test_working_in_strips_changes_nothing(cached, monkeypatch):
    problem = expert_problem(5, 9, 8, 2, count=3, size=4)
    raw, w, v = raw_of(problem), problem.initial_weights(0), somewhere(720, 1)
    whole = problem.oracle().inner(w, raw), problem.oracle().hvp(w, raw)(v), problem.oracle().cross(w, raw, v)
    monkeypatch.setattr(filters, "_CACHED", cached)
    strips = problem.oracle().inner(w, raw), problem.oracle().hvp(w, raw)(v), problem.oracle().cross(w, raw, v)
    torch.testing.assert_close(strips[0].value, whole[0].value, rtol=1e-13, atol=0)
    torch.testing.assert_close(strips[0].gradient, whole[0].gradient, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(strips[1], whole[1], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(strips[2], whole[2], rtol=1e-11, atol=1e-13)


def test_an_image_is_continued_by_its_mirror_image():
    shift = torch.zeros(1, 3, 3, dtype=torch.float64)
    shift[0, 0, 0] = 1.0  # looks up and to the left
    x = torch.arange(6.0, dtype=torch.float64).reshape(1, 1, 2, 3)
    expected = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(FilterBank(shift)(x)[0, 0], expected)


def test_a_flat_image_is_free_of_charge():
    penalty = field_of_experts(count=5, size=4)
    flat = torch.full((2, 1, 6, 7), 0.3, dtype=torch.float64)
    hyper = {quantity.name: torch.as_tensor(quantity.initial) for quantity in penalty.quantities()}
    value, gradient = penalty.value_and_gradient(flat, hyper)
    assert float(value) == pytest.approx(0.0, abs=1e-12)
    assert float(gradient.abs().max()) < 1e-12


@pytest.mark.parametrize(("shape", "bank"), CASES)
@pytest.mark.parametrize("fixed", FIXED)
def test_constants_bound_what_they_say(shape, bank, fixed):
    problem = expert_problem(*shape, count=bank[0], size=bank[1], fixed=fixed)
    oracle, raw = problem.oracle(), raw_of(problem)
    constants = oracle.constants(raw)
    assert constants is not None
    assert math.isinf(constants.cross_lipschitz) == (fixed != "filters")
    p = math.prod(problem.noisy.shape)
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        size, apart = (10.0 ** float(-3 * torch.rand((), generator=generator)) for _ in range(2))
        w = size * torch.randn(p, dtype=torch.float64, generator=generator)
        z = w + apart * size * torch.randn(p, dtype=torch.float64, generator=generator)
        distance = float((w - z).norm())
        H = hessian(oracle, w, raw)
        spectrum = torch.linalg.eigvalsh(H)
        assert constants.strong_convexity <= float(spectrum[0]) + 1e-12
        assert float(spectrum[-1]) <= constants.smoothness
        change = torch.linalg.matrix_norm(H - hessian(oracle, z, raw), 2)
        assert float(change) <= constants.hessian_lipschitz * distance
        J = jacobian(oracle, w, raw)
        assert float(torch.linalg.matrix_norm(J - jacobian(oracle, z, raw), 2)) <= constants.cross_lipschitz * distance
        norm = oracle.cross_norm(w, raw)
        assert norm is not None
        assert float(torch.linalg.matrix_norm(J, 2)) <= norm <= 30.0 * float(torch.linalg.matrix_norm(J, 2))


def test_the_gain_is_an_upper_bound_and_a_near_one():
    bank = FilterBank(cosine_filters(6, 5, seed=3))
    scales = torch.linspace(0.1, 2.0, 6, dtype=torch.float64)
    fine = torch.fft.fft2(bank.filters, s=(1024, 1024)).abs().square()
    largest = float(torch.einsum("k,kab->ab", scales, fine).max())
    assert largest <= bank.gain(scales) <= 1.03 * largest


def test_filters_start_near_cosines_without_a_mean():
    found = cosine_filters(10, 3, seed=1)
    assert found.shape == (10, 3, 3)
    torch.testing.assert_close(found.mean((1, 2)), torch.zeros(10, dtype=torch.float64), rtol=0, atol=1e-15)
    torch.testing.assert_close(found.flatten(1).norm(dim=1), torch.ones(10, dtype=torch.float64))
    gram = found[:8].flatten(1) @ found[:8].flatten(1).T
    # A tenth of noise on each of two orthogonal filters.
    torch.testing.assert_close(gram, torch.eye(8, dtype=torch.float64), rtol=0, atol=0.2)
    assert torch.equal(found, cosine_filters(10, 3, seed=1))
    assert not torch.equal(found, cosine_filters(10, 3, seed=2))
    row = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
    across = torch.outer(torch.ones(3, dtype=torch.float64), row) / math.sqrt(6.0)
    assert float((found[0] * across).sum()) > 0.98


@pytest.mark.parametrize(("shape", "bank"), CASES)
def test_hypergradient_agrees_with_central_differences(shape, bank):
    problem = expert_problem(*shape, count=bank[0], size=bank[1])
    raw, oracle = raw_of(problem), problem.oracle()
    w = LBFGS().solve(oracle, raw, problem.initial_weights(0), tol=1e-12).w
    gradient = hypergradient(oracle, w, raw, CG(), tol=1e-12).value
    check = directional_check(
        oracle, LBFGS(), raw, w, gradient, random_direction(raw, seed=3), tol=1e-12, steps=(1e-3, 1e-4)
    )
    assert check.relative_error < 1e-5


def test_steps_are_certified_though_hypergradients_have_no_bound():
    problem = expert_problem(2, 10, 10)
    method = MAID(tolerance=1e-4)
    points = [point for _, point in run(method, problem, method.init(problem, seed=0), max_steps=6)]
    values = [point.valid_loss for point in points]
    assert values == sorted(values, reverse=True)
    for point in points:
        assert point.certificate is not None
        assert point.certificate["certified"] is True
        assert point.certificate["error_bound"] is None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gpu_finds_the_same(dtype):
    here = expert_problem(3, 24, 20, count=4, size=5, dtype=dtype)
    there = type(here)(here.noisy.cuda(), here.truth.cuda(), here.regularizer)
    raw = raw_of(here)
    found = []
    for problem in (here, there):
        tol = 1e-6 if dtype is torch.float64 else 1e-3
        images = denoise(problem, raw.to(problem.noisy.device), problem.noisy, inner=FISTA(), tol=tol, batch=2).images
        w = images.reshape(-1)
        gradient = hypergradient(problem.oracle(), w, raw.to(w.device), CG(), tol=1e-3 * tol).value
        found.append((images.cpu(), gradient.cpu()))
    # As near as both are to the minimiser.
    torch.testing.assert_close(*(images for images, _ in found), rtol=0, atol=1e-4 if tol == 1e-6 else 2e-2)
    torch.testing.assert_close(*(gradient for _, gradient in found), rtol=1e-2, atol=1e-2)


def test_images_in_a_batch_are_as_they_are_alone():
    problem = expert_problem(3, 8, 7)
    raw = raw_of(problem)
    together = denoise(problem, raw, problem.noisy, inner=FISTA(), tol=1e-10, batch=3)
    alone = denoise(problem, raw, problem.noisy, inner=LBFGS(), tol=1e-10, batch=1)
    assert together.converged
    assert alone.converged
    torch.testing.assert_close(together.images, alone.images, rtol=0, atol=1e-8)


def test_images_of_any_size_are_denoised():
    problem = expert_problem(2, 8, 7)
    raw = raw_of(problem)
    other = torch.as_tensor(scene(1, 12, 5, seed=4))
    found = denoise(problem, raw, other, inner=FISTA(), tol=1e-6, batch=1)
    assert found.images.shape == other.shape
    assert found.error <= 1e-6


def test_single_precision_is_near_double_precision():
    double, single = expert_problem(), expert_problem(dtype=torch.float32)
    w = double.initial_weights(0)
    exact = hypergradient(double.oracle(), w, raw_of(double), CG(), tol=1e-12).value
    rough = hypergradient(single.oracle(), w.float(), raw_of(single), CG(), tol=1e-4).value
    torch.testing.assert_close(rough.double(), exact, rtol=1e-3, atol=1e-3)


def test_images_that_are_too_small_are_refused():
    problem = expert_problem(1, 3, 9, size=8, count=2)
    with pytest.raises(LearnError, match="too small"):
        problem.oracle().inner(problem.initial_weights(0), raw_of(problem))


def test_shapes_that_do_not_fit_are_refused():
    whole = field_of_experts(count=3, size=3)
    with pytest.raises(LearnError, match="as many"):
        type(whole)(whole.strength, Quantity("w", 1.0, (2,)), whole.smoothing, whole.filters)
