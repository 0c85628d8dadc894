"""Whether two models mean the same by a token id: a reward model, a teacher or a critic reads the ids that a policy writes."""

from __future__ import annotations

from pathlib import Path

from xwin.data._rules import open_tokenizer
from xwin.errors import ModelError


def require_same_tokens(writer: Path, reader: Path) -> None:
    """Sees to it that every token the one model may write is the same token to the other, which may know more.

    Args:
        writer: Hugging Face folder of the policy.
        reader: of the model that reads its answers.

    Raises:
        ModelError: names the first token that differs.
    """
    differing = other_token(writer, reader)
    if differing:
        fix = "use a model that was trained from the same base model, or one with the same tokenizer"
        raise ModelError(f"reads other tokens than {writer} writes: {differing}", str(reader), fix)


def other_token(writer: Path, reader: Path) -> str:
    """The first token of the one model that is another one to the other; "" where there is none.

    Example: "id 100 is 'a' there and 'zz' here"
    """
    if writer == reader:
        return ""
    known = _tokens(reader)
    for number, token in sorted(_tokens(writer).items()):
        if known.get(number) != token:
            return f"id {number} is {token!r} there and {repr(known[number]) if number in known else 'nothing'} here"
    return ""


def _tokens(folder: Path) -> dict[int, str]:
    return {number: token for token, number in open_tokenizer(folder).get_vocab().items()}
