import pytest

from scgalore._docs import PARAMETERS, shared_parameters


def test_entries_take_the_indentation_of_their_line() -> None:
    @shared_parameters
    def function(adata: object, model: object) -> None:
        """Do something.

        Parameters
        ----------
        {adata}
        other
            A set such as ``{adata}`` in a text.
        {model}
        """

    lines = (function.__doc__ or "").splitlines()
    assert [line for line in lines if line.endswith("adata")] == ["        adata"]
    assert f"            {PARAMETERS['adata']}" in lines
    assert "            A set such as ``{adata}`` in a text." in lines
    model = lines.index("        model")
    text = PARAMETERS["model"].splitlines()
    assert len(text) > 1
    assert lines[model + 1 : model + 1 + len(text)] == [f"            {line}" for line in text]


def test_unknown_name_fails_at_import() -> None:
    def function() -> None:
        """Do something.

        {no_such_parameter}
        """

    with pytest.raises(KeyError, match="no_such_parameter"):
        shared_parameters(function)


def test_missing_docstring_is_no_error() -> None:
    def function() -> None: ...

    assert shared_parameters(function) is function


@pytest.mark.parametrize("name", PARAMETERS)
def test_texts_are_sentences_without_types_and_defaults(name: str) -> None:
    text = PARAMETERS[name]
    assert text.endswith((".", ":"))
    assert "default" not in text.lower()
