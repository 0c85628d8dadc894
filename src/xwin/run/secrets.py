"""Keys and tokens come from the environment. What is shown or written has the name of one in place of its value."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping

NAMES = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS)$", re.IGNORECASE)
"""Ends of the names of variables that hold one: HF_TOKEN, OPENAI_API_KEY, WANDB_API_KEY, AWS_SECRET_ACCESS_KEY."""

SHORTEST = 8
"""Characters. What is shorter is no key, and would be found inside plain words."""

LOGIN = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
"""The user and password of an address."""


def hidden(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """The text without secrets.  Example: "401: no such key sk-4f0a..." becomes "401: no such key <OPENAI_API_KEY>"

    Args:
        text: anything that a person will read or that will be written.
        environment: where the secrets are.
    """
    secrets = {value: name for name, value in environment.items() if len(value) >= SHORTEST and NAMES.search(name)}
    for value in sorted(secrets, key=len, reverse=True):  # one may be the beginning of another
        for written in (value, json.dumps(value)[1:-1]):
            text = text.replace(written, f"<{secrets[value]}>")
    return LOGIN.sub("<login>", text)
