"""``worldsim doctor``: this machine, and a dataset, examined without changing either."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from worldsim.core.console import progress
from worldsim.core.errors import BadEpisode, UserError, again
from worldsim.core.protocols import EpisodeSource
from worldsim.data.doctor import examine_numbers, verdict, watch
from worldsim.data.split import split_episodes
from worldsim.formats import detect, open_dataset

PACKAGES = ("torch", "lerobot", "diffusers", "transformers", "peft", "h5py", "av", "modal", "wandb")


def machine() -> dict[str, Any]:
    """What this machine can do: accelerators, memory, packages, tokens. Nothing is contacted."""
    import psutil
    import torch

    accelerators = [
        {"name": p.name, "gib": round(p.total_memory / 2**30, 1)}
        for p in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    ]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "disk_free_gib": round(shutil.disk_usage(".").free / 2**30, 1),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "rocm": getattr(torch.version, "hip", None),
        "mps": torch.backends.mps.is_available(),
        "gpus": accelerators,
        "torchcodec": _loads_torchcodec(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "tokens": {
            "modal": bool(os.environ.get("MODAL_TOKEN_ID")) or (Path.home() / ".modal.toml").exists(),
            "wandb": bool(os.environ.get("WANDB_API_KEY")) or "api.wandb.ai" in _text(Path.home() / ".netrc"),
            "hub": bool(os.environ.get("HF_TOKEN")) or (Path.home() / ".cache/huggingface/token").exists(),
        },
    }


def _loads_torchcodec() -> bool:
    """torchcodec needs FFmpeg's own libraries; PyAV, which everything here falls back to, does not."""
    try:
        import torchcodec  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


ADVICE = {"modal": "modal setup", "wandb": "wandb login", "hub": "hf auth login"}


def machine_text(rows: dict[str, Any]) -> str:
    gpus = ", ".join(f"{gpu['name']} ({gpu['gib']} GiB)" for gpu in rows["gpus"]) or "none"
    lines = [
        f"python      {rows['python']} on {rows['platform']}",
        f"machine     {rows['cores']} cores, {rows['memory_gib']} GiB memory, {rows['disk_free_gib']} GiB disk free",
        f"GPUs        {gpus}; CUDA {rows['cuda'] or 'no'}, ROCm {rows['rocm'] or 'no'}, MPS {'yes' if rows['mps'] else 'no'}",
        f"video       PyAV{', torchcodec' if rows['torchcodec'] else ' (torchcodec does not load; not needed)'}",
        "packages    " + ", ".join(f"{name} {version}" for name, version in rows["packages"].items()),
    ]
    for name, there in rows["tokens"].items():
        lines.append(f"{name:<11} {'configured' if there else f'not configured; to use it: {ADVICE[name]}'}")
    return "\n".join(lines)


def dataset(path: str, episodes: str | None = None) -> dict[str, Any]:
    """Examine a dataset without converting it: the card, notes, and every bad episode by name and reason."""
    folder = Path(path)
    name = detect(folder)
    source = open_dataset(folder, name)
    try:
        return _examine(source, path, name, episodes)
    finally:
        source.close()


def _examine(source: EpisodeSource, path: str, name: str, episodes: str | None) -> dict[str, Any]:
    card, ids = source.card, source.ids()
    chosen = _chosen(len(source), episodes)
    rejected: dict[str, str] = {}
    notes, frames = list(card.notes), 0
    with progress("examine", len(chosen), unit="episodes") as bar:
        for index in chosen:
            try:
                episode = source.episode(index)
                examine_numbers(episode, card)
                watched, findings = watch(episode)
                for stream in watched.frames.values():
                    for _ in stream.blocks():
                        pass
                notes += verdict(findings)
                frames += episode.num_frames
            except BadEpisode as error:
                rejected[error.episode] = error.reason
            bar.advance()
    split = split_episodes(ids, card.splits)
    return {
        "path": path,
        "format": name,
        "episodes": len(source),
        "examined": len(chosen),
        "frames": frames,
        "fps": card.fps,
        "cameras": {camera.name: [camera.height, camera.width] for camera in card.cameras},
        "actions": card.actions.to_json() if card.actions else None,
        "states": len(card.state_names) if card.state_names else None,
        "split": {part: len(members) for part, members in split.parts.items()},
        "split_source": split.source,
        "notes": list(dict.fromkeys(notes)),
        "rejected": rejected,
    }


def _chosen(count: int, episodes: str | None) -> range:
    if episodes is None:
        return range(count)
    first, colon, last = episodes.partition(":")
    if not colon or not all(part == "" or part.isdigit() for part in (first, last)):
        raise UserError(f"--episodes {episodes} is not of the form start:stop", again(episodes="0:5"))
    return range(int(first or 0), min(int(last or count), count))


def dataset_text(rows: dict[str, Any]) -> str:
    cameras = ", ".join(f"{name} {h}x{w}" for name, (h, w) in rows["cameras"].items())
    actions = rows["actions"]
    acted = f"{len(actions['names'])} ({actions['mode']}, {actions['space']})" if actions else "none"
    lines = [
        f"{rows['path']}: {rows['format']}, {rows['episodes']} episodes, {rows['fps']:g} fps",
        f"cameras     {cameras}",
        f"actions     {acted}; states {rows['states'] or 'none'}",
        f"split       {', '.join(f'{k} {n}' for k, n in rows['split'].items())} (by {rows['split_source']})",
        f"examined    {rows['examined']} episodes, {rows['frames']} frames; {len(rows['rejected'])} rejected",
    ]
    lines += [f"note        {note}" for note in rows["notes"]]
    lines += [f"rejected    {name}: {reason}" for name, reason in rows["rejected"].items()]
    if not rows["rejected"]:
        lines.append(f"next        worldsim convert {rows['path']}")
    return "\n".join(lines)
