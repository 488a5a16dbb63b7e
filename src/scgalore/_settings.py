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
    """Folder for downloaded weights and data sets, and for measurements of CPU kernels; by default, the cache folder of the
    operating system."""

    registry: Path | None = None
    """A TOML file with weights of your own, which can then be named like those of the package; those that
    :func:`scgalore.weights.register` keeps in :attr:`cachedir` are known without it."""

    offline: bool = False
    """Whether to use only files in :attr:`cachedir`, without network access."""

    verbosity: int | None = Field(default=None, ge=0, le=4)
    """Errors (0); warnings and a few lines per call with task, genes, split, scores and slots (1); information (2),
    hints (3) or everything (4). ``None`` follows scanpy's setting, which is 1 by default."""

    download_timeout: float = Field(default=30.0, gt=0)
    """Seconds after which a download is stopped if it is slower than 10,000 bytes per second."""

    progress: bool = True
    """Whether to show progress bars."""

    batch_size: int | None = Field(default=None, gt=0)
    """Maximum number of cells per batch, unless a function sets its own; ``None`` only limits :attr:`batch_tokens`."""

    batch_tokens: int | None = Field(default=None, gt=0)
    """Maximum number of tokens per batch, unless a function sets its own; ``None`` uses a value suited to the device."""

    precision: Literal["auto", "32-true", "bf16-true"] = "auto"
    """Precision of embedding and prediction: bfloat16 on GPUs that support it and otherwise float32 (``"auto"``), or
    always one of them."""

    cpu_bfloat16: bool = False
    """Whether ``precision="auto"`` also uses bfloat16 on a CPU if it is measured to be faster than float32."""

    cpu_kernels: Literal["auto", "torch", "onednn"] = "auto"
    """Kernels for matrix products and attention on a CPU: torch's own (``"torch"``), oneDNN for all products
    (``"onednn"``), or whichever is at least 10 % faster for each kind and size of product (``"auto"``). This is
    measured on first use, in less than a second, and stored in :attr:`cachedir` for the processor, the number of
    threads and the version of torch. Kernels add in different orders: the same seed gives bitwise identical results
    with the same kernels, and equal results up to rounding errors with others. With ``"torch"``, dropout is also
    torch's and draws different values."""

    accelerator: str = "auto"
    """Accelerator, as in Lightning, for example ``"auto"``, ``"cpu"``, ``"gpu"`` or ``"mps"``."""

    @field_validator("cachedir", "registry")
    @classmethod
    def _anchor(cls, path: Path | None) -> Path | None:
        # A relative path would otherwise move with the working directory.
        return None if path is None else path.expanduser().absolute()

    @contextmanager
    def override(self, **values: Any) -> "Iterator[Settings]":
        """Change settings within a ``with`` block.

        Parameters
        ----------
        **values
            New values of settings.
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
        """Restore the defaults and the values of environment variables."""
        fresh = type(self)()
        for name in type(self).model_fields:
            setattr(self, name, getattr(fresh, name))


settings = Settings()
