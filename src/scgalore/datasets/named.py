"""One function per study, as in scanpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from scgalore.datasets.fetch import load_dataset

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "adamson_2016",
    "dixit_2016",
    "norman_2019",
    "perturbench_devel",
    "replogle_2022_k562_essential",
    "replogle_2022_rpe1",
    "vcc_2025_h1",
]


def perturbench_devel(*, canonical: bool = True) -> AnnData:
    """PerturBench's small file: CRISPRa of 18 genes and 15 pairs in K562, CRISPRi of 9 genes in three glioma lines.

    5,961 cells and 500 genes, log-normalised, 1 MB: for tests and first steps. Of the 31 perturbed genes, only TMSB4X
    is measured.

    Parameters
    ----------
    canonical
        Whether to standardise labels and gene names; see :func:`to_canonical`.

    Returns
    -------
    Cells by genes; licence and citation are in ``uns["dataset"]``.

    See Also
    --------
    scgalore.datasets.load_dataset : Read a data set by its name.
    scgalore.datasets.norman_2019 : Load CRISPRa of genes and pairs in K562.

    Examples
    --------
    >>> import scgalore as sg
    >>> adata = sg.datasets.perturbench_devel()  # doctest: +SKIP
    """
    return load_dataset("perturbench_devel", canonical=canonical)


def norman_2019(*, source: Literal["gears", "scperturb"] = "gears", canonical: bool = True) -> AnnData:
    """CRISPRa of 105 genes and 131 pairs of them in K562.

    Parameters
    ----------
    source
        ``"gears"``: 91,205 cells and 5,045 genes, log-normalised, the basis of published splits; needs
        4 GB of memory. ``"scperturb"``: counts of all genes.
    canonical
        Whether to standardise labels and gene names; see :func:`to_canonical`.

    Returns
    -------
    Cells by genes; licence and citation are in ``uns["dataset"]``.

    See Also
    --------
    scgalore.datasets.load_dataset : Read a data set by its name.
    scgalore.datasets.perturbench_devel : Load a small data set for first steps.

    Examples
    --------
    >>> import scgalore as sg
    >>> adata = sg.datasets.norman_2019()  # doctest: +SKIP
    """
    return load_dataset(f"norman_2019_{source}", canonical=canonical)


def adamson_2016(
    *,
    source: Literal["gears", "scperturb_pilot", "scperturb_upr_epistasis", "scperturb_upr_perturb_seq"] = "gears",
    canonical: bool = True,
) -> AnnData:
    """CRISPRi of genes of the unfolded protein response in K562.

    Parameters
    ----------
    source
        ``"gears"``: the large experiment, 68,603 cells and 5,060 genes, log-normalised. The others are counts of all
        genes from each of the study's three experiments.
    canonical
        Whether to standardise labels and gene names; see :func:`to_canonical`.

    Returns
    -------
    Cells by genes; licence and citation are in ``uns["dataset"]``.

    See Also
    --------
    scgalore.datasets.load_dataset : Read a data set by its name.
    scgalore.datasets.norman_2019 : Load CRISPRa of genes and pairs in K562.

    Examples
    --------
    >>> import scgalore as sg
    >>> adata = sg.datasets.adamson_2016()  # doctest: +SKIP
    """
    return load_dataset(f"adamson_2016_{source}", canonical=canonical)


def dixit_2016(*, source: Literal["gears", "scperturb"] = "scperturb", canonical: bool = True) -> AnnData:
    """Knock-out of transcription factors in K562.

    Parameters
    ----------
    source
        ``"scperturb"``: counts. ``"gears"``: not available, since no hash of its archive is known.
    canonical
        Whether to standardise labels and gene names; see :func:`to_canonical`.

    Returns
    -------
    Cells by genes; licence and citation are in ``uns["dataset"]``.

    See Also
    --------
    scgalore.datasets.load_dataset : Read a data set by its name.
    scgalore.datasets.norman_2019 : Load CRISPRa of genes and pairs in K562.

    Examples
    --------
    >>> import scgalore as sg
    >>> adata = sg.datasets.dixit_2016()  # doctest: +SKIP
    """
    return load_dataset(f"dixit_2016_{source}", canonical=canonical)


def replogle_2022_k562_essential(*, source: Literal["gears", "scperturb"] = "gears", canonical: bool = True) -> AnnData:
    """CRISPRi of essential genes in K562.

    Parameters
    ----------
    source
        ``"gears"``: 162,751 cells and 5,000 genes, log-normalised. ``"scperturb"``: counts of the whole screen.
    canonical
        Whether to standardise labels and gene names; see :func:`to_canonical`.

    Returns
    -------
    Cells by genes; licence and citation are in ``uns["dataset"]``.

    See Also
    --------
    scgalore.datasets.load_dataset : Read a data set by its name.
    scgalore.datasets.replogle_2022_rpe1 : Load CRISPRi of essential genes in RPE1.

    Examples
    --------
    >>> import scgalore as sg
    >>> adata = sg.datasets.replogle_2022_k562_essential()  # doctest: +SKIP
    """
    return load_dataset(f"replogle_2022_k562_essential_{source}", canonical=canonical)


def replogle_2022_rpe1(*, source: Literal["gears", "scperturb"] = "gears", canonical: bool = True) -> AnnData:
    """CRISPRi of essential genes in RPE1.

    Parameters
    ----------
    source
        ``"gears"``: 162,733 cells and 5,000 genes, log-normalised. ``"scperturb"``: counts of the whole screen.
    canonical
        Whether to standardise labels and gene names; see :func:`to_canonical`.

    Returns
    -------
    Cells by genes; licence and citation are in ``uns["dataset"]``.

    See Also
    --------
    scgalore.datasets.load_dataset : Read a data set by its name.
    scgalore.datasets.replogle_2022_k562_essential : Load CRISPRi of essential genes in K562.

    Examples
    --------
    >>> import scgalore as sg
    >>> adata = sg.datasets.replogle_2022_rpe1()  # doctest: +SKIP
    """
    return load_dataset(f"replogle_2022_rpe1_{source}", canonical=canonical)


def vcc_2025_h1(*, canonical: bool = True) -> AnnData:
    """Training data of the Virtual Cell Challenge 2025: CRISPRi of 150 genes in H1 embryonic stem cells, counts.

    221,273 cells and 18,080 genes, 15.5 GB. If memory is short, open the path returned by :func:`fetch_dataset` in
    backed mode.

    Parameters
    ----------
    canonical
        Whether to standardise labels and gene names; see :func:`to_canonical`.

    Returns
    -------
    Cells by genes; licence and citation are in ``uns["dataset"]``.

    See Also
    --------
    scgalore.datasets.fetch_dataset : Download a data set and return its path.
    scgalore.perturb.write_vcc : Write cells for the Virtual Cell Challenge.

    Examples
    --------
    >>> import scgalore as sg
    >>> adata = sg.datasets.vcc_2025_h1()  # doctest: +SKIP
    """
    return load_dataset("vcc_2025_h1", canonical=canonical)
