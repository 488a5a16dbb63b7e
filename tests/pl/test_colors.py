import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb

from scgalore.errors import OptionError
from scgalore.pl._colors import palette_colors, tone


@pytest.mark.parametrize("style", ["default", "dark_background", "ggplot"])
def test_tones_go_from_the_ink_to_the_background(style: str) -> None:
    with plt.style.context(style):
        ax = plt.figure().subplots()
    background = np.mean(to_rgb(ax.get_facecolor()))
    distances = [abs(np.mean(to_rgb(tone(ax, share))) - background) for share in (0, 0.3, 0.7, 1)]
    assert distances[0] > 0.5
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] == pytest.approx(0, abs=0.01)


def test_transparent_axes_have_the_background_of_their_figure() -> None:
    figure = plt.figure(facecolor="black")
    ax = figure.subplots()
    ax.set_facecolor("none")
    assert tone(ax, 0) == "#ffffff"


@pytest.mark.parametrize(
    ("palette", "expected"),
    [
        (None, {"a": "red", "b": "blue", "c": "green"}),
        ({"b": "k", "z": "w"}, {"a": "red", "b": "k", "c": "green"}),
        (["k", "w"], {"a": "k", "b": "w", "c": "k"}),
        ("tab10", {"a": "#1f77b4", "b": "#ff7f0e", "c": "#2ca02c"}),
    ],
)
def test_palettes_are_names_lists_and_dictionaries(palette: object, expected: dict[str, str]) -> None:
    default = {"a": "red", "b": "blue", "c": "green"}
    assert palette_colors(list("abc"), palette, default) == expected  # type: ignore[arg-type]


def test_continuous_maps_give_every_name_its_own_colour() -> None:
    names = [str(i) for i in range(30)]
    assert len(set(palette_colors(names, "viridis", {}).values())) == 30


@pytest.mark.parametrize("palette", ["nothing", ["nothing"], {"a": 3.5}, []])
def test_other_palettes_are_refused(palette: object) -> None:
    with pytest.raises(OptionError, match="palette"):
        palette_colors(["a"], palette, {})  # type: ignore[arg-type]
