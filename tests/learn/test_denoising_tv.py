import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from tests.learn.denoising_cases import raw_of, scene, tv_problem
from workers.learn.autograd_oracle import AutogradOracle
from workers.learn.errors import LearnError
from workers.learn.hypergradient import hypergradient
from workers.learn.image_quality import quality
from workers.learn.inner.fista import FISTA, iteration_bound
from workers.learn.inner.lbfgs import LBFGS
from workers.learn.linear.cg import CG
from workers.learn.problem import Part
from workers.learn.problems.denoising import denoise
from workers.learn.problems.denoising_data import as_images, noisy
from workers.learn.verification import directional_check, random_direction

SHAPES = [(2, 9, 7, 1), (1, 8, 8, 3), (3, 1, 6, 1), (1, 5, 1, 1)]
FIXED = ["", "tv", "tv.smoothing"]


def somewhere(size: int, seed: int) -> torch.Tensor:
    return torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def hessian(oracle, w, raw) -> torch.Tensor:
    return torch.stack([oracle.hvp(w, raw)(row) for row in torch.eye(w.numel(), dtype=w.dtype)])


def jacobian(oracle, w, raw) -> torch.Tensor:
    columns = [oracle.cross_forward(w, raw, row) for row in torch.eye(raw.numel(), dtype=raw.dtype)]
    return torch.stack(columns, 1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fixed", FIXED)
def test_closed_forms_agree_with_autograd(shape, fixed):
    problem = tv_problem(*shape, fixed=fixed)
    closed, auto, raw = problem.oracle(), AutogradOracle(problem), raw_of(problem)
    w = problem.initial_weights(0)
    v, direction = somewhere(w.numel(), 1), somewhere(raw.numel(), 2)
    pairs = [
        (closed.inner(w, raw).value, auto.inner(w, raw).value),
        (closed.inner(w, raw).gradient, auto.inner(w, raw).gradient),
        (closed.outer(w, raw).value, auto.outer(w, raw).value),
        (closed.outer(w, raw).gradient, auto.outer(w, raw).gradient),
        (closed.outer(w, raw).raw_gradient, auto.outer(w, raw).raw_gradient),
        (closed.hvp(w, raw)(v), auto.hvp(w, raw)(v)),
        (closed.cross(w, raw, v), auto.cross(w, raw, v)),
        (closed.cross_forward(w, raw, direction), auto.cross_forward(w, raw, direction)),
    ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_definitions_differentiate_twice():
    problem = tv_problem(1, 4, 3)
    w = problem.initial_weights(0).clone().requires_grad_()
    raw = raw_of(problem).requires_grad_()
    assert gradcheck(problem.inner, (w, raw), atol=1e-6)
    assert gradgradcheck(problem.inner, (w, raw), atol=1e-5)
    assert gradcheck(problem.outer, (w, raw.detach()), atol=1e-6)


def test_products_with_the_hessian_are_symmetric_positive_and_repeatable():
    problem = tv_problem()
    raw, w = raw_of(problem), problem.initial_weights(0)
    H = hessian(problem.oracle(), w, raw)
    torch.testing.assert_close(H, H.T, rtol=0, atol=1e-14)
    assert torch.equal(H, hessian(problem.oracle(), w, raw))
    assert float(torch.linalg.eigvalsh(H)[0]) >= 1.0 / 2 - 1e-12


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fixed", FIXED)
def test_constants_bound_what_they_say(shape, fixed):
    problem = tv_problem(*shape, fixed=fixed)
    oracle, raw = problem.oracle(), raw_of(problem)
    constants = oracle.constants(raw)
    assert constants is not None
    p = math.prod(problem.noisy.shape)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        # From flat images, where the curvature is largest, to rough ones; from near to far.
        size, apart = (10.0 ** float(-3 * torch.rand((), generator=generator)) for _ in range(2))
        w = size * torch.randn(p, dtype=torch.float64, generator=generator)
        z = w + apart * size * torch.randn(p, dtype=torch.float64, generator=generator)
        distance = float((w - z).norm())
        H = hessian(oracle, w, raw)
        spectrum = torch.linalg.eigvalsh(H)
        assert constants.strong_convexity <= float(spectrum[0]) + 1e-12
        assert float(spectrum[-1]) <= constants.smoothness * (1 + 1e-12)
        change = torch.linalg.matrix_norm(H - hessian(oracle, z, raw), 2)
        assert float(change) <= constants.hessian_lipschitz * distance
        J = jacobian(oracle, w, raw)
        assert float(torch.linalg.matrix_norm(J - jacobian(oracle, z, raw), 2)) <= constants.cross_lipschitz * distance
        norm = oracle.cross_norm(w, raw)
        assert norm is not None
        assert float(torch.linalg.matrix_norm(J, 2)) <= norm
        outer = (oracle.outer(w, raw).gradient - oracle.outer(z, raw).gradient).norm()
        assert float(outer) <= constants.outer_smoothness * distance * (1 + 1e-12)


def test_the_smoothness_is_attained_by_a_flat_image():
    problem = tv_problem(1, 8, 6)
    oracle, raw = problem.oracle(), raw_of(problem)
    constants = oracle.constants(raw)
    assert constants is not None
    flat = torch.full((48,), 0.5, dtype=torch.float64)
    assert float(torch.linalg.eigvalsh(hessian(oracle, flat, raw))[-1]) == pytest.approx(constants.smoothness)


@pytest.mark.parametrize("shape", [(2, 9, 7, 1), (1, 8, 8, 3)])
@pytest.mark.parametrize("fixed", FIXED)
def test_hypergradient_agrees_with_central_differences(shape, fixed):
    problem = tv_problem(*shape, fixed=fixed)
    raw, oracle = raw_of(problem), problem.oracle()
    w = LBFGS().solve(oracle, raw, problem.initial_weights(0), tol=1e-12).w
    gradient = hypergradient(oracle, w, raw, CG(), tol=1e-12).value
    check = directional_check(
        oracle, LBFGS(), raw, w, gradient, random_direction(raw, seed=3), tol=1e-12, steps=(1e-3, 1e-4)
    )
    assert check.relative_error < 1e-5


def test_images_in_a_batch_are_as_they_are_alone():
    problem = tv_problem(3, 9, 7)
    raw = raw_of(problem)
    together = problem.images(LBFGS().solve(problem.oracle(), raw, problem.initial_weights(0), tol=1e-12).w)
    for batch in (1, 2, 3):
        # Each distance to the minimiser is below 1e-10 · √p.
        alone = denoise(problem, raw, problem.noisy, inner=LBFGS(), tol=1e-10, batch=batch)
        assert alone.converged
        assert alone.error <= 1e-10
        torch.testing.assert_close(alone.images, together, rtol=0, atol=1e-9)


def test_order_of_images_does_not_matter():
    problem = tv_problem(3, 9, 7)
    other = type(problem)(problem.noisy.flip(0), problem.truth.flip(0), problem.regularizer)
    raw = raw_of(problem)
    found = []
    for each in (problem, other):
        w = LBFGS().solve(each.oracle(), raw, each.initial_weights(0), tol=1e-12).w
        found.append(hypergradient(each.oracle(), w, raw, CG(), tol=1e-12).value)
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-10)


def test_a_strong_penalty_flattens_and_a_weak_one_changes_nothing():
    weak, strong = tv_problem(strength=1e-6), tv_problem(strength=1e3, smoothing=0.1)
    for problem, expected in ((weak, weak.noisy), (strong, strong.noisy.mean((2, 3), keepdim=True))):
        x = denoise(problem, raw_of(problem), problem.noisy, inner=LBFGS(), tol=1e-8, batch=2).images
        torch.testing.assert_close(x, expected.expand_as(x), rtol=0, atol=1e-3)


def test_the_error_that_is_reported_bounds_the_true_one():
    problem = tv_problem(3, 9, 7)
    raw = raw_of(problem)
    exact = denoise(problem, raw, problem.noisy, inner=LBFGS(), tol=1e-11, batch=3).images
    for tol in (1e-1, 1e-2, 1e-3, 1e-4):
        rough = denoise(problem, raw, problem.noisy, inner=FISTA(), tol=tol, batch=2)
        assert float((rough.images - exact).square().mean().sqrt()) <= rough.error <= tol


def test_parts_are_the_fit_to_what_is_known_and_to_the_truth():
    problem = tv_problem()
    w = problem.initial_weights(0)
    assert problem.evaluate(w, Part.TRAIN)["loss"] == 0.0
    valid = problem.evaluate(w, Part.VALID)
    assert valid["loss"] == pytest.approx(float(problem.outer(w, raw_of(problem))))
    assert valid == {"loss": valid["loss"], **quality(problem.noisy, problem.truth)}
    with pytest.raises(LearnError):
        problem.evaluate(w, Part.TEST)
    assert problem.named_weights(w)["images"].shape == problem.noisy.shape


def test_single_precision_finds_the_same_images():
    double, single = tv_problem(), tv_problem(dtype=torch.float32)
    exact = denoise(double, raw_of(double), double.noisy, inner=FISTA(), tol=1e-9, batch=2)
    rough = denoise(single, raw_of(single), single.noisy, inner=FISTA(), tol=1e-4, batch=2)
    assert rough.converged
    assert rough.images.dtype == torch.float32
    torch.testing.assert_close(rough.images.double(), exact.images, rtol=0, atol=1e-3)


def test_noise_belongs_to_an_image_and_not_to_its_batch():
    images = scene(4, 6, 5)
    whole = noisy(images, 0.1, 7)
    assert np.array_equal(noisy(images[2:3], 0.1, 7, indices=[2]), whole[2:3])
    assert np.array_equal(noisy(images[[3, 0]], 0.1, 7, indices=[3, 0]), whole[[3, 0]])
    assert not np.array_equal(noisy(images, 0.1, 8), whole)
    np.testing.assert_allclose((noisy(images, 0.2, 7) - images), 2.0 * (whole - images), rtol=1e-12)


def test_noise_has_the_variance_that_was_asked_for():
    flat = np.zeros((4, 1, 64, 64))
    drawn = noisy(flat, 0.25, 0)
    # 16384 draws: the relative error of a variance is √(2/16384), about 0.011.
    assert drawn.var() == pytest.approx(0.0625, rel=0.05)
    assert abs(np.corrcoef(drawn[0].ravel(), drawn[1].ravel())[0, 1]) < 0.06


def test_pixels_become_numbers_between_zero_and_one():
    gray = np.array([[[0, 255], [51, 102]]], dtype=np.uint8)
    np.testing.assert_allclose(as_images(gray), [[[[0.0, 1.0], [0.2, 0.4]]]])
    colour = np.zeros((2, 4, 5, 3), dtype=np.uint8)
    assert as_images(colour).shape == (2, 3, 4, 5)
    np.testing.assert_allclose(as_images(gray / 255.0), as_images(gray))
    for wrong in (np.zeros((3, 3)), np.zeros((2, 4, 4, 2)), np.full((1, 2, 2), np.nan)):
        with pytest.raises(LearnError):
            as_images(wrong)


@pytest.mark.parametrize("smoothing", [0.2, 0.02, 0.002])
def test_fista_is_as_fast_as_it_promises(smoothing):
    problem = tv_problem(smoothing=smoothing)
    oracle, raw, w0 = problem.oracle(), raw_of(problem), problem.initial_weights(0)
    constants = oracle.constants(raw)
    assert constants is not None
    exact = FISTA().solve(oracle, raw, w0, tol=1e-13).w
    distance = float((w0 - exact).norm())
    for target in (1e-1, 1e-3, 1e-6):
        k = iteration_bound(constants.strong_convexity, constants.smoothness, distance=distance, target=target)
        # Stopped after k − 1 steps it is at z, and the k-th step from there leads to x_k.
        last = FISTA(max_iterations=k - 1).solve(oracle, raw, w0, tol=0.0)
        assert last.iterations == k - 1
        assert float((last.w - last.gradient / constants.smoothness - exact).norm()) <= target


def test_fista_measures_what_it_returns_and_counts_what_it_spent():
    problem = tv_problem()
    oracle, raw, w0 = problem.oracle(), raw_of(problem), problem.initial_weights(0)
    found = FISTA().solve(oracle, raw, w0, tol=1e-6)
    assert found.converged
    assert found.gradient_norm == pytest.approx(float(oracle.inner(found.w, raw).gradient.norm()))
    assert found.gradient_norm <= 1e-6
    assert found.cost.gradients == found.iterations + 1
    again = FISTA().solve(oracle, raw, found.w, tol=1e-6)
    assert again.iterations == 0
    assert torch.equal(again.w, found.w)


def test_fista_beats_gradient_descent_by_the_root_of_the_condition():
    problem = tv_problem(smoothing=0.002)
    oracle, raw, w0 = problem.oracle(), raw_of(problem), problem.initial_weights(0)
    constants = oracle.constants(raw)
    assert constants is not None
    w, steps = w0, 0
    while float((gradient := oracle.inner(w, raw).gradient).norm()) > 1e-8:
        w, steps = w - gradient / constants.smoothness, steps + 1
    assert FISTA().solve(oracle, raw, w0, tol=1e-8).iterations < 0.5 * steps


def test_fista_says_when_precision_or_patience_ran_out():
    problem = tv_problem(dtype=torch.float32)
    oracle, raw, w0 = problem.oracle(), raw_of(problem), problem.initial_weights(0)
    unreachable = FISTA().solve(oracle, raw, w0, tol=1e-12)
    assert not unreachable.converged
    assert unreachable.gradient_norm < 1e-4
    assert unreachable.iterations < 100_000
    short = FISTA(max_iterations=3).solve(oracle, raw, w0, tol=1e-6)
    assert (short.iterations, short.converged) == (3, False)


def test_fista_needs_constants():
    problem = tv_problem()
    with pytest.raises(LearnError, match="constants"):
        FISTA().solve(AutogradOracle(problem), raw_of(problem), problem.initial_weights(0), tol=1e-3)
