"""The three ways of `tokenize.py`: ours, frame by frame, and the bare backbone."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import _convert_data as scenes
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as pictures

from worldsim.commands import _world_tokens
from worldsim.core.protocols import EpisodeSource
from worldsim.encoders._preparation import Preparation
from worldsim.encoders._vision import VisionEncoder
from worldsim.formats import open_dataset
from worldsim.tokenizers import kmeans
from worldsim.tokenizers._embedder import Embedder
from worldsim.tokenizers.kmeans import KMeans

CAMERA, SIDE, FPS = "observation.images.image", 256, 20
"""One camera of 256 x 256, as LIBERO's."""


def make(root: Path, episodes: int, frames: int, seed: int = 0) -> Path:
    """A LeRobot v3 dataset of natural pictures, recorded through lerobot's own API and its defaults (AV1)."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    features: dict = {CAMERA: {"dtype": "video", "shape": (SIDE, SIDE, 3), "names": ["height", "width", "channels"]}}
    for key in ("observation.state", "action"):
        features[key] = {"dtype": "float32", "shape": (7,), "names": [f"joint_{k}" for k in range(7)]}
    dataset = LeRobotDataset.create(
        "worldsim/bench", FPS, features, root=root, streaming_encoding=True, encoder_queue_maxsize=1000
    )
    rng = np.random.default_rng(seed)
    for episode in range(episodes):
        background, thing = scenes.scene(0, episode)
        for t in range(frames):
            row = np.sin(0.05 * t + np.arange(7)).astype(np.float32)
            picture = Image.fromarray(scenes.frame(t, background, thing, rng)).resize((SIDE, SIDE))
            dataset.add_frame(
                {CAMERA: np.asarray(picture), "observation.state": row, "action": row + 0.01, "task": "move it round"}
            )
        dataset.save_episode()
    dataset.finalize()
    return root


@dataclass
class Work:
    """One dataset, one backbone, one codebook.

    Attributes:
        frames: of the whole dataset. batch: of ours and of the bare backbone.
    """

    data: Path
    source: EpisodeSource
    camera: str
    tokenizer: KMeans
    frames: int
    batch: int
    device: str

    @classmethod
    def of(cls, data: Path, encoder: VisionEncoder, codes: int, batch: int, device: str) -> Work:
        """The codebook is fitted on a few frames of each episode; fitting is not measured."""
        source = open_dataset(data)
        camera = source.card.camera_names[0]
        embedder = Embedder(encoder.to(device))
        some = [source.episode(k).frames[camera].read()[:: max(1, len(source) * 4 // codes)] for k in range(len(source))]
        rows = torch.cat(
            [embedder(part[at : at + batch])[:, 0].cpu() for part in some for at in range(0, len(part), batch)]
        )
        tokenizer = KMeans(embedder, kmeans.fit(rows.numpy(), min(codes, len(rows) // 2), 0)).to(device).eval()
        frames = sum(source.episode(k).num_frames for k in range(len(source)))
        return cls(data, source, camera, tokenizer, frames, batch, device)


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def ours(work: Work, columns: Path) -> tuple[float, np.ndarray]:
    """Seconds of what ``tokenize-world`` does with a codebook: decode, embed, assign, write columns; and the tokens ``[T]``."""
    shutil.rmtree(columns, ignore_errors=True)
    began = time.perf_counter()
    ids = work.source.ids()
    told = _world_tokens.fill(
        columns, work.source, work.tokenizer, work.camera, ids, work.device, data=work.data, batch=work.batch
    )
    wait(work.device)
    seconds = time.perf_counter() - began
    return seconds, np.concatenate([told.tokens.load(name)[:, 0] for name in ids])


def prepared(image: Tensor, preparation: Preparation) -> Tensor:
    """What a processor of transformers does with one float picture in 0 … 1 when it is told not to rescale."""
    if preparation.size is not None:
        image = pictures.resize(image, list(preparation.size), InterpolationMode(preparation.filter), antialias=True)
    if preparation.crop is not None:
        image = pictures.center_crop(image, list(preparation.crop))
    return pictures.normalize(image, list(preparation.mean), list(preparation.std))


@torch.no_grad()
def frame_by_frame(work: Work, out: Path) -> tuple[float, np.ndarray]:
    """Seconds of the experiment's own way, and the tokens: item by item through ``LeRobotDataset``, float pictures through a
    processor, one frame per forward pass, then all codes at once. Opening the dataset and imports are not counted.

    # source: world_modality, precompute_world_tokens.py (steps only; without its second division by 255)
    """
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("worldsim/bench", root=work.data)
    encoder = work.tokenizer.encoder
    began = time.perf_counter()
    rows = np.zeros((len(dataset), 1, work.tokenizer.dim), np.float16)
    for index in range(len(dataset)):
        pixels = prepared(dataset[index][CAMERA], encoder.preparation)[None].to(work.device)
        if isinstance(encoder.module, torch.nn.Module) and hasattr(encoder.module, "project"):
            row = encoder.module(pixels)[1]
        else:
            row = encoder.module(pixel_values=pixels).pooler_output
        rows[index] = row.to(torch.float16).cpu().numpy()
    tokens = work.tokenizer.assign(rows)[:, 0].numpy().astype(np.int32)
    np.save(out / "embeddings.npy", rows)
    np.save(out / "tokens.npy", tokens)
    return time.perf_counter() - began, tokens


@torch.no_grad()
def bare(work: Work) -> float:
    """Seconds of the backbone's module alone for as many frames, on one normalised batch that lies in memory."""
    encoder, height, width = work.tokenizer.encoder, *work.tokenizer.encoder.preparation.input
    batch = torch.randn(work.batch, 3, height, width, generator=torch.Generator().manual_seed(0)).to(work.device)
    wait(work.device)
    began = time.perf_counter()
    for at in range(0, work.frames, work.batch):
        encoder.module(pixel_values=batch[: work.frames - at])
    wait(work.device)
    return time.perf_counter() - began
