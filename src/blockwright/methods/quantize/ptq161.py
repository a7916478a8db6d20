"""Ptq161: inputs of the largest activations in 4 bits, signs for the rest, all values fitted.

Paper:   Zhao et al., "PTQ1.61: Push the Real Limit of Extremely Low-Bit Post-Training Quantization
         Methods for Large Language Models", ACL 2025.
Idea:    A fifth of the inputs carries most of the output.  With these columns in 4 bits the others
         bear one bit, if their two values per row and a factor per column are fitted to the output.

Equations -> code
    mask     top 20% of max |x|                       largest_inputs
    start    alpha sign(W - mu) + mu                  signed: the means of both sides of mu
    learn    r1 r2 (alpha sign(W - mu) + mu)          fitted_factor (r2), fitted_rows (the rest)
    turns    codes anew on what was fitted            swept, descended
Shapes:  O out features, I in features, K columns in 4 bits, J = I - K.
Units:   error = squared output error, summed over O, mean over tokens.  Cost = bytes as stored.
Needs:   INPUT_GRAM, INPUT_ABSMAX.   Fills: bin.
Cost:    time O(I^3 + O I^2) and six products O(O I^2) per round, memory eight copies of W.
Differs from the paper:
    1. Least squares on the Gram of the inputs in turns, where the paper trains by Adam on outputs
       of the block; local healing is that, for the same tensors, behind it.
    2. Signs are found again on what was fitted, by GPTQ's sweep and by coordinate descent; the
       sweep takes the columns of one bit first, so that those of 4 bits make up for them, and only
       then fits their ranges.  ``rounds=0,passes=0`` leaves the paper's codes.
    3. Rows are scaled up in the end until outputs follow the original's (see quantease).
    4. The paper's preprocessing, LoRA on the quantized model merged into the weights, is left out:
       it is fine-tuning of the model on text, not a way to fill a format.
Raises:  NumericalError when W or H is not finite, no token reached the site, or H cannot be
         factored.
Checked: error against a random mask, against what is not fitted, against two bits:
         tests/claims/test_ptq161.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.errors import CandidateError, NumericalError
from blockwright.methods.quantize._range_search import check_finite, input_energy
from blockwright.numerics.column_rounding import ColumnRounder, column_rounder, either
from blockwright.numerics.column_sweep import sweep, tiles_of
from blockwright.numerics.coordinate_descent import descend
from blockwright.numerics.finite import all_finite
from blockwright.numerics.grids import AffineGrid, OffsetGrid
from blockwright.numerics.inverse_hessian import damped, upper_factor
from blockwright.numerics.losses import quadratic_error
from blockwright.numerics.outliers import largest_inputs
from blockwright.numerics.ranges import FLAT_SCALE, SCALE_DTYPE
from blockwright.numerics.scale_refit import fit_coefficients, following_gain
from blockwright.types import (
    Format,
    Grid,
    GridSolution,
    LinearMethod,
    SalientFormat,
    SalientSolution,
    Statistic,
    Statistics,
)

FACTOR_RIDGE = 1e-3
"""Pulls factors to what they were, relative to the diagonal."""
FACTOR_RANGE = (0.25, 4.0)


@dataclass(frozen=True, kw_only=True)
class Ptq161(LinearMethod):
    """PTQ1.61: a structured mask, binarized weights, fitted values."""

    paper: ClassVar[str] = "Zhao et al., PTQ1.61, ACL 2025"
    family: ClassVar[str] = "quantize"
    version: ClassVar[int] = 1
    fills: ClassVar[type[Format]] = SalientFormat  # type: ignore[type-abstract]

    damping: float = 0.01
    rounds: int = 2
    """Times that values are fitted and codes found anew by GPTQ's sweep."""
    passes: int = 2
    """Passes of coordinate descent, values fitted after each."""
    unbiased: bool = True
    """Whether rows are scaled up in the end."""

    def __post_init__(self) -> None:
        if not 0 < self.damping < float("inf"):
            raise CandidateError(
                f"option ptq161@damping: got {self.damping}, needs a number above 0"
            )
        for name in ("rounds", "passes"):
            if getattr(self, name) < 0:
                raise CandidateError(
                    f"option ptq161@{name}: got {getattr(self, name)}, needs 0 or more"
                )

    @property
    def needs(self) -> frozenset[Statistic]:
        return frozenset({Statistic.INPUT_GRAM, Statistic.INPUT_ABSMAX})

    def solve(self, W_OI: Tensor, statistics: Statistics, format: Format) -> SalientSolution:
        check_finite(W_OI)
        if not isinstance(format, SalientFormat):
            raise CandidateError(f"ptq161 cannot fill {format.name}: it fills bin formats")
        h_I = input_energy(statistics)
        columns_K = largest_inputs(
            statistics.need(Statistic.INPUT_ABSMAX), format.kept(W_OI.shape[1])
        )
        is_salient_I = torch.zeros_like(h_I, dtype=torch.bool).index_fill_(0, columns_K, True)
        order = torch.argsort(h_I, descending=True, stable=True)
        order = torch.cat([order[~is_salient_I[order]], order[is_salient_I[order]]])
        H_II = statistics.need(Statistic.INPUT_GRAM)
        U_II = upper_factor(H_II, self.damping, order=order)
        layer = _Layer(W_OI, damped(H_II, self.damping), U_II, order, is_salient_I, format)
        found = layer.signed()
        best = _Best(layer, found)
        for _ in range(self.rounds):
            found = layer.swept(best.take(layer.fitted(found)))
            best.take(found)
        for _ in range(self.passes):
            found = layer.descended(best.take(layer.fitted(found)))
            best.take(found)
        best.take(layer.fitted(found))
        return layer.unbiased(best.solution) if self.unbiased else best.solution


