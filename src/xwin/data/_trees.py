"""OASST message trees: a prompt with ranked replies, each with replies of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator

from xwin.data._converted import Fields, Findings, Item, rest, row_id
from xwin.data._pairs import make_pair
from xwin.data._ranked import note_unused
from xwin.data._texts import as_number
from xwin.data._turns import End, read_turn, settle
from xwin.data.conversation import Conversation, Message, content_id
from xwin.data.defects import Defect, Flaw


def looks_tree(row: Fields) -> str | None:
    """A message with replies."""
    return "has a prompt with replies" if isinstance(row.get("prompt"), dict) and ("replies" in row["prompt"] or "message_tree_id" in row) else None


def read_tree(row: Fields, found: Findings) -> list[Item]:
    """One conversation: the best-ranked reply to each prompt, and after it the first prompt that is answered again."""
    root = _root(row, found)
    if root is None:
        return []
    path = [root]
    while onward := _next(path[-1], found):
        path.append(onward)
    total = sum(1 for _ in _walk(root, found))
    if len(path) < total:
        found.add(Defect.UNUSED, f"{total - len(path)} of {total} messages are not on the path of the best replies")
    messages = settle(_messages(path, found), found, End.ANSWER)
    return [Conversation(row_id(row, "message_tree_id") or content_id(messages), messages, meta=_meta(row, root))]


def read_tree_pairs(row: Fields, found: Findings) -> list[Item]:
    """For each prompt with two or more ranked replies, the best against the worst; margin not known."""
    root = _root(row, found)
    if root is None:
        return []
    out: list[Item] = []
    for path in _walk(root, found):
        ranked = sorted((r for r in _replies(path[-1], found) if _rank(r) < math.inf), key=_rank) if path[-1].get("role") == "prompter" else []
        if len(ranked) < 2:
            continue
        own = Findings()
        answers = _messages([ranked[0], ranked[-1]], own)
        if len(answers) == 2:
            meta = {**_meta(row, root), "n_ranked": len(ranked)}
            pair = make_pair(_messages(path, own), answers, own, row_id(path[-1], "message_id"), meta)
            out += [] if own.rejected else pair
        note_unused(len(ranked), own)
        _merge(own, path[-1], found)
    if not out:
        found.add(Defect.ONE_ANSWER, "no prompt has two ranked replies that can be compared")
    return out


def _merge(own: Findings, node: Fields, found: Findings) -> None:
    """The flaws of one pair, in the row: what makes the pair unusable leaves only the pair out."""
    if own.rejected:
        reasons = "; ".join(_told(flaw) for flaw in own.flaws())
        found.add(Defect.PART_LEFT_OUT, f"the replies to {row_id(node, 'message_id') or 'a message'}: {reasons}")
        return
    for flaw in own.flaws():
        found.add(flaw.defect, flaw.detail)


def _told(flaw: Flaw) -> str:
    return f"{flaw.defect} ({flaw.detail})" if flaw.detail else str(flaw.defect)


def _root(row: Fields, found: Findings) -> Fields | None:
    root = row.get("prompt")
    if not isinstance(root, dict):
        found.add(Defect.WRONG_COLUMNS, "prompt is not a message")
        return None
    if root.get("deleted") is True:
        found.add(Defect.EMPTY_CONVERSATION, "the first message is deleted")
    return root


def _next(node: Fields, found: Findings) -> Fields | None:
    """The reply that the path follows: the best-ranked (the first, where none is ranked); of prompts the first that has replies."""
    replies = _replies(node, found)
    if node.get("role") == "assistant":
        return next((reply for reply in replies if _replies(reply, found)), None)
    return min(replies, key=_rank, default=None)


def _replies(node: Fields, found: Findings) -> list[Fields]:
    """The replies that were neither deleted nor refused by their reviewers."""
    replies = node.get("replies") or []
    if not isinstance(replies, list) or not all(isinstance(reply, dict) for reply in replies):
        found.add(Defect.WRONG_COLUMNS, "replies is not a list of messages")
        return []
    out = []
    for reply in replies:
        if reply.get("deleted") is True or reply.get("review_result") is False:
            found.add(Defect.PART_LEFT_OUT, f"message {row_id(reply, 'message_id')} is deleted or was refused by reviewers")
        else:
            out.append(reply)
    return out


def _rank(node: Fields) -> float:
    rank = as_number(node.get("rank"))
    return math.inf if rank is None else rank


def _walk(root: Fields, found: Findings) -> Iterator[list[Fields]]:
    """The path to every message that is not left out, from the root on, parents before replies."""
    waiting = [[root]]
    while waiting:
        path = waiting.pop()
        yield path
        waiting += [[*path, reply] for reply in reversed(_replies(path[-1], found))]


def _messages(path: list[Fields], found: Findings) -> list[Message]:
    out = []
    for number, node in enumerate(path, 1):
        if node.get("synthetic") is True:
            found.add(Defect.SYNTHETIC, f"turn {number}")
        message = read_turn({"role": node.get("role"), "content": node.get("text")}, f"turn {number}", found)
        out += [message] if message else []
    return out


def _meta(row: Fields, root: Fields) -> dict[str, object]:
    lang = {"lang": root["lang"]} if isinstance(root.get("lang"), str) else {}
    return {**rest(row, "prompt", "message_tree_id"), **lang}
