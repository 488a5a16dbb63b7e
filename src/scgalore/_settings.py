"""User settings: one validated object, filled from the environment (``SCGALORE_*``) when first used."""

import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from scgalore.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Settings", "settings"]


def _os_cache() -> Path:
    with warnings.catch_warnings():
        # Of tqdm.auto, which pooch imports, in a notebook without ipywidgets.
        warnings.filterwarnings("ignore", message="IProgress not found")
        import pooch

    return Path(pooch.os_cache("scgalore"))


class Settings(BaseSettings):
    """Settings of scgalore, checked when assigned.

    Every field can be given as an environment variable, for example ``SCGALORE_CACHEDIR=/data/models`` or
    ``SCGALORE_OFFLINE=1``. Reading or changing a setting creates nothing on disk.

    Examples
    --------
    >>> import scgalore as sg
    >>> with sg.settings.override(batch_size=8, progress=False):
    ...     sg.settings.batch_size
    8
    """

    model_config = SettingsConfigDict(
        env_prefix="SCGALORE_",
        env_ignore_empty=True,
        validate_assignment=True,
        use_attribute_docstrings=True,
    )

    cachedir: Path = Field(default_factory=_os_cache)
    """Folder that downloaded weights and data sets are kept in; the operating system's cache folder by default."""

    registry: Path | None = None
    """A TOML file with weights of your own, which can then be named like those of the package; those that
    :func:`scgalore.weights.register` keeps in :attr:`cachedir` are known without it."""

    offline: bool = False
    """Whether to look only in :attr:`cachedir` and never in the network."""

    verbosity: int | None = Field(default=None, ge=0, le=4)
    """Errors (0); warnings and a few lines per call with task, genes, split, scores and slots (1); information (2), hints (3) or
    everything (4). ``None`` follows scanpy's setting, which is 1 by default."""

    download_timeout: float = Field(default=30.0, gt=0)
    """Seconds after which a download is given up that has not brought 10,000 bytes for each of them."""

    progress: bool = True
    """Whether long work shows a progress bar."""

    batch_size: int | None = Field(default=None, gt=0)
    """Most cells in a batch where a function is not told otherwise; ``None`` leaves it to :attr:`batch_tokens`."""

    batch_tokens: int | None = Field(default=None, gt=0)
    """Most tokens in a batch where a function is not told otherwise; ``None`` is what the device works on best."""

    precision: Literal["auto", "32-true", "bf16-true"] = "auto"
    """Arithmetic of embedding and prediction: bfloat16 on GPUs that have it and float32 elsewhere (``"auto"``), or one of
    them everywhere."""

    cpu_bfloat16: bool = False
    """Whether ``precision="auto"`` takes bfloat16 on a CPU, too, if it was measured to be faster there than float32."""

    cpu_kernels: Literal["auto", "torch", "onednn"] = "auto"
    """Matrix products and attention on a CPU: torch's own kernels (``"torch"``), products by oneDNN wherever there is a choice
    (``"onednn"``), or for each kind and size of product the one that is faster by a tenth (``"auto"``). That is measured where
    it is first needed, in less than a second, and kept in :attr:`cachedir` for this processor, number of threads and version of
    torch. The kernels add in another order: the same seed gives the same numbers to the last bit with the same kernels, and
    to rounding errors with others. With ``"torch"`` dropout is torch's as well and draws other values."""

    accelerator: str = "auto"
    """Where to compute, as Lightning calls it, for example ``"auto"``, ``"cpu"``, ``"gpu"`` or ``"mps"``."""

    @field_validator("cachedir", "registry")
    @classmethod
    def _anchor(cls, path: Path | None) -> Path | None:
        # A relative path would otherwise move with the working directory.
        return None if path is None else path.expanduser().absolute()

    @contextmanager
    def override(self, **values: Any) -> "Iterator[Settings]":
        """Change settings inside a ``with`` block and restore them after it.

        Parameters
        ----------
        **values
            New values by the name of the setting.
        """
        fields = type(self).model_fields
        if unknown := sorted(values.keys() - fields.keys()):
            msg = f"Unknown settings {unknown}. scgalore has {sorted(fields)}."
            raise OptionError(msg)
        before = {name: getattr(self, name) for name in values}
        try:
            for name, value in values.items():
                setattr(self, name, value)
            yield self
        finally:
            for name, value in before.items():
                setattr(self, name, value)

    def reset(self) -> None:
        """Go back to the defaults and the environment variables."""
        fresh = type(self)()
        for name in type(self).model_fields:
            setattr(self, name, getattr(fresh, name))


settings = Settings()
