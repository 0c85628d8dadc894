"""What is shown or written has the name of a secret in place of its value."""

import pytest

from xwin.run.secrets import hidden

KEYS = {"HF_TOKEN": "hf_abcdefgh", "OPENAI_API_KEY": 'sk-"quoted"', "LONG_TOKEN": "hf_abcdefghijkl", "PATH": "/usr/bin:/bin", "SHORT_KEY": "a"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("401 for hf_abcdefgh!", "401 for <HF_TOKEN>!"),
        ("hf_abcdefghijkl and hf_abcdefgh", "<LONG_TOKEN> and <HF_TOKEN>"),
        ('{"key": "sk-\\"quoted\\""}', '{"key": "<OPENAI_API_KEY>"}'),
        ("a plain word in /usr/bin:/bin", "a plain word in /usr/bin:/bin"),
        ("GET https://me:secret@host/simple failed", "GET https://<login>@host/simple failed"),
        ("see https://host/a:b@c and 10:30", "see https://host/a:b@c and 10:30"),
    ],
)
def test_values_of_secrets_become_their_names_and_all_else_stays(text: str, shown: str) -> None:
    assert hidden(text, KEYS) == shown


def test_the_environment_of_the_process_is_where_secrets_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    assert hidden("key 0123456789abcdef") == "key <WANDB_API_KEY>"
