"""Effects of compounds at doses: curves over the logarithm of the dose, and a Gaussian process over compounds, doses and cells.

Doses are used as logarithms, :func:`log_dose`, which are 0 for no compound and constant above the highest training dose,
so that effects are constant there as well. The prediction of every rule is a weighted sum of rows of effects,
:class:`DoseEffects`; a rule defines how the weights depend on compound, dose and control expression.

``"dose response"`` corresponds to ``"mixed"`` (:mod:`scgalore.perturb.baselines.mixed`) for genes. The effect of a
compound at a dose in a context is a sum of random functions of the dose, each 0 without a dose: one shared by all
compounds, one linear in the vector, one shared by compounds with similar vectors, one of the compound itself, and the
same four for contexts with similar control expression. The variance of each term is estimated by maximum likelihood,
given the known sampling variance; the prediction is the best linear unbiased one. A compound measured at other doses is
therefore predicted from its own curve, a new compound from those of similar compounds, and a new cell type from those of
similar cell types, each to the extent that the data support it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import linalg

from scgalore.errors import DataError
from scgalore.perturb.labels.parsing import Agent

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from scgalore.perturb.labels.profiles import Profiles

    Values = NDArray[np.float64]

__all__ = ["DOSE_RULES", "DoseEffects", "Space", "log_dose"]

BELOW = 10.0
"""Assumed ratio of the lowest dose of the data to a dose without effect."""

LENGTHS = (1.5, 3.0, 6.0)
"""Candidate length scales of a response, in natural logarithms of the dose; the most likely one is used."""

MOST_ROWS = 200
"""Maximum number of rows for estimating variances, whose cost is cubic in their number; predictions use all rows."""

N_COMPONENTS = 10
"""Principal components of the vectors used by the ridge regression."""


def log_dose(dose: float, lowest: float, highest: float = np.inf) -> float:
    """Logarithm of a dose, 0 for none and 2.4 for the lowest dose of the data.

    Parameters
    ----------
    dose
        Dose in the unit of the data.
    lowest
        Lowest dose of the data.
    highest
        Highest dose of the data; doses above it are replaced by it.
    """
    return float(np.log1p(BELOW * min(dose, highest) / lowest))


@dataclass(frozen=True)
class Space:
    """Coordinates of compounds, doses and contexts, by which they are compared.

    Attributes
    ----------
    lowest, highest
        Lowest and highest dose.
    compounds
        Compounds with a vector.
    vectors
        Their vectors, ``(len(compounds), k)``; without vectors ``k`` is 0.
    contexts
        Control expression of the contexts, ``(n_contexts, n_genes)``.
    """

    lowest: float
    highest: float
    compounds: tuple[str, ...] = field(repr=False, default=())
    vectors: Values = field(repr=False, default_factory=lambda: np.empty((0, 0)))
    contexts: Values = field(repr=False, default_factory=lambda: np.empty((0, 0)))

    @classmethod
    def of(cls, train: Profiles, table: pd.DataFrame | None) -> Space:
        """Make the space of training rows, with the vectors of all compounds that have one."""
        doses = [dose for _, dose in map(_compound, train.perturbed)]
        extent = min(doses), max(doses)
        contexts = train.control_means[np.unique(train.contexts)]
        if table is None or table.shape[1] == 0:
            return cls(*extent, contexts=contexts)
        return cls(*extent, tuple(map(str, table.index)), table.to_numpy(np.float64), contexts)

    def place(self, perturbed: tuple[str, ...]) -> tuple[str, float]:
        """Compound and logarithm of the dose."""
        compound, dose = _compound(perturbed)
        return compound, log_dose(dose, self.lowest, self.highest)

    def vector(self, compound: str) -> Values | None:
        """Vector of a compound, ``(k,)``; ``None`` without vectors.

        Raises
        ------
        DataError
            If other compounds have a vector and this one does not.
        """
        if not self.vectors.size:
            return None
        if compound not in self.compounds:
            msg = f"The compound {compound!r} has no vector, by which its effect could be predicted. Add it to the table of vectors_key=."
            raise DataError(msg)
        return np.asarray(self.vectors[self.compounds.index(compound)])

    def knowing(self, table: pd.DataFrame) -> Space:
        """Same space with vectors of additional compounds."""
        new = [name for name in table.index if name not in set(self.compounds)]
        if not new or not self.vectors.size:
            return self
        vectors = np.concatenate([self.vectors, table.loc[new].to_numpy(np.float64)])
        return replace(self, compounds=(*self.compounds, *map(str, new)), vectors=vectors)


@dataclass(frozen=True)
class DoseEffects:
    """Effect of a compound at a dose as a weighted sum of rows.

    Attributes
    ----------
    how
        Entry of :data:`WEIGHTS` that computes the weights.
    space
        Coordinates of the training data.
    rows
        Effects that are combined, ``(n, n_genes)``.
    compounds
        Compound of each row; ``""`` for rows that belong to no single compound.
    doses
        Logarithm of the dose of each row, ``(n,)``.
    contexts
        Context of each row, int64 ``(n,)``, as row of ``space.contexts``.
    numbers
        Parameters of the weights.
    """

    how: str
    space: Space = field(repr=False)
    rows: Values = field(repr=False)
    compounds: tuple[str, ...] = field(repr=False)
    doses: Values = field(repr=False)
    contexts: NDArray[np.int64] = field(repr=False)
    numbers: Values = field(repr=False, default_factory=lambda: np.empty(0))

    def predict(self, perturbed: tuple[str, ...], control: Values | None = None) -> Values:
        """Effect on mean log-normalised expression, ``(n_genes,)``; 0 for no compound.

        Parameters
        ----------
        perturbed
            One compound at a dose.
        control
            Mean expression of the control cells, ``(n_genes,)``; ``None`` uses the mean of the training contexts.
        """
        if not perturbed:
            return np.zeros(self.rows.shape[1])
        compound, dose = self.space.place(perturbed)
        return np.asarray(WEIGHTS[self.how](self, compound, dose, control) @ self.rows)

    def knowing(self, vectors: pd.DataFrame) -> DoseEffects:
        """Same rule with vectors of additional compounds, one row per compound."""
        return replace(self, space=self.space.knowing(vectors))


def _compound(perturbed: tuple[str, ...]) -> tuple[str, float]:
    compound, dose = Agent.of(perturbed[0])
    if len(perturbed) != 1 or dose is None:
        msg = f"{'+'.join(perturbed)!r} is not one compound at a dose, such as 'dexamethasone@0.5'; rules of doses predict no other."
        raise DataError(msg)
    return compound, dose


# Curves ---------------------------------------------------------------------------------------------------------------


def _dose_mean(train: Profiles, effects: Values, noise: Values, table: pd.DataFrame | None) -> DoseEffects:
    return _curves(train, effects, own=False)


def _interpolation(train: Profiles, effects: Values, noise: Values, table: pd.DataFrame | None) -> DoseEffects:
    return _curves(train, effects, own=True)


def _curves(train: Profiles, effects: Values, *, own: bool) -> DoseEffects:
    """Mean effect at each dose, over all compounds (``""``), and of each compound if ``own``."""
    space = Space.of(train, None)
    placed = [space.place(perturbed) for perturbed in train.perturbed]
    members: dict[tuple[str, float], list[int]] = {}
    for row, (compound, dose) in enumerate(placed):
        for name in ("", compound) if own else ("",):
            members.setdefault((name, dose), []).append(row)
    names, doses = zip(*members, strict=True)
    rows = np.array([effects[of_point].mean(axis=0) for of_point in members.values()])
    return DoseEffects("curve", space, rows, names, np.array(doses), np.zeros(len(rows), dtype=np.int64))


def _curve_weights(rule: DoseEffects, compound: str, dose: float, control: Values | None) -> Values:
    """Weights for linear interpolation between measured doses, starting at no effect without a dose; constant above the compound's highest dose."""
    name = compound if compound in rule.compounds else ""
    at = np.array([i for i, of_row in enumerate(rule.compounds) if of_row == name])
    at = at[np.argsort(rule.doses[at])]
    # The weight of a point is the value at this dose of the line that is 1 at the point and 0 at the others.
    points = np.concatenate([[0.0], rule.doses[at]])
    weights = np.zeros(len(rule.compounds))
    weights[at] = [np.interp(dose, points, np.eye(len(points))[i + 1]) for i in range(len(at))]
    return weights


