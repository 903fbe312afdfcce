"""LoRD: two thin layers that mimic a layer's outputs, mean included.

    S = Cov(W x + b) = Q Λ Qᵀ     A = Q_kᵀ W     B = Q_k     b′ = Q_kQ_kᵀ b + (I − Q_kQ_kᵀ) E[W x + b]

    E‖y − ŷ‖² = Σ_{i>k} λ_i, the least of all affine maps of rank k

Source: Kaushal, Vaidhya & Rish, 2023, arXiv:2309.14021; the decomposition is that of Yu & Wu, AAAI 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from eckart.compression._calibration import Observed
from eckart.compression._census import Outline, matrix_shape, weight_matrix
from eckart.compression._method import FactorCompressor, saves
from eckart.errors import InputError
from eckart.linalg.moments import Moments
from eckart.linalg.svd import rank_for_energy
from eckart.linalg.whitened import Factors, balanced, mimic_factors, output_spectrum


@dataclass
class LoRD(FactorCompressor):
    """LoRD: keep the leading directions of each layer's outputs.

    Args:
        center: keep the mean of the outputs by a bias, which layers without one get. Off, the bias stays and the
            factors are those of the whitened SVD.
        energy: instead of a ratio, the least ranks with Σ_{i≤k} λ_i ≥ energy · Σλ_i, in (0, 1).
        balance: √Σ on both factors, for training and quantisation; the map is the same. Off, B is orthonormal.

    Raises:
        InputError: an option outside its range.
    """

    center: bool = True
    energy: float | None = None
    balance: bool = False

    slug: ClassVar[str] = "lord"
    instead: ClassVar[tuple[str, ...]] = ("rank", "energy")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.energy is not None and not 0 < self.energy < 1:
            raise InputError(f"energy is {self.energy}: give a share in (0, 1)")
        if self.energy is not None and self.ranks is not None:
            raise InputError(f"energy ({self.energy}) and ranks are both given: leave one out")

    @property
    def adds_bias(self) -> bool:
        return self.center

    def plan(self, outline: Outline, ratio: float | None, influence: Sequence[float]) -> None:
        if self.energy is None:
            super().plan(outline, ratio, influence)

    def replace(
        self, name: str, layer: nn.Module, observed: Observed | None
    ) -> tuple[nn.Module, float] | None:
        if self.energy is not None and isinstance(observed, Moments):
            gram = observed.covariance if self.center else observed.second
            values = output_spectrum(weight_matrix(layer), gram).values.sqrt()
            rank = rank_for_energy(values, self.energy)
            rank += -rank % (self.multiple_of or 1)
            if saves(matrix_shape(layer), rank):
                self._planned[name] = rank
        return super().replace(name, layer, observed)

    def factors(
        self,
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, " out"] | None,
        rank: int,
        moments: Moments | None,
    ) -> Factors:
        assert moments is not None
        gram = moments.covariance if self.center else moments.second
        basis = output_spectrum(weight, gram).basis[:, :rank]
        factors = mimic_factors(weight, bias, basis, moments.mean if self.center else None)
        return balanced(factors) if self.balance else factors
