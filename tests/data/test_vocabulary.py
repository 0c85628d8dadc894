"""Whether a model reads the tokens that another one writes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from xwin.data.vocabulary import require_same_tokens
from xwin.errors import ModelError

Other = Callable[..., Path]


def test_a_copy_reads_what_the_model_writes(tiny_folder: Path, with_other_tokens: Other) -> None:
    require_same_tokens(tiny_folder, tiny_folder)
    require_same_tokens(tiny_folder, with_other_tokens({}))


def test_a_token_that_means_something_else_is_named(tiny_folder: Path, with_other_tokens: Other) -> None:
    other = with_other_tokens({"a": "zz"})
    with pytest.raises(ModelError, match=rf"id {3 + ord('a')} is 'a' there and 'zz' here") as error:
        require_same_tokens(tiny_folder, other)
    assert error.value.where == str(other)
    assert "same tokenizer" in error.value.fix


def test_a_reader_may_know_more_but_not_less(tiny_folder: Path, with_other_tokens: Other) -> None:
    fewer = with_other_tokens({"z": None})
    require_same_tokens(fewer, tiny_folder)
    with pytest.raises(ModelError, match="is 'z' there and nothing here"):
        require_same_tokens(tiny_folder, fewer)
