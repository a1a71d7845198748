"""Fields of experts: penalties on what learned filters respond to."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from workers.learn.errors import LearnError
from workers.learn.hyperparameters import Hyper
from workers.learn.regularizers.filters import FilterBank
from workers.learn.regularizers.image import AbstractImageRegularizer, ImageBounds, Quantity, learned
from workers.learn.regularizers.modulus import THIRD_DERIVATIVE, Modulus

# Gram matrices of columns are formed in floating point.
_ROUNDING = 1.0 + 1e-5


@final
@dataclass(frozen=True, eq=False)
class FieldOfExperts(AbstractImageRegularizer):
    """R = c Σ_k w_k Σ_pixels φ_k(f_k ∗ x), φ_k(t) = √(t² + ν_k²) − ν_k.

    c is `strength`, w `weights` [k], ν `smoothing` [k] and f `filters` [k, s, s]. Convex, since φ is and w ≥ 0. Several
    parametrisations say the same (a filter's length moves into its weight and its smoothing); along them nothing
    changes, and a descent method leaves them alone.

    Source: Roth & Black (2009); convex and learned as a bilevel problem in Kunisch & Pock (2013); parametrised as in
    Salehi et al. (2023), section 4.3. Borders: see `FilterBank`.
    """

    strength: Quantity
    weights: Quantity
    smoothing: Quantity
    filters: Quantity

    def __post_init__(self) -> None:
        shape = self.filters.shape
        if len(shape) != 3 or shape[1] != shape[2] or shape[1] < 2 or shape[0] < 1:
            raise LearnError(f"filters have shape {shape}; expected (k, s, s) with s ≥ 2")
        if not self.weights.shape == self.smoothing.shape == shape[:1]:
            raise LearnError(f"{shape[0]} filters need as many weights and smoothings")

    def quantities(self) -> tuple[Quantity, ...]:
        """See `AbstractImageRegularizer.quantities`."""
        return (self.strength, self.weights, self.smoothing, self.filters)

    def __call__(self, x: Tensor, hyper: Hyper) -> Tensor:
        """See `AbstractImageRegularizer.__call__`."""
        at = self._at(hyper, x)
        return (at.scales * Modulus(at.bank(_single(x)), at.nu).value).sum()

    def value_and_gradient(self, x: Tensor, hyper: Hyper) -> tuple[Tensor, Tensor]:
        """See `AbstractImageRegularizer.value_and_gradient`."""
        at = self._at(hyper, x)
        roots = torch.zeros_like(at.weights)

        def slope(_: int, responses: Tensor) -> Tensor:
            # `Modulus` in place: passes over the responses cost as much as the filters do.
            root = responses.square().add_(at.nu.square()).sqrt_()
            roots.add_(root.sum((0, 2, 3)))
            return responses.mul_(at.scales).div_(root)

        gradient = at.bank.there_and_back(_single(x), slope).reshape(x.shape)
        return torch.dot(at.scales.reshape(-1), roots - x.numel() * at.nu.reshape(-1)), gradient

    def curvature(self, x: Tensor, hyper: Hyper) -> Callable[[Tensor], Tensor]:
        """See `AbstractImageRegularizer.curvature`."""
        at = self._at(hyper, x)
        diagonals: list[Tensor] = []

        def keep(_: int, responses: Tensor) -> Tensor:
            diagonals.append(at.scales * Modulus(responses, at.nu).curvature)
            return responses

        at.bank.there_and_back(_single(x), keep)

        def product(v: Tensor) -> Tensor:
            found = at.bank.there_and_back(_single(v), lambda place, responses: responses.mul_(diagonals[place]))
            return found.reshape(v.shape)

        return product

    def cross(self, x: Tensor, hyper: Hyper, q: Tensor) -> Mapping[str, Tensor]:
        """See `AbstractImageRegularizer.cross`."""
        at = self._at(hyper, x)
        flat, nu = at.bank.flat, at.nu[:, 0]
        of_slope, of_nu = torch.zeros_like(at.weights), torch.zeros_like(at.weights)
        of_filters = torch.zeros_like(flat)
        for patches, others in zip(at.bank.patches(_single(x)), at.bank.patches(_single(q)), strict=True):
            phi, response = Modulus(flat @ patches, nu), flat @ others
            of_slope += (phi.slope * response).sum((0, 2))  # ⟨φ′(A_k x), A_k q⟩, [k]
            of_nu += (phi.slope_by_nu * response).sum((0, 2))
            of_filters += (phi.slope @ others.mT).sum(0)
            of_filters += ((phi.curvature * response) @ patches.mT).sum(0)
        return {
            self.strength.name: torch.dot(at.weights, of_slope),
            self.weights.name: at.strength * of_slope,
            self.smoothing.name: at.strength * at.weights * of_nu,
            self.filters.name: (at.scales[:, 0] * of_filters).reshape_as(at.bank.filters),
        }

    def cross_forward(self, x: Tensor, hyper: Hyper, rates: Hyper) -> Tensor:
        """See `AbstractImageRegularizer.cross_forward`."""
        at = self._at(hyper, x)
        single = _single(x)
        phi = Modulus(at.bank(single), at.nu)
        moved = FilterBank(self.filters.rate(rates, x))
        of_scales = self.strength.rate(rates, x) * at.weights + at.strength * self.weights.rate(rates, x)
        slopes = (
            _by_filter(of_scales) * phi.slope
            + at.scales * _by_filter(self.smoothing.rate(rates, x)) * phi.slope_by_nu
            + at.scales * phi.curvature * moved(single)
        )
        return (at.bank.transposed(slopes) + moved.transposed(at.scales * phi.slope)).reshape(x.shape)

    def bounds(self, hyper: Hyper, like: Tensor) -> ImageBounds:
        """Return bounds from the gains of the filters, see `FilterBank.gain`, times ‖E‖².

        ∂²R = c Σ_k w_k A_kᵀ φ″_k(A_k x) A_k, where φ″_k ≤ 1/ν_k; two such matrices differ by no more than
        c ‖Σ_k w_k d_k A_kᵀ A_k‖ with d_k = (0.859/ν_k²) ‖E‖ ‖f_k‖ ‖x − z‖, a bound of |φ″(A_k x) − φ″(A_k z)|.

        The cross derivative in c, w and ν, logarithms, is Σ_k A_kᵀ c w_k (…) with derivatives in x of the same kind,
        entries within (|v_c| + |v_w,k| + |v_ν,k|)/ν_k ≤ √3 ‖v‖/ν_k. That in the filters has no Lipschitz constant:
        it contains φ″(A_k x) ∘ (v_k ∗ x), where v_k ∗ x may be as large as x is while A_k x is small.
        """
        at = self._at(hyper, like)
        height, width = like.shape[-2:]
        copies = at.bank.copies(height, width)
        flat = at.nu.reshape(-1)
        scales = at.scales.reshape(-1) / flat
        curvature = copies * at.bank.gain(scales)
        steepness = scales * (THIRD_DERIVATIVE / flat) * math.sqrt(copies) * at.bank.norms()
        others = sum(not quantity.fixed for quantity in (self.strength, self.weights, self.smoothing))
        return ImageBounds(
            curvature=curvature,
            curvature_lipschitz=copies * at.bank.gain(steepness),
            cross_lipschitz=math.sqrt(others) * curvature if self.filters.fixed else math.inf,
        )

    def cross_norm(self, x: Tensor, hyper: Hyper) -> float:
        """Return √(‖columns of c, w, ν‖² + Σ_k b_k²), the first exact and the b_k bounds for the filters.

        With images and filters stacked, ‖(v ∗ ·)ᵀ u‖ ≤ ‖E‖ s ‖v‖ ‖u‖ and
        ‖A_kᵀ (φ″ ∘ (v ∗ x))‖ ≤ ‖A_k‖ ‖v‖ √(Σ_j φ″_j² ‖patch_j‖²); b_k is c w_k times the sum of both without ‖v‖.
        """
        at = self._at(hyper, x)
        names = {quantity.name for quantity in learned(self)}
        k, size = self.filters.shape[:2]
        gram = x.new_zeros((2 * k + 1, 2 * k + 1))
        slopes, weighted = x.new_zeros(k), x.new_zeros(k)
        for image in torch.split(_single(x), 1):  # one by one: there is a column for every filter
            phi = Modulus(at.bank(image), at.nu)
            of_weights = (at.scales * at.bank.transposed_each(phi.slope))[0].flatten(1)
            of_nu = (at.scales * at.nu * at.bank.transposed_each(phi.slope_by_nu))[0].flatten(1)
            columns = torch.cat([of_weights.sum(0)[None], of_weights, of_nu])
            gram += columns @ columns.T
            slopes += phi.slope.square().sum((0, 2, 3))
            weighted += (phi.curvature.square() * at.bank.patch_energy(image)).sum((0, 2, 3))
        kept = [self.strength.name in names] + [self.weights.name in names] * k + [self.smoothing.name in names] * k
        chosen = torch.tensor(kept, device=x.device)
        square = float(torch.linalg.eigvalsh(gram[chosen][:, chosen].double())[-1].clamp_min(0.0)) if any(kept) else 0.0
        if self.filters.name in names:
            copies = at.bank.copies(x.shape[-2], x.shape[-1])
            reach = torch.stack([x.new_tensor(FilterBank(f[None]).gain(x.new_ones(1))) for f in at.bank.filters]).sqrt()
            parts = at.scales.reshape(-1) * math.sqrt(copies) * (size * slopes.sqrt() + reach * weighted.sqrt())
            square += float(parts.square().sum())
        return math.sqrt(square) * _ROUNDING

    def _at(self, hyper: Hyper, like: Tensor) -> "_Values":
        strength, weights, nu, filters = (quantity.value(hyper, like) for quantity in self.quantities())
        return _Values(FilterBank(filters), strength, weights, _by_filter(strength * weights), _by_filter(nu))


@dataclass(frozen=True, eq=False)
class _Values:
    """What the penalty is made of at one choice of hyperparameters."""

    bank: FilterBank
    strength: Tensor
    weights: Tensor
    """[k]."""
    scales: Tensor
    """c w_k, [k, 1, 1]."""
    nu: Tensor
    """[k, 1, 1]."""


def _single(x: Tensor) -> Tensor:
    """Return images [n, c, h, w] with channels as images of their own, [n c, 1, h, w]."""
    return x.reshape(-1, 1, *x.shape[-2:])


def _by_filter(values: Tensor) -> Tensor:
    """Return numbers [k] so that they meet responses [m, k, h, w]."""
    return values[:, None, None]