@dataclass(frozen=True)
class _Layer:
    """A weight and the damped Gram of its inputs."""

    W_OI: Tensor
    H_II: Tensor
    U_II: Tensor
    """Of the inverse, in ``order``."""
    order: Tensor
    """By falling energy, columns of one bit first."""
    is_salient_I: Tensor  # noqa: N815 - shape suffix
    format: SalientFormat

    def signed(self) -> SalientSolution:
        """Rounded to nearest; signs of W - mu, sign(0) = 1, and the means of both sides."""
        W_OK, W_OJ = self._parts(self.W_OI)
        grid = self.format.salient.fit_grid(W_OK)
        mu_O1 = W_OJ.mean(1, keepdim=True)
        is_high_OJ = mu_O1 <= W_OJ
        count_O1 = is_high_OJ.sum(1, keepdim=True)
        high_O1 = (W_OJ * is_high_OJ).sum(1, keepdim=True) / count_O1
        low_O1 = (W_OJ * ~is_high_OJ).sum(1, keepdim=True) / (W_OJ.shape[1] - count_O1).clamp(min=1)
        flat_O1 = (count_O1 == W_OJ.shape[1]) | (high_O1 <= low_O1)
        return SalientSolution(
            columns_K=self.is_salient_I.nonzero()[:, 0],
            salient=GridSolution(codes_OI=grid.encode(W_OK, slice(None)), grid=grid),
            rest=GridSolution(
                codes_OI=is_high_OJ.to(torch.uint8),
                grid=OffsetGrid(
                    stored(torch.where(flat_O1, FLAT_SCALE, high_O1 - low_O1)),
                    stored(high_O1),
                    2,
                    0,
                ),
            ),
            factor_J=torch.ones_like(W_OJ[0]),
        )

    def fitted(self, last: SalientSolution) -> SalientSolution:
        """The best values for the codes: factors, then those of the rows."""
        return self.fitted_rows(self.fitted_factor(last))

    def fitted_factor(self, last: SalientSolution) -> SalientSolution:
        """The best factor of every column of one bit, all at once: D is linear in them."""
        V_OJ = last.rest.weight()
        T_OI = self.W_OI.clone()  # what the signs have to give
        T_OI[:, self.is_salient_I] -= last.salient.weight()
        is_rest_I = ~self.is_salient_I
        A_JJ = self.H_II[is_rest_I][:, is_rest_I] * (V_OJ.T @ V_OJ)
        b_J = ((T_OI @ self.H_II)[:, is_rest_I] * V_OJ).sum(0)
        ridge_J = FACTOR_RIDGE * A_JJ.diagonal()
        ridge_J = ridge_J.clamp(min=torch.finfo(torch.float32).tiny)
        A_JJ.diagonal().add_(ridge_J)
        found_J, info = torch.linalg.solve_ex(A_JJ, b_J + ridge_J * last.factor_J)
        if int(info) or not all_finite(found_J):
            return last
        return replace(last, factor_J=self.format.stored_factor(found_J.clamp(*FACTOR_RANGE)))

    def fitted_rows(self, last: SalientSolution) -> SalientSolution:
        """The best scale of the columns in 4 bits and the best two values, row by row."""
        salient, rest = grids_of(last)
        bases = self.W_OI.new_zeros(3, *self.W_OI.shape)
        bases[0][:, self.is_salient_I] = last.salient.codes_OI - salient.zero_point
        bases[1][:, ~self.is_salient_I] = (last.rest.codes_OI.float() - rest.center) * last.factor_J
        bases[2][:, ~self.is_salient_I] = last.factor_J
        start_O3 = torch.cat([salient.scale, rest.scale, rest.offset], 1)
        found_O3 = stored(fit_coefficients(bases.unbind(), self.W_OI, self.H_II, start_O3))
        valid_O1 = ((found_O3[:, :2] > 0).all(1) & torch.isfinite(found_O3).all(1))[:, None]
        return with_rows(last, torch.where(valid_O1, found_O3, start_O3))

    def swept(self, last: SalientSolution) -> SalientSolution:
        """GPTQ: columns of one bit, then a new range and codes of the others."""
        W_IO = (self.W_OI / self._factor(last)).T[self.order]
        U_II = self.U_II / self._factor(last)[self.order]
        ones = int((~self.is_salient_I).sum())
        sweep(W_IO, U_II, self._rounder(last), tiles_of(ones))
        W_OK, _ = self._parts(self._unordered(W_IO))
        grid = self.format.salient.fit_grid(W_OK.contiguous())
        last = replace(last, salient=replace(last.salient, grid=grid))
        tiles = [slice(ones + t.start, ones + t.stop) for t in tiles_of(len(W_IO) - ones)]
        sweep(W_IO, U_II, self._rounder(last), tiles)
        return self._encoded(W_IO, last)

    def descended(self, last: SalientSolution) -> SalientSolution:
        """One pass of coordinate descent over all codes."""
        f_I, order = self._factor(last), self.order
        W_IO = (self.W_OI / f_I).T[order]
        Q_IO = (last.weight() / f_I).T[order]
        H_II = (self.H_II * f_I * f_I[:, None])[order[:, None], order]
        descend(Q_IO, W_IO, H_II, self._rounder(last), tiles_of(len(Q_IO)))
        return self._encoded(Q_IO, last)

    def unbiased(self, found: SalientSolution) -> SalientSolution:
        """Rows scaled so that E[y_hat y] = E[y^2]."""
        salient, rest = grids_of(found)
        values_O3 = torch.cat([salient.scale, rest.scale, rest.offset], 1)
        gain_O = following_gain(self.W_OI, found.weight(), self.H_II)
        return with_rows(found, stored(values_O3 * gain_O[:, None]))

    def error(self, found: SalientSolution) -> float:
        return quadratic_error(found.weight() - self.W_OI, self.H_II)

    def _parts(self, W_OI: Tensor) -> tuple[Tensor, Tensor]:
        return W_OI[:, self.is_salient_I], W_OI[:, ~self.is_salient_I]

    def _factor(self, found: SalientSolution) -> Tensor:
        """[I]; 1 in columns of 4 bits."""
        factor_I = torch.ones_like(self.W_OI[0])
        factor_I[~self.is_salient_I] = found.factor_J
        return factor_I

    def _rounder(self, found: SalientSolution) -> ColumnRounder:
        """Of W over its factors, in ``order``; both grids have one group."""
        rest, salient = (
            column_rounder(each.grid, self.order) for each in (found.rest, found.salient)
        )
        return either(rest, salient, self.is_salient_I[self.order].tolist())

    def _unordered(self, W_IO: Tensor) -> Tensor:
        return W_IO[torch.argsort(self.order)].T

    def _encoded(self, Q_IO: Tensor, last: SalientSolution) -> SalientSolution:
        """The codes of values that are on the grids."""
        if not all_finite(Q_IO):
            raise NumericalError("the compensated weights grew past float32; raise the damping")
        codes = [
            each.grid.encode(Q.contiguous(), slice(None))
            for each, Q in zip(
                (last.salient, last.rest), self._parts(self._unordered(Q_IO)), strict=True
            )
        ]
        return replace(
            last,
            salient=replace(last.salient, codes_OI=codes[0]),
            rest=replace(last.rest, codes_OI=codes[1]),
        )


