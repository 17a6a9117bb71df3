"""A trained policy as a folder that LeRobot's programs load with ``--policy.path``; it stays a checkpoint of this program too."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worldsim import policies
from worldsim.core.errors import UserError
from worldsim.core.files import read_json, remove, write_text
from worldsim.lerobot_policy.checkpoint import CONFIG, PIPELINES
from worldsim.policies._world_modality_card import POLICY, ModalityCard

README = """# A worldsim policy for LeRobot

Arm {arm} of the world-modality experiment, exported by `worldsim models export --to lerobot`. It needs worldsim installed:

    lerobot-eval --x.discover_packages_path=worldsim.lerobot_plugin --policy.path=THIS_FOLDER \\
        --env.type=pusht --eval.n_episodes=50 --eval.batch_size=10

Cameras: {cameras}. Where the environment has other names, add `--rename_map='{{"ITS NAME": "NAME ABOVE"}}'`.
Actions are physical ({units}); the policy itself normalises.
"""


def export(run: str, out: Path, features: Mapping[str, str]) -> dict[str, Any]:
    """Write the folder into ``out``; returns what was written and what the policy is.

    Args:
        run: run folder of a world-modality policy, or its checkpoint.
        features: the policy's camera -> LeRobot's name of it; ``observation.images.<camera>`` where it is not named.

    Raises:
        UserError: there is no such policy, or it has no such camera.
    """
    folder = policies.find(Path(run))
    if folder is None or not (folder / policies.CARD_FILE).is_file():
        raise UserError(f"{run} is no run folder of a policy", "worldsim train --config world_modality_c DATA")
    about = read_json(folder / policies.CARD_FILE)
    if about.get("policy") != POLICY:
        raise UserError(f"{run} is no world-modality policy, and no other kind is exported to LeRobot")
    card = ModalityCard.read(folder / policies.CARD_FILE)
    names = named(card, features)
    copied = _copy(folder, out)
    _write_config(card, names, out)
    cameras = ", ".join(f"{feature} ({camera})" for camera, feature in names.items())
    units = ", ".join(f"{name} in {unit}" for name, unit in zip(card.action_spec.names, card.action_spec.units))
    write_text(out / "README.md", README.format(arm=card.arm, cameras=cameras, units=units))
    return {"files": [*copied, CONFIG, *PIPELINES, "README.md"], "arm": card.arm, "features": list(names.values())}


def named(card: ModalityCard, features: Mapping[str, str]) -> dict[str, str]:
    """Camera -> LeRobot's feature."""
    unknown = [name for name in features if name not in card.cameras]
    if unknown:
        raise UserError(f"features.{unknown[0]}: the policy has no such camera; it has {', '.join(card.cameras)}")
    return {camera: features.get(camera, f"observation.images.{camera}") for camera in card.cameras}


def _copy(folder: Path, out: Path) -> list[str]:
    names = [path.name for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    for name in names:
        remove(out / name)
        if (folder / name).is_dir():
            shutil.copytree(folder / name, out / name)
        else:
            shutil.copy2(folder / name, out / name)
    return names


def _write_config(card: ModalityCard, names: Mapping[str, str], out: Path) -> None:
    """``config.json`` and the two pipelines, by LeRobot's own functions."""
    from lerobot.configs import FeatureType, PolicyFeature

    from worldsim.lerobot_plugin.configuration_worldsim_world_modality import WorldsimWorldModalityConfig
    from worldsim.lerobot_plugin.processor_worldsim_world_modality import (
        make_worldsim_world_modality_pre_post_processors,
    )

    inputs = {
        names[camera]: PolicyFeature(type=FeatureType.VISUAL, shape=(3, *size)) for camera, size in card.cameras.items()
    }
    if card.state_names:
        inputs["observation.state"] = PolicyFeature(type=FeatureType.STATE, shape=(len(card.state_names),))
    config = WorldsimWorldModalityConfig(
        input_features=inputs,
        output_features={"action": PolicyFeature(type=FeatureType.ACTION, shape=(card.action_spec.dim,))},
        chunk_size=card.net.horizon,
        n_action_steps=card.net.horizon,
        cameras={feature: camera for camera, feature in names.items()},
        device="cpu",
        push_to_hub=False,
    )
    config.validate_features()
    config.save_pretrained(out)
    for pipeline in make_worldsim_world_modality_pre_post_processors(config):
        pipeline.save_pretrained(out)