# Ridge regression -----------------------------------------------------------------------------------------------------


def _vector_ridge(train: Profiles, effects: Values, noise: Values, table: pd.DataFrame | None) -> DoseEffects:
    from sklearn.linear_model import RidgeCV

    space = Space.of(train, table)
    axes = _axes(space, [_compound(perturbed)[0] for perturbed in train.perturbed])
    x = np.array([_features(space, axes, *space.place(perturbed)) for perturbed in train.perturbed])
    if len(x) < 3:  # too few to leave one out
        coefficients = np.concatenate([effects.mean(axis=0)[None], np.zeros((x.shape[1], effects.shape[1]))])
    else:
        model = RidgeCV(alphas=np.geomspace(1e-2, 1e3, 16)).fit(x, effects)
        weights = model.coef_.reshape(effects.shape[1], x.shape[1]).T
        coefficients = np.concatenate([np.broadcast_to(model.intercept_, (1, effects.shape[1])), weights])
    n = len(coefficients)
    return DoseEffects("ridge", space, coefficients, ("",) * n, np.zeros(n), np.zeros(n, dtype=np.int64), axes.ravel())


def _axes(space: Space, compounds: list[str]) -> Values:
    """Centre and principal axes of the vectors of training compounds, ``(1 + k', k)``, axes scaled to unit variance."""
    if not space.vectors.size:
        return np.empty((1, 0))
    vectors = _vectors_of(space, compounds)
    centre = vectors.mean(axis=0)
    _, spread, axes = np.linalg.svd(vectors - centre, full_matrices=False)
    used = spread[:N_COMPONENTS] > 1e-9 * max(spread[0], 1e-12)
    scaled = axes[:N_COMPONENTS][used] * (np.sqrt(len(vectors)) / spread[:N_COMPONENTS][used])[:, None]
    return np.concatenate([centre[None], scaled])


