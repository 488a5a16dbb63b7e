"""How the prior of a perturbation model is chosen, compared with other ways to choose it.

Rules only, no network, so that many divisions can be measured: 60 % of the perturbations of K562 and of the glioma lines of
PerturBench's devel data against the rest, and of the log fold changes of Norman et al. 30 perturbations against 80, and 60 singles
against all doubles. All ways see the same divisions.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from benchmarks import perturbation
from benchmarks.harness import begin, parser, results_folder, say
from benchmarks.perturbation_floor import PSEUDOBULK, glioma

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from benchmarks.harness import Report

    from scgalore.perturb.labels.profiles import Profiles

DIVISIONS = 20
MIXED, DEFAULT = "always mixed", "default"
WAYS: dict[str, dict[str, float]] = {
    DEFAULT: {},
    "better by one standard error": {"CLEAR": 1.0},
    "lowest error": {"CLEAR": 0.0, "FEWEST": 2},
    "lowest error, weights not drawn to the default": {"CLEAR": 0.0, "FEWEST": 2, "PULL": 1e-6},
    "weights of unseen genes not drawn to the default": {"PULL": 1e-6},
}
"""Constants of ``scgalore.perturb.baselines.choice`` that are changed."""
SHARES = (0.5, 0.6, 0.7, 0.8, 1.0)
"""Of the sum of single effects, for doubles where none was measured."""


@contextmanager
def changed(module: Any, constants: dict[str, float]) -> Iterator[None]:
    """Give constants of a module other values for a while."""
    before = {name: getattr(module, name) for name in constants}
    try:
        for name, value in constants.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def screens(folder: Path) -> dict[str, Profiles]:
    """Profiles of each screen."""
    import scanpy as sc

    import scgalore as sg

    found = {
        "K562": sg.perturb.Screen.from_adata(perturbation.cells(folder), pert_key="perturbation").profiles(),
        "glioma": sg.perturb.Screen.from_adata(
            glioma(folder, 0), pert_key="perturbation", context_key="cell_type"
        ).profiles(),
    }
    if (folder / PSEUDOBULK).exists():
        adata = sc.read_h5ad(folder / PSEUDOBULK)
        read = {"pert_key": "perturbation", "data_type": "lfc", "prior": "additive"}
        found["pseudobulk"] = sg.perturb.fit_effects(adata, **read).profiles
    return found


def divisions(name: str, profiles: Profiles, seed: int) -> dict[str, tuple[Profiles, Profiles]]:
    """Training and test rows."""
    rng = np.random.default_rng(seed)
    if name != "pseudobulk":
        names = rng.permutation(sorted(set(profiles.perturbations)))
        known = set(names[: round(0.6 * len(names))])
        train = [i for i, of_row in enumerate(profiles.perturbations) if of_row in known]
        test = np.setdiff1d(np.arange(len(profiles)), train)
        return {name: (profiles.take(train), profiles.take(test))}
    order = rng.permutation(len(profiles))
    n_genes = np.array([len(genes) for genes in profiles.perturbed])
    singles = rng.permutation(np.flatnonzero(n_genes == 1))
    return {
        "pseudobulk, 30": (profiles.take(order[:30]), profiles.take(order[30:110])),
        "pseudobulk, doubles from 60 singles": (
            profiles.take(singles[:60]),
            profiles.take(np.flatnonzero(n_genes == 2)),
        ),
    }


def error(recipe: Any, train: Profiles, test: Profiles) -> float:
    """Mean squared error of the effects."""
    predicted = recipe.fit(train).predict_rows(test)
    return float(((predicted - test.effects) ** 2).mean())


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    arguments = parser(__doc__).parse_args(argv)
    report = begin("perturbation_choice", "Ways to choose the prior of a perturbation model", arguments)
    if arguments.data is None or not perturbation.is_here(arguments.data):
        perturbation.not_measured(report, arguments)
        return
    from scgalore.perturb.baselines import choice, effects

    found: list[tuple[str, str, int, float]] = []
    shares: list[tuple[float, float]] = []
    for name, profiles in screens(arguments.data).items():
        for seed in range(1 if arguments.quick else DIVISIONS if name != "pseudobulk" else DIVISIONS // 2):
            for data, (train, test) in divisions(name, profiles, seed).items():
                found.append((data, MIXED, seed, error(effects.prior_of("mixed"), train, test)))
                for way, constants in WAYS.items():
                    with changed(choice, constants):
                        found.append((data, way, seed, error(choice.choose_prior(train).recipe, train, test)))
                if "doubles" in data:
                    for share in SHARES:
                        with changed(effects, {"SUB_ADDITIVE": share}):
                            shares.append((share, error(effects.prior_of("mixed"), train, test)))
            say(f"{name}, division {seed + 1}")
    told(report, pd.DataFrame(found, columns=["data", "way", "seed", "mse"]), shares)
    report.finish(results_folder(arguments))


def told(report: Report, found: pd.DataFrame, shares: Sequence[tuple[float, float]]) -> None:
    """Errors of each way as shares of those of the mixed rule, with the standard error over divisions."""
    table = found.pivot_table(index=["data", "seed"], columns="way", values="mse")
    ratios = table.div(table[MIXED], axis=0)
    mean, spread = (getattr(ratios.groupby("data"), what)() for what in ("mean", "sem"))
    rows = [
        (way, *(f"{mean.loc[data, way]:.3f} ± {spread.loc[data, way]:.3f}" for data in mean.index))
        for way in (MIXED, *WAYS)
    ]
    report.table(
        "Squared error on test perturbations, divided by that of the mixed rule with the effect on the own gene and no factor; mean and "
        "standard error over divisions.",
        ("way", *map(str, mean.index)),
        rows,
    )
    report.measured["ratios"] = {str(data): mean.loc[data].to_dict() for data in mean.index}
    for data in mean.index:
        measured = f"{mean.loc[data, DEFAULT]:.3f} ± {spread.loc[data, DEFAULT]:.3f}"
        holds = bool(mean.loc[data, DEFAULT] <= 1 + 2 * np.nan_to_num(spread.loc[data, DEFAULT]))
        report.claim(f"{data}, default", "not above 1 by 2 standard errors", measured, holds=holds)
    if shares:
        of_share = pd.DataFrame(shares, columns=["share", "mse"]).groupby("share")["mse"].mean()
        report.table(
            "Doubles of the pseudobulk from singles alone: squared error by the share of the sum that is predicted.",
            tuple(map(str, of_share.index)),
            [[f"{value:.4f}" for value in of_share]],
        )


if __name__ == "__main__":
    main()
