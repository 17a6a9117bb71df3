"""A saved LeRobot policy, built with every weight that its file holds, and with its own pre- and post-processor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldsim.core.errors import UserError
from worldsim.lerobot_policy.checkpoint import CONFIG, WEIGHTS, Checkpoint

Weights = dict[str, Tensor]


@dataclass
class Loaded:
    """
    Attributes:
        policy: a ``lerobot`` ``PreTrainedPolicy`` in evaluation mode.
        preprocessor: observations as a dataset has them -> the policy's own batch; None where it is not used.
        postprocessor: a chunk in the policy's units -> physical units; None where it is not used.
    """

    policy: Any
    preprocessor: Any = None
    postprocessor: Any = None


def load(
    checkpoint: Checkpoint,
    device: str,
    *,
    prepare: Callable[[Any], None],
    rename_keys: Callable[[Any, Weights], Weights],
    pipelines: bool,
) -> Loaded:
    """
    Args:
        prepare: changes the config before the policy is built, so that nothing is downloaded that the file replaces.
        rename_keys: the file's tensors under the policy's own names.
        pipelines: whether the policy's processors are loaded too.

    Raises:
        UserError: the policy cannot be built here, or file and policy do not hold the same tensors.
    """
    assert checkpoint.folder is not None
    config = _config(checkpoint.folder)
    config.device = device
    if hasattr(config, "compile_model"):
        config.compile_model = False  # hooks are not called inside a compiled graph
    prepare(config)
    policy = _build(checkpoint.folder, config)
    fill(policy, rename_keys(policy, _weights(checkpoint.folder)), checkpoint.folder / WEIGHTS)
    policy.to(device).eval()
    if not pipelines:
        return Loaded(policy)
    return Loaded(policy, *_pipelines(checkpoint.folder, config, device))


def _config(folder: Path) -> Any:
    import draccus.utils
    import lerobot.policies  # noqa: F401 (registers the configs of the policies)
    from lerobot.configs import PreTrainedConfig

    try:
        return PreTrainedConfig.from_pretrained(folder, local_files_only=True)
    except (draccus.utils.DecodingError, ValueError, TypeError) as error:
        raise UserError(f"{folder / CONFIG} is not a config of LeRobot {_version()}: {error}") from error


def _version() -> str:
    from lerobot import __version__

    return __version__


def _build(folder: Path, config: Any) -> Any:
    from lerobot.policies import get_policy_class

    try:
        return get_policy_class(config.type)(config)
    except ImportError as error:
        # lerobot[smolvla] would bring an older transformers along
        package = "num2words" if "num2words" in str(error) else f"'lerobot[{config.type}]'"
        raise UserError(f"the policy {folder} needs a package: {error}", ["uv", "pip", "install", package]) from error
    except OSError as error:
        backbone = getattr(config, "vlm_model_name", None)
        raise UserError(
            f"the policy {folder} cannot be built: {error}", ["hf", "download", backbone] if backbone else None
        ) from error


def _weights(folder: Path) -> Weights:
    from safetensors.torch import load_file

    return load_file(folder / WEIGHTS)


def fill(policy: torch.nn.Module, weights: Weights, path: Path) -> None:
    """Load ``weights`` strictly. A tensor that shares its memory with one that was loaded may be absent from the file.

    LeRobot's own loader passes over what does not match, in one policy over any error at all.

    Raises:
        UserError: a tensor is missing, unknown or of another shape.
    """
    own = policy.state_dict()
    wrong = [key for key, value in weights.items() if key in own and own[key].shape != value.shape]
    if wrong:
        raise UserError(
            f"{path}: the tensor {wrong[0]} has shape {tuple(weights[wrong[0]].shape)}, "
            f"the policy that its config describes {tuple(own[wrong[0]].shape)}"
        )
    missing, unknown = policy.load_state_dict(weights, strict=False)
    loaded = {own[key].data_ptr() for key in weights if key in own}
    missing = [key for key in missing if own[key].data_ptr() not in loaded]
    if missing or unknown:
        kind, keys = ("lacks", missing) if missing else ("holds the unknown", unknown)
        raise UserError(f"{path} {kind} tensor {keys[0]} ({len(keys)} of this kind): its config describes another policy")


def _pipelines(folder: Path, config: Any, device: str) -> tuple[Any, Any]:
    from lerobot.policies import make_pre_post_processors
    from lerobot.processor.pipeline import ProcessorMigrationError

    try:
        return make_pre_post_processors(
            config, pretrained_path=str(folder), preprocessor_overrides={"device_processor": {"device": device}}
        )
    except (OSError, ImportError, ValueError, KeyError, ProcessorMigrationError) as error:
        raise UserError(f"the pipelines of the policy {folder} cannot be built: {error}") from error
