"""Policies that lerobot-train trained on simulated data, once per test session, whichever worker asks first."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from scripts.simulate import simulate

EPISODES, STEPS = 3, 24
COMMON = (
    "--dataset.repo_id=local/pusht --policy.push_to_hub=false --policy.device=cpu --wandb.enable=false --num_workers=0 "
    "--policy.pretrained_backbone_weights=null --steps=2 --save_freq=2 --batch_size=2"
)
POLICIES = {
    "act": "--policy.type=act --policy.dim_model=64 --policy.n_heads=4 --policy.dim_feedforward=128 "
    "--policy.n_encoder_layers=1 --policy.n_vae_encoder_layers=1 --policy.chunk_size=10 --policy.n_action_steps=10",
    "diffusion": "--policy.type=diffusion --policy.down_dims=[16,32] --policy.diffusion_step_embed_dim=16 "
    "--policy.horizon=8 --policy.n_action_steps=4 --policy.drop_n_last_frames=3 --policy.num_inference_steps=3",
}
DRIVER = """
import sys
from lerobot.scripts.lerobot_train import main
for words in sys.argv[1:]:
    sys.argv = ["lerobot-train", *words.split()]
    main()
"""


@dataclass
class Trained:
    """
    Attributes:
        data: a simulated dataset in LeRobot's format, camera ``top`` of 64 x 64, 3 episodes of 25 frames.
        act, diffusion: output folders of lerobot-train.
    """

    data: Path
    act: Path
    diffusion: Path

    def saved(self, kind: str) -> Path:
        """The folder with the policy itself."""
        return getattr(self, kind) / "checkpoints" / "last" / "pretrained_model"


def trained(shared: Path) -> Trained:
    """Simulate and train into ``shared``, or wait for another worker that does."""
    found = Trained(shared / "pusht", shared / "act", shared / "diffusion")
    shared.mkdir(parents=True, exist_ok=True)
    with FileLock(shared / "lock"):
        if not (shared / "done").exists():
            simulate(
                found.data, env="pusht", policy=["scripted:wander"], episodes=EPISODES, steps=STEPS, options={"size": 64}
            )
            runs = [
                f"{COMMON} {words} --dataset.root={found.data} --output_dir={shared / kind}"
                for kind, words in POLICIES.items()
            ]
            home = {"HF_HOME": str(shared / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-c", DRIVER, *runs]
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ | home, cwd=shared)
            assert done.returncode == 0, done.stderr[-3000:]
            (shared / "done").touch()
    return found


def as_lerobot_loads(folder: Path) -> tuple[Any, Any, Any]:
    """The policy and its pre- and post-processor through LeRobot's own functions alone."""
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies import get_policy_class, make_pre_post_processors

    config = PreTrainedConfig.from_pretrained(folder)
    policy = get_policy_class(config.type).from_pretrained(folder, config=config)
    return policy, *make_pre_post_processors(config, pretrained_path=str(folder))


def observation(images: Any, states: Any) -> dict[str, Any]:
    """Frames uint8 ``[…, H, W, 3]`` and states ``[…, S]`` as LeRobot hands them to a pre-processor."""
    pictures = torch.from_numpy(images).movedim(-1, -3).contiguous().float() / 255
    state = torch.from_numpy(states).float()
    return {"observation.images.top": pictures, "observation.state": state, "task": ["push"] * len(state)}
