"""The judge that a person named on the command line: an endpoint, a model of ours, or a reward model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from xwin.cli._places import find, find_reward_model
from xwin.errors import RecipeError, UserError

if TYPE_CHECKING:
    from xwin.engines.base import Chat
    from xwin.scorers._pairwise import ChatJudge, Judging


def over_endpoint(model: str, endpoint: str, key: str, replies: Path) -> Chat:
    """A model behind an endpoint.

    Raises:
        UserError: the address or the name of the variable is none, or the environment holds no key.
    """
    from xwin.engines.remote import Remote

    try:
        return Remote(model=model, endpoint=endpoint, key=key or None).chat(replies)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise UserError(first["msg"].removeprefix("Value error, "), f"--{first['loc'][0]}") from None


def over_settings(path: Path, replies: Path) -> Chat:
    """A model behind an endpoint whose settings (`xwin explain remote`) a YAML file holds.

    Raises:
        UserError: the file cannot be read, or the environment holds no key.
        RecipeError: a setting is wrong; names the line.
    """
    from xwin.engines.remote import Remote
    from xwin.recipe.mistakes import mistakes
    from xwin.recipe.source import read_source

    source = read_source(path)
    wrong = mistakes(Remote, source)
    if wrong:
        raise RecipeError(list(wrong.values()))
    return Remote.model_validate(source.data).chat(replies)


def over_local(name: str, replies: Path) -> Chat:
    """A model of ours, as `xwin chat` finds it."""
    from xwin.data.template import load_template, template_digest
    from xwin.engines._replies import KeptChat, ReplyStore
    from xwin.engines.base import EngineChat
    from xwin.engines.local import Local
    from xwin.models.hub import digest_folder

    place = find(name)
    folder = place.fetched()
    template = load_template(folder, place.template)
    engine = Local().build(folder, template.stop, "float32")
    who = f"{digest_folder(folder)} {template_digest(folder, place.template)} float32 local"
    return KeptChat(EngineChat(engine, template), ReplyStore(replies), who)


def over_chat(name: str, chat: Chat, settings: dict[str, Any]) -> ChatJudge:
    """A judge that is asked. `settings`: style, orders, prompt, retries, seed."""
    from xwin.scorers._judge_prompts import read_prompt
    from xwin.scorers._pairwise import ASKINGS, PLACES, PROMPTS, ChatJudge

    style, file = settings["style"], settings["prompt"]
    prompt = PROMPTS[style] if file is None else read_prompt(file, PLACES)
    asking = replace(ASKINGS[style], retries=settings["retries"], seed=settings["seed"])
    return ChatJudge(name, chat, asking, prompt, settings["orders"])


def over_reward_model(name: str) -> Judging:
    """A reward model: RUN:stage, or a folder.

    Raises:
        UserError: there is no reward model.
    """
    from xwin.data.template import load_template
    from xwin.distributed.world import World
    from xwin.learning.learner import Learner
    from xwin.models import causal
    from xwin.models.tuning import Frozen
    from xwin.scorers._reward_judge import RewardJudge

    place = find_reward_model(name)
    folder = Path(place.path)
    model = causal.load(folder, head="score", tuning=Frozen(), dtype="float32")
    return RewardJudge(f"reward:{name}", Learner(model, folder, World.alone()), load_template(folder, place.template))