def _features(space: Space, axes: Values, compound: str, dose: float) -> Values:
    """Dose, vector, and their products."""
    vector = space.vector(compound)
    scores = np.empty(0) if vector is None else axes[1:] @ (vector - axes[0])
    return np.concatenate([[dose], scores, dose * scores])


def _ridge_weights(rule: DoseEffects, compound: str, dose: float, control: Values | None) -> Values:
    axes = rule.numbers.reshape(-1, rule.space.vectors.shape[1]) if rule.space.vectors.size else np.empty((1, 0))
    return np.concatenate([[1.0], _features(rule.space, axes, compound, dose)])


# Gaussian process -----------------------------------------------------------------------------------------------------

N_TERMS = 8
"""Number of terms: shared, linear in the vector, of similar vectors, of the compound itself; and these four for similar contexts."""


@dataclass(frozen=True)
class _Places:
    """Compounds, doses and contexts of some rows, with their coordinates.

    Attributes
    ----------
    names
        Unique names of the compounds.
    vectors
        Their vectors, relative to the mean of the training compounds, ``(len(names), k)``; ``k`` is 0 without vectors.
    controls
        Control expression of the contexts, ``(n_contexts, n_genes)``.
    compounds, contexts
        Number of the compound and of the context of each row, int64 ``(n,)``.
    doses
        Logarithms of their doses, ``(n,)``.
    """

    names: NDArray[np.str_]
    vectors: Values
    controls: Values
    compounds: NDArray[np.int64]
    contexts: NDArray[np.int64]
    doses: Values

    @classmethod
    def of(
        cls,
        space: Space,
        compounds: Sequence[str],
        doses: Values,
        contexts: NDArray[np.int64],
        controls: Values,
        centre: Values | None = None,
    ) -> _Places:
        """Look up rows in a space; without a centre, vectors are centred at their own mean."""
        names, codes = np.unique(np.array(compounds, dtype=str), return_inverse=True)
        vectors = _vectors_of(space, names.tolist())
        return cls(
            names, vectors - (vectors.mean(axis=0) if centre is None else centre), controls, codes, contexts, doses
        )

    def take(self, rows: NDArray[np.int64]) -> _Places:
        """Select rows."""
        return replace(self, compounds=self.compounds[rows], contexts=self.contexts[rows], doses=self.doses[rows])


