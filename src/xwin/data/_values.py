"""JSON that is not one value a line: the elements of an array, or values over several lines, each copied as one line, byte for byte."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator

from xwin.data._jsonl import EXCERPT, ROW_LIMIT, marked, mistake
from xwin.data._unpack import TOO_LARGE, Blocks
from xwin.data.defects import Defect

FAR = 1 << 20
"""Characters after a mistake from which on it cannot be that the rest has not been read yet."""
NEAR = 8
"""Characters before the end within which a mistake is taken for a cut: the longest literal."""
_SPACE = re.compile(r"[ \t\n\r]*")
_ENDS = " \t\n\r,]}"


def _nothing(_: str) -> None: ...


# finds where a value ends and judges nothing else, so that a wrong row does not hide the rows after it: reading the line judges
_FINDER = json.JSONDecoder(strict=False, parse_int=_nothing, parse_float=_nothing, parse_constant=_nothing)


def split_values(blocks: Blocks) -> Iterator[bytes]:
    """A line for each element of the array that the text is, or for each value of several. The last is a mark if the text is cut or wrong."""
    text = _Text(blocks)
    array = text.next() == "["
    if array:
        text.skip()
    yield from _elements(text, "]" if array else "")
    if text.stopped:
        return
    if text.next():
        text.skip()
    elif array:
        yield marked(Defect.TRUNCATED, blocks.cut or "the array is never closed")
        return
    if text.next():
        yield marked(Defect.NOT_JSON, f"text after the end of the array {text.place(text.at)}", text.rest())
    elif blocks.cut:
        yield marked(Defect.TRUNCATED, blocks.cut)


def _elements(text: _Text, closing: str) -> Iterator[bytes]:
    """The values up to a closing bracket, with commas between them; or, without a bracket, all there are."""
    while not text.stopped and (char := text.next()) and char != closing:
        yield text.value()
        if closing and not text.stopped and not text.skip_comma():
            text.stopped = True
            yield marked(Defect.NOT_JSON, f"a comma is missing {text.place(text.at)}; the rest of the file is not read", text.rest())


def holds_one_value(text: str) -> bool:
    """Whether the text is one whole value, right or wrong in detail."""
    try:
        return _FINDER.raw_decode(text)[1] == len(text)
    except (json.JSONDecodeError, RecursionError):
        return False


def begins_with_value(text: str) -> bool:
    """Whether a whole value stands at the beginning."""
    try:
        return _FINDER.raw_decode(text)[1] > 0
    except (json.JSONDecodeError, RecursionError):
        return False


class _Text:
    """The text of blocks, as much of it as one value needs. Bytes that are not UTF-8 pass through, for the row to be judged by."""

    def __init__(self, blocks: Blocks) -> None:
        self.text, self.at = "", 0
        self.stopped = False
        """No value can be found from here on."""
        self._passed = 0
        self._ended = False
        self._cut = lambda: blocks.cut
        self._blocks = iter(blocks)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape")

    def next(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            self.at = _end_of_space(self.text, self.at)
            if self.at < len(self.text) or not self._more():
                return self.text[self.at : self.at + 1]

    def skip(self) -> None:
        """Past one character."""
        self.at += 1

    def skip_comma(self) -> bool:
        """Past a comma; False where neither it nor the end of the array follows."""
        char = self.next()
        self.at += char == ","
        return char in (",", "]", "")

    def value(self) -> bytes:
        """The next value as one line; or a mark, and `stopped`."""
        while True:
            try:
                end = _FINDER.raw_decode(self.text, self.at)[1]
            except json.JSONDecodeError as error:
                if self._is_final(error) or not self._more():
                    return self._stop(error)
            except RecursionError:
                self.stopped = True
                return marked(Defect.NOT_JSON, "nested too deeply; the rest of the file is not read", self.rest())
            else:  # a number near the end of what is read may go on
                ended = end < len(self.text) and self.text[end] in _ENDS
                if ended or len(self.text) - end > NEAR or not self._more():
                    return self._take(end)

    def place(self, at: int) -> str:
        """Where in the file."""
        return f"at character {self._passed + at + 1} of the file"

    def rest(self) -> bytes:
        """What follows."""
        return self.text[self.at : self.at + EXCERPT].encode("utf-8", "surrogateescape")

    def _take(self, end: int) -> bytes:
        part, self.at = self.text[self.at : end], end
        # between the parts of a value a carriage return is a space like a newline; inside a string it is the same mistake
        return part.replace("\n", "\r").encode("utf-8", "surrogateescape")

    def _is_final(self, error: json.JSONDecodeError) -> bool:
        """Whether reading on cannot help."""
        far = len(self.text) - error.pos > FAR and not error.msg.startswith("Unterminated string")
        return far or len(self.text) - self.at > ROW_LIMIT

    def _stop(self, error: json.JSONDecodeError) -> bytes:
        self.stopped = True
        if self._ended and (self._cut() or error.msg.startswith("Unterminated string") or len(self.text) - error.pos <= NEAR):
            return marked(Defect.TRUNCATED, self._cut() or f"the last value is not complete: {mistake(error)} {self.place(error.pos)}", self.rest())
        if len(self.text) - self.at > ROW_LIMIT:
            return marked(*TOO_LARGE, self.rest())
        return marked(Defect.NOT_JSON, f"{mistake(error)} {self.place(error.pos)}; the rest of the file is not read", self.rest())

    def _more(self) -> bool:
        """At least doubles what is held, so that trying again costs no more than what was tried; False at the end of the file."""
        if self._ended:
            return False
        parts = [self.text[self.at :]]
        held = wanted = len(parts[0])
        self._passed += self.at
        while held <= 2 * wanted and not self._ended:
            block = next(self._blocks, None)
            self._ended = block is None
            parts.append(self._decoder.decode(block or b"", final=block is None))
            held += len(parts[-1])
        self.text, self.at = "".join(parts), 0
        return True


def _end_of_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at
