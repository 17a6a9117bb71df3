"""Pictures for sections 6.1 and 6.2 of the report: the codebook, and what a run predicts on held-out episodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from worldsim.commands._modality_pictures import imagination_film, imagination_strip
from worldsim.commands._modality_runs import Bench, Trained
from worldsim.core.protocols import EpisodeSource
from worldsim.data import token_statistics
from worldsim.data.cameras import camera_stream
from worldsim.data.predictions import file_names
from worldsim.report.codebook import codebook_sheet
from worldsim.report.video import write_png

MOST_WINDOWS = 100
"""Of one episode in a film."""
LARGEST = 240
"""Pixels of a frame's height from which on it is thinned out."""
CODES = 48
PREFERRED = ("C", "C_hist", "C_pred", "B", "C_no_input")


def write(folder: Path, what: Bench, source: EpisodeSource, clips: int) -> dict[str, list[dict[str, str]]]:
    """Write the pictures into ``folder``; returns the figures of the sections ``codebook`` and ``imagination``."""
    tokenizer: Any = what.first.policy.tokenizer
    tokens = {name: np.asarray(what.gathered.rows.tokens[name]) for name in what.episodes}
    counts = token_statistics.counts(tokens, tokenizer.codes)
    write_png(folder / "codebook.png", codebook_sheet(tokenizer.pictures.cpu().numpy(), counts, CODES))
    caption = "The training frame nearest to each centroid, the tokens that held-out episodes use most first."
    out: dict[str, list[dict[str, str]]] = {"codebook": [{"path": "codebook.png", "caption": caption}]}
    run = shown_run(what)
    if run is None:
        return out
    names = file_names(what.episodes)
    for episode in what.episodes[:clips]:
        out.setdefault("imagination", []).extend(_episode(folder, run, what, source, episode, names[episode]))
    return out


def shown_run(what: Bench) -> Trained | None:
    """The run whose predictions are shown: C where it is there, of the most data, its first seed."""
    able = [run for run in what.runs if run.arm in PREFERRED]
    return min(able, key=lambda run: (PREFERRED.index(run.arm), -run.fraction, run.seed), default=None)


def _episode(
    folder: Path, run: Trained, what: Bench, source: EpisodeSource, episode: str, name: str
) -> list[dict[str, str]]:
    windows = what.windows(run)
    mine = np.flatnonzero(windows.episode_of == episode)[:MOST_WINDOWS]
    said = run.policy.net.predict(windows.batch(mine))
    codes = said.logits.argmax(-1).cpu().numpy()
    tokenizer: Any = run.policy.tokenizer
    pictures = np.stack([np.stack([tokenizer.picture(step) for step in row]) for row in codes])
    starts = windows.start_of[mine]
    stream = camera_stream(source.episode(source.ids().index(episode)), run.policy.card.camera)
    frames = stream.rows(np.arange(starts[-1] + windows.spec.future + 1))
    thin = max(1, frames.shape[1] // LARGEST)
    frames = frames[:, ::thin, ::thin]
    strip, film = f"predicted_{name}.png", f"predicted_{name}"
    imagination_strip(folder / strip, frames, starts, pictures)
    gif = imagination_film(folder, film, frames, starts, pictures, run.policy.card.fps)
    who = f"{run.arm}, seed {run.seed}, held-out episode {episode}"
    return [
        {"path": strip, "caption": f"{who}: above the training frames nearest to the predicted tokens, below what came."},
        {"path": gif, "caption": f"{who}: the camera, the predicted token's frame, and what came (also {film}.mp4)."},
    ]