def _terms(a: _Places, b: _Places, length: float, scales: tuple[float, float]) -> Values:
    """Covariance of each term at variance 1, ``(N_TERMS, n_a, n_b)``; 0 for terms that cannot be identified.

    Parameters
    ----------
    a, b
        Rows and columns; ``b`` are training rows.
    length
        Length scale of the response.
    scales
        Mean squared distances of vectors and of contexts.
    """

    def near(x: Values, y: Values) -> Values:
        return np.exp(-((x[:, None] - y) ** 2) / (2 * length**2))

    def of_rows(pairs: Values) -> Values:
        return pairs[a.compounds][:, b.compounds]

    none = np.zeros(1)
    # The response is 0 without a dose.
    dose = near(a.doses, b.doses) - near(a.doses, none) * near(none, b.doses)
    out = np.zeros((N_TERMS, len(a.doses), len(b.doses)))
    out[0] = dose
    if b.vectors.size:
        out[1] = dose * of_rows(2 / scales[0] * a.vectors @ b.vectors.T)
        out[2] = dose * of_rows(np.exp(-_squares(a.vectors, b.vectors) / (2 * scales[0])))
    out[3] = dose * of_rows((a.names[:, None] == b.names).astype(np.float64))
    if len(b.controls) > 1:
        alike = np.exp(-_squares(a.controls, b.controls) / (2 * scales[1]))
        out[4:] = out[:4] * alike[a.contexts][:, b.contexts]
    return out


def _squares(x: Values, y: Values) -> Values:
    return np.maximum((x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1) - 2 * x @ y.T, 0)


def _mean_square(x: Values) -> float:
    """Mean squared distance of different rows; 1 if there are none."""
    if len(x) < 2:
        return 1.0
    return float(_squares(x, x).sum() / (len(x) * (len(x) - 1))) or 1.0


def _vectors_of(space: Space, compounds: Iterable[str]) -> Values:
    """Vectors of the unique compounds, ``(n, k)``; ``k`` is 0 without vectors."""
    names = list(dict.fromkeys(compounds))
    return np.array([space.vector(name) for name in names]) if space.vectors.size else np.zeros((len(names), 0))


def _response(train: Profiles, effects: Values, noise: Values, table: pd.DataFrame | None) -> DoseEffects:
    """Fit the Gaussian process to all rows."""
    space = Space.of(train, table)
    placed = [space.place(perturbed) for perturbed in train.perturbed]
    contexts = np.unique(train.contexts, return_inverse=True)[1]
    compounds, doses = zip(*placed, strict=True)
    places = _Places.of(space, compounds, np.array(doses), contexts, space.contexts)
    scales = _mean_square(places.vectors), _mean_square(space.contexts)
    some = np.arange(len(placed))
    if len(some) > MOST_ROWS:
        some = np.sort(np.random.default_rng(0).choice(some, MOST_ROWS, replace=False))
    lengths = LENGTHS if len(np.unique(places.doses)) > 1 else LENGTHS[1:2]
    found = [_likely(places.take(some), effects[some], noise[some], length, scales) for length in lengths]
    _, variances, length = min(found, key=lambda one: one[0])
    covariance = np.tensordot(variances[:N_TERMS], _terms(places, places, length, scales), axes=1)
    covariance[np.diag_indices_from(covariance)] += noise + variances[N_TERMS]
    rows = linalg.solve(covariance + _jitter(covariance), effects, assume_a="pos")
    numbers = np.array([length, *scales, *variances])
    return DoseEffects("response", space, rows, compounds, places.doses, contexts, numbers)


