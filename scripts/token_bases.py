"""The bases of ``make rlvr-demo``: simulated episodes, a tokenizer, two token models, and the package's small copies of them.

    simulate (Push-T) -> train fsq_frame_tiny -> train token_multi_step_tiny, token_single_step_tiny -> bundle

About half an hour on two cores. The recipes are those of ``configs/train``; none of these episodes is part of the demo. The same
command continues an interrupted run, and retells what is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from demo import Failed, Teller
from rlvr_demo import BASES, KINDS, PUSHT, QUICK

from worldsim import tokenizers
from worldsim.commands._tokens import digest_of
from worldsim.core.files import read_json, remove, replacing, write_json, write_text
from worldsim.train import checkpoint
from worldsim.train.tracking import METRICS, read_rows
from worldsim.world_models.token_ar import TOKENIZER

SEED = 100_000
"""Of the first episode; the demo's begin at 0 and at 500000."""
EPISODES, STEPS = 480, 40


def tell(out: Path) -> None:
    """Everything up to the checkpoints."""
    teller = Teller()
    words = [word for policy in QUICK for word in ("--policy", policy)]
    words += [word for key, value in PUSHT.items() for word in ("--set", f"{key}={value}")]
    counts = ["--episodes", EPISODES, "--steps", STEPS, "--seed", SEED, "--to", "oxe-npz"]
    episodes = out / "episodes"
    teller.type("python", "scripts/simulate.py", episodes, "--env", "pusht", *words, *counts)
    tokenizer = out / "tokenizer"
    teller.type("worldsim", "train", episodes, "--config", "fsq_frame_tiny", "--out", tokenizer)
    for kind in KINDS:
        train = ["worldsim", "train", episodes, "--config", f"token_{kind}_step_tiny"]
        teller.type(*train, "--set", f"tokenizer={tokenizer}", "--out", out / kind)


def bundle(run: Path, tokenizer: Path, folder: Path) -> None:
    """A token model's checkpoint in fp16, with its tokenizer, its recipes and its training logs.

    ``README.md``, the model card, is written by hand and kept.

    Args:
        run: of the token model. tokenizer: run that trained its tokenizer.
    """
    with replacing(folder / TOKENIZER) as temporary:
        remove(folder / TOKENIZER)
        halve(run / "checkpoint" / TOKENIZER, temporary)
    halve(run / "checkpoint", folder)
    card = read_json(folder / checkpoint.CARD)
    # Rounding made other weights of them: the digest that columns are keyed by is that of what is loaded.
    card["tokenizer"]["digest"] = digest_of(tokenizers.load(folder / TOKENIZER, "cpu"))
    write_json(folder / checkpoint.CARD, card)
    for name, source in (("model", run), ("tokenizer", tokenizer)):
        recipe = yaml.safe_load((source / "config.yaml").read_text(encoding="utf8"))
        recipe |= {"data": None, **({"tokenizer": None} if name == "model" else {})}  # folders of the machine that ran it
        write_text(folder / f"{name}.recipe.yaml", yaml.safe_dump(recipe, sort_keys=False))
        rows = read_rows(source / METRICS)
        lines = [f"{row['step']},{row['loss']:.4f},{row['grad_norm']:.4f},{row['seconds']:.1f}" for row in rows]
        write_text(folder / f"{name}.training.csv", "\n".join(["step,loss,grad_norm,seconds", *lines]) + "\n")
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    print(f"{folder}: {size / 2**20:.1f} MB of weights")


def share(first: Path, second: Path) -> None:
    """The second base points at the first one's tokenizer, which is its own as well, instead of holding it again."""
    own = second / TOKENIZER
    name = read_json(own / checkpoint.CARD)["tokenizer"]
    if (own / checkpoint.WEIGHTS).read_bytes() != (first / TOKENIZER / checkpoint.WEIGHTS).read_bytes():
        raise SystemExit(f"{first} and {second} have different tokenizers")
    remove(own / checkpoint.WEIGHTS)
    at = Path("..", "..", first.name, TOKENIZER).as_posix()
    write_json(own / checkpoint.CARD, {"tokenizer": name, tokenizers.SAME_AS: at})


def halve(source: Path, target: Path) -> None:
    """Copy a checkpoint's card and weights, floats as fp16. Episode names stay behind: other simulated data has the same."""
    tensors = checkpoint.read_weights(source / checkpoint.WEIGHTS)
    small = {name: t.to(torch.float16) if t.is_floating_point() else t for name, t in tensors.items()}
    target.mkdir(parents=True, exist_ok=True)
    checkpoint.write_checkpoint(target, small, read_json(source / checkpoint.CARD) | {"train_episodes": []}, 0)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/token-bases"))
    parser.add_argument("--to", type=Path, default=BASES, help="folder to bundle into")
    given = parser.parse_args(argv)
    try:
        tell(given.out)
    except Failed as failed:
        return failed.code
    folders = [given.to / f"token-tiny-{kind}" for kind in KINDS]
    for kind, folder in zip(KINDS, folders):
        bundle(given.out / kind, given.out / "tokenizer", folder)
    share(*folders)
    return 0


if __name__ == "__main__":
    sys.exit(main())
