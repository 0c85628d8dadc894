"""Two processes that read one checkpoint, each the rows it holds: sharded.py CHECKPOINT FOLDER; prints what each has, as JSON."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist  # noqa: TID251 - what is tested is a checkpoint in more than one process
from torch.distributed.device_mesh import init_device_mesh  # noqa: TID251
from torch.distributed.tensor import Shard, distribute_tensor  # noqa: TID251

from xwin.learning import checkpoint

WORLD = 2


def read(rank: int, path: Path, folder: Path) -> None:
    """One of the processes."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    mesh = init_device_mesh("cpu", (WORLD,))
    split = distribute_tensor(torch.zeros(6, 4), mesh, [Shard(0)])
    uneven = distribute_tensor(torch.zeros(5), mesh, [Shard(0)])
    into = {"model": {"split": split, "uneven": uneven, "whole": torch.zeros(3)}}
    state = checkpoint.load(path, into)
    have = {name: (t.to_local() if hasattr(t, "to_local") else t).tolist() for name, t in into["model"].items()}
    (folder / f"{rank}.json").write_text(json.dumps({"state": state, **have}))
    dist.destroy_process_group()


if __name__ == "__main__":
    path, folder = map(Path, sys.argv[1:])
    child = os.fork()
    read(0 if child else 1, path, folder)
    if child:
        sys.exit(os.waitpid(child, 0)[1])