def _jitter(covariance: Values) -> Values:
    return np.eye(len(covariance)) * (1e-9 * np.trace(covariance) / len(covariance) + 1e-15)


def _likely(
    places: _Places, effects: Values, noise: Values, length: float, scales: tuple[float, float]
) -> tuple[float, Values, float]:
    """Deviance, maximum-likelihood variances of the terms and the residual, and the length scale."""
    terms = np.concatenate([_terms(places, places, length, scales), np.eye(len(noise))[None]])
    used = np.flatnonzero(_distinct(terms))
    products, n = effects @ effects.T, effects.shape[1]
    scale = max(float(np.trace(products)) / effects.size, 1e-12)

    def loss(free: Values) -> tuple[float, Values]:
        variances = scale * np.exp(free)
        covariance = np.tensordot(variances, terms[used], axes=1)
        covariance[np.diag_indices_from(covariance)] += noise
        factor = linalg.cho_factor(covariance + _jitter(covariance), lower=True)
        inverse = linalg.cho_solve(factor, np.eye(len(noise)))
        weighted = inverse @ products @ inverse
        deviance = n * 2 * float(np.log(np.diag(factor[0])).sum()) + float(np.vdot(inverse, products))
        slopes = np.tensordot(terms[used], n * inverse - weighted, axes=2) * variances
        return deviance / effects.size, slopes / effects.size

    from scipy.optimize import minimize  # slow to import

    start = np.full(len(used), np.log(1 / len(used)))
    best = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(-14.0, 5.0)] * len(used))
    variances = np.zeros(N_TERMS + 1)
    variances[used] = scale * np.exp(best.x)
    return float(best.fun), variances, length


def _distinct(terms: Values) -> NDArray[np.bool_]:
    """Terms that are not 0 and not proportional to an earlier one, since the data cannot distinguish these."""
    kept: list[Values] = []
    out = np.zeros(len(terms), dtype=bool)
    for i, term in enumerate(terms):
        size = float(np.linalg.norm(term))
        if size > 0 and all(np.abs(term / size - other).max() > 1e-9 for other in kept):
            kept.append(term / size)
            out[i] = True
    return out


def _response_weights(rule: DoseEffects, compound: str, dose: float, control: Values | None) -> Values:
    length, of_vectors, of_contexts, *variances = rule.numbers.tolist()
    space = rule.space
    here = space.contexts.mean(axis=0) if control is None else control
    scales = (of_vectors, of_contexts)
    centre = _vectors_of(space, sorted(set(rule.compounds))).mean(axis=0)
    rows = _Places.of(space, rule.compounds, rule.doses, rule.contexts, space.contexts)
    here_only = np.zeros(1, dtype=np.int64)
    asked = _Places.of(space, [compound], np.array([dose]), here_only, here[None], centre)
    return np.asarray(np.tensordot(variances[:N_TERMS], _terms(asked, rows, length, scales), axes=1)[0])


Weights = Callable[[DoseEffects, str, float, "Values | None"], "Values"]

WEIGHTS: Mapping[str, Weights] = {
    "curve": _curve_weights,
    "ridge": _ridge_weights,
    "response": _response_weights,
}

DOSE_RULES = {
    "dose mean": _dose_mean,
    "dose interpolation": _interpolation,
    "vector ridge": _vector_ridge,
    "dose response": _response,
}
"""Rules for compounds, each fitted to training rows, their effects, sampling variances, and vectors of compounds."""
