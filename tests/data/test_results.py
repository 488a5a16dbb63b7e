"""Nothing that a call reads is written over."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from mudata import MuData

from scgalore._keys import CellKeys, GeneKeys
from scgalore.data.reading import Reading
from scgalore.data.results import Results, refuse_overwrite
from scgalore.errors import OptionError

names = st.text("ab_l", min_size=1, max_size=4)


@given(st.sampled_from(["obs", "var", "uns", "obsm"]), names, st.lists(names, max_size=4))
def test_a_key_is_refused_where_it_is_written_and_nowhere_else(slot: str, key: str, written: list[str]) -> None:
    for other in {"obs", "var", "uns", "obsm"} - {slot}:
        refuse_overwrite({slot: written}, [(other, "x=", key)])
    if key in written:
        with pytest.raises(OptionError, match="is read by this call"):
            refuse_overwrite({slot: written}, [(slot, "x=", key)])
    else:
        refuse_overwrite({slot: written}, [(slot, "x=", key), (slot, "y=", None)])


@pytest.mark.parametrize("keys", [CellKeys("u", "e", "s"), GeneKeys("g", "u")])
def test_keys_list_every_name_they_give(keys: CellKeys | GeneKeys) -> None:
    """A name that is added and not listed would be a slot that nothing protects."""
    public = {name for name in dir(keys) if not name.startswith("_")} - {"slots", "stem"}
    texts = {getattr(keys, name) for name in public if isinstance(getattr(keys, name), str)}
    assert texts == {name for slot in keys.slots.values() for name in slot}


def test_what_the_message_proposes_helps() -> None:
    adata = AnnData(np.ones((2, 1)), obs=pd.DataFrame({"l": ["a", "b"]}, index=["1", "2"]))
    with pytest.raises(OptionError, match="labels_key=") as caught:
        refuse_overwrite({"obs": ["l"]}, [("obs", "labels_key=", "l")])
    exec(str(caught.value).rpartition("read a copy: ")[2].rstrip("."), {"adata": adata})
    assert adata.obs["my_l"].tolist() == ["a", "b"]
    refuse_overwrite({"obs": ["l"]}, [("obs", "labels_key=", "my_l")])


def test_a_mudata_shows_columns_in_its_own_table() -> None:
    mdata = MuData({"gex": AnnData(np.ones((2, 1)))})
    read = [("obs", "labels_key=", "gex:l")]
    refuse_overwrite({"obs": ["l"], "obsm": ["gex:l"]}, read, data=mdata["gex"], mod="gex")
    with pytest.raises(OptionError):
        refuse_overwrite({"obs": ["l"]}, read, data=mdata, mod="gex")
    refuse_overwrite({"uns": ["l"]}, [("uns", "x=", "gex:l")], data=mdata, mod="gex")
    Results(obs={"l": (np.array([1, 2]), "")}).write(mdata, mdata["gex"], mod="gex")
    assert mdata.obs["gex:l"].tolist() == [1, 2]  # the name that was protected


def test_reading_names_what_it_reads() -> None:
    reads = Reading("counts", "symbol", depth_key="total").reads()
    assert {("layers", "counts"), ("var", "symbol"), ("obs", "total"), ("uns", "log1p")} == {
        (slot, key) for slot, _, key in reads
    }
