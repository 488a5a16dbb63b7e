import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgalore._json import OBJECT, STRING, check_fields, named, nullable, read_json
from scgalore._options import NAMES, POSITIVE, SWITCH, number, whole
from scgalore.errors import WeightsError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "args.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


class TestRead:
    def test_content(self, tmp_path: Path) -> None:
        content = {"a": 1, "b": [1.5, None, {"c": "é"}], "": {}}
        assert read_json(written(tmp_path, json.dumps(content))) == content

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            pytest.param("[" * 100_000, "nested too deeply", id="lists in lists"),
            pytest.param('{"a":' * 100_000, "nested too deeply", id="objects in objects"),
            pytest.param('{"a": 1, "b": 2, "a": 3}', "'a' twice", id="name twice"),
            pytest.param('{"x": {"a": 1, "a": 1}}', "'a' twice", id="name twice inside"),
            pytest.param('{"a": ' + "9" * 5000 + "}", "not valid JSON", id="number of 5,000 digits"),
            pytest.param("7", "contains a int; expected a JSON object", id="a number"),
            pytest.param("null", "contains a NoneType", id="null"),
            pytest.param(b"\x80\x02}", "not valid JSON", id="a pickle"),
            pytest.param('{"a": 1', "not valid JSON", id="cut off"),
        ],
    )
    def test_what_is_no_object_is_named(self, tmp_path: Path, content: str | bytes, says: str) -> None:
        with pytest.raises(WeightsError, match=says) as caught:
            read_json(written(tmp_path, content))
        assert str(tmp_path / "args.json") in str(caught.value)

    def test_size_is_bounded(self, tmp_path: Path) -> None:
        path = written(tmp_path, json.dumps({"a": "x" * 100}))
        assert read_json(path, max_bytes=path.stat().st_size)
        with pytest.raises(WeightsError, match=rf"has {path.stat().st_size} bytes; expected .* at most 100 bytes"):
            read_json(path, max_bytes=100)

    def test_huge_file_is_not_read(self, tmp_path: Path) -> None:
        with (tmp_path / "args.json").open("wb") as file:
            file.truncate(10**12)  # takes no room on the disk
        with pytest.raises(WeightsError, match="1,000,000,000,000 bytes"):
            read_json(tmp_path / "args.json")

    def test_no_plain_file(self, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "circle").symlink_to(tmp_path / "circle")
        for name, says in (("folder", "not a regular file"), ("none", "cannot be read"), ("circle", "cannot be read")):
            with pytest.raises(WeightsError, match=says):
                read_json(tmp_path / name)

    @given(content=st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode()))
    def test_anything_is_an_object_or_an_error(self, content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
        path = written(tmp_path_factory.getbasetemp(), content)
        found: Any = None
        try:
            found = read_json(path)
        except WeightsError as error:
            found = error
        assert isinstance(found, dict) or str(path) in str(found)


BAD: dict[str, list[Any]] = {
    "n": [0, 11, 10**12, -1, "3", None, True, 2.0, [3], {"n": 3}, math.nan],
    "p": [0, -1, math.inf, math.nan, "1", None, True, 10**400],
    "s": [1, [], {}],
    "o": [None, [], "x", 1],
    "l": ["a", [1], [""], None, {"a": 1}],
    "b": [0, 1, "true", None],
}


class TestFields:
    KINDS = {"n": whole(1, 10), "p": POSITIVE, "s": nullable(STRING), "o": OBJECT, "l": NAMES, "b": SWITCH}
    GOOD: dict[str, Any] = {"n": 3, "p": 0.5, "s": None, "o": {}, "l": ["a"], "b": True}

    def test_good_ones_and_others_pass(self) -> None:
        check_fields({**self.GOOD, "unknown": object()}, self.KINDS, where="file")

    @pytest.mark.parametrize(
        ("name", "value"),
        [(name, value) for name, values in BAD.items() for value in values],
    )
    def test_others_are_named(self, name: str, value: Any) -> None:
        with pytest.raises(WeightsError) as caught:
            check_fields({**self.GOOD, name: value}, self.KINDS, where="the/args.json")
        message = str(caught.value)
        assert message.startswith(f"the/args.json: {name} is {named(value)}; {self.KINDS[name].expected}")

    @pytest.mark.parametrize("name", KINDS)
    def test_absent_ones_are_named(self, name: str) -> None:
        content = {key: value for key, value in self.GOOD.items() if key != name}
        check_fields(content, self.KINDS, where="file", missing=[name])
        with pytest.raises(WeightsError, match=rf"file lacks {name}: {name}, it "):
            check_fields(content, self.KINDS, where="file")

    @pytest.mark.parametrize("content", [None, 3, "text", [1, 2]])
    def test_no_object(self, content: Any) -> None:
        with pytest.raises(WeightsError, match="expected an object with n, p, s"):
            check_fields(content, self.KINDS, where="file")

    @given(value=VALUES)
    def test_any_value_can_be_named(self, value: Any) -> None:
        shown = named(value)
        assert len(shown.encode("utf-8")) < 3000
        assert "\n" not in shown

    def test_deep_and_wide_values_are_short(self) -> None:
        deep: list[Any] = []
        for _ in range(50_000):
            deep = [deep]
        assert len(named(deep)) < 100
        assert len(named(list(range(10**6)))) < 100
        assert len(named(10**4000)) < 100
        check_fields({"x": 1.0}, {"x": number("it is one", lambda x: x == 1)}, where="file")