class _Best:
    """The solution of least error so far: factors belong to all rows."""

    def __init__(self, layer: _Layer, start: SalientSolution) -> None:
        self._layer, self.solution, self._error = layer, start, layer.error(start)

    def take(self, found: SalientSolution) -> SalientSolution:
        """Keep it if it is better; the search goes on from it either way."""
        error = self._layer.error(found)
        if error < self._error:
            self.solution, self._error = found, error
        return found


def stored(values: Tensor) -> Tensor:
    """As it will be stored, fp32."""
    return values.to(SCALE_DTYPE).float()


def grids_of(found: SalientSolution) -> tuple[AffineGrid, OffsetGrid]:
    """The grids of both parts; ``CandidateError`` for a format of others."""
    salient, rest = found.salient.grid, found.rest.grid
    if not isinstance(salient, AffineGrid) or not isinstance(rest, OffsetGrid):
        raise CandidateError("ptq161 fits uniform grids: an integer one, and one with offsets")
    return salient, rest


def with_rows(found: SalientSolution, values_O3: Tensor) -> SalientSolution:
    """Other scales of the columns in 4 bits, and other scales and offsets of the others, [O, 3]."""
    salient, rest = grids_of(found)
    scale, step, offset = (values_O3[:, n : n + 1].contiguous() for n in range(3))
    grid: Grid = replace(salient, scale=scale)
    return replace(
        found,
        salient=replace(found.salient, grid=grid),
        rest=replace(found.rest, grid=replace(rest, scale=step, offset=offset)),
    )


METHOD = Ptq161
