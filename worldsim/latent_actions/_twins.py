"""Tiny random twins of LeRobot's policies: its real classes and pipelines, small sizes, no download.

They see what the painted episodes of the tests hold: cameras ``cam_front`` and ``cam_top`` of 64 x 128, 7 states, 7 actions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch

from worldsim.core.files import read_json
from worldsim.lerobot_policy.bridge import exchanged
from worldsim.lerobot_policy.checkpoint import CONFIG, Checkpoint
from worldsim.lerobot_policy.loading import Loaded

HEIGHT, WIDTH, DIM = 64, 128, 7
WORDS = 64
"""Size of the twins' vocabulary."""


def features(cameras: tuple[str, ...] = ("cam_top", "cam_front")) -> dict[str, dict[str, Any]]:
    """Keyword arguments of a policy config; the order of the cameras is not the alphabet's on purpose."""
    from lerobot.configs import FeatureType, PolicyFeature

    images = {
        f"observation.images.{name}": PolicyFeature(type=FeatureType.VISUAL, shape=(3, HEIGHT, WIDTH)) for name in cameras
    }
    state = {"observation.state": PolicyFeature(type=FeatureType.STATE, shape=(DIM,))}
    action = {"action": PolicyFeature(type=FeatureType.ACTION, shape=(DIM,))}
    return {"input_features": images | state, "output_features": action}


def statistics(config: Any) -> dict[str, dict[str, torch.Tensor]]:
    """Statistics that change every input: means off zero, deviations off one."""
    out = {}
    for key, feature in {**config.input_features, **config.output_features}.items():
        shape = (feature.shape[0], 1, 1) if len(feature.shape) == 3 else feature.shape
        low, high = torch.full(shape, -2.0), torch.full(shape, 3.0)
        out[key] = {"mean": torch.full(shape, 0.25), "std": torch.full(shape, 0.7), "min": low, "max": high}
    return out


def act() -> tuple[Checkpoint, Loaded]:
    from lerobot.policies import ACTConfig, make_pre_post_processors
    from lerobot.policies.act.modeling_act import ACTPolicy

    small = {"dim_model": 32, "n_heads": 4, "dim_feedforward": 64, "n_encoder_layers": 1, "n_vae_encoder_layers": 1}
    config = ACTConfig(
        **features(), **small, chunk_size=4, n_action_steps=4, pretrained_backbone_weights=None, device="cpu"
    )
    policy = _seeded(lambda: ACTPolicy(config))
    return _finished(policy, "model.action_head", *make_pre_post_processors(config, dataset_stats=statistics(config)))


def diffusion() -> tuple[Checkpoint, Loaded]:
    from lerobot.policies import DiffusionConfig, make_pre_post_processors
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

    small = {"down_dims": (16, 32), "diffusion_step_embed_dim": 16, "spatial_softmax_num_keypoints": 4}
    steps = {"horizon": 8, "n_action_steps": 4, "n_obs_steps": 2, "num_inference_steps": 3, "drop_n_last_frames": 3}
    config = DiffusionConfig(**features(), **small, **steps, pretrained_backbone_weights=None, device="cpu")
    policy = _seeded(lambda: DiffusionPolicy(config))
    processors = make_pre_post_processors(config, dataset_stats=statistics(config))
    return _finished(policy, "diffusion.unet.final_conv.1", *processors)


def smolvla() -> tuple[Checkpoint, Loaded]:
    from lerobot.policies import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
    from lerobot.processor import NewLineTaskProcessorStep

    sizes = {"chunk_size": 4, "n_action_steps": 4, "num_steps": 2, "num_vlm_layers": 2, "max_state_dim": 8}
    config = SmolVLAConfig(
        **features(), **sizes, max_action_dim=8, resize_imgs_with_padding=(32, 32), load_vlm_weights=False, device="cpu"
    )
    with tiny_smolvlm():
        policy = _seeded(lambda: SmolVLAPolicy(config))
    return _finished(policy, "model.action_out_proj", *_with_words(config, NewLineTaskProcessorStep(), "longest"))


def pi0() -> tuple[Checkpoint, Loaded]:
    from lerobot.policies import PI0Config
    from lerobot.policies.pi0.modeling_pi0 import PI0Policy
    from lerobot.policies.pi0.processor_pi0 import Pi0NewLineProcessor

    sizes = {"chunk_size": 4, "n_action_steps": 4, "num_inference_steps": 2, "max_state_dim": 8, "max_action_dim": 8}
    config = PI0Config(**features(), **sizes, image_resolution=(28, 28), device="cpu")
    with tiny_paligemma():
        policy = _seeded(lambda: PI0Policy(config))
    return _finished(policy, "model.action_out_proj", *_with_words(config, Pi0NewLineProcessor(), "max_length"))


def _seeded(build: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().eval()


def _finished(policy: Any, head: str, preprocessor: Any, postprocessor: Any) -> tuple[Checkpoint, Loaded]:
    with TemporaryDirectory() as folder:
        policy.config.save_pretrained(folder)
        config = read_json(Path(folder) / CONFIG)
    width = policy.get_submodule(head).weight.shape[1]
    return Checkpoint(None, config, width, "twin"), Loaded(policy, preprocessor, postprocessor)


def _with_words(config: Any, newline: Any, padding: str) -> tuple[Any, Any]:
    """The pipelines of a policy that reads its task, with a tokenizer of a few words.

    source: lerobot 0.6.1, policies/{pi0,smolvla}/processor_*.py (order of the steps)
    """
    from lerobot.processor import TokenizerProcessorStep
    from lerobot.processor.factory import make_default_policy_processor_steps, make_policy_processor_pipelines

    steps = make_default_policy_processor_steps(config, statistics(config))
    words = TokenizerProcessorStep(tokenizer=tokenizer(), max_length=8, padding_side="right", padding=padding)
    before = [steps.rename_observations, steps.add_batch_dim, newline, words, steps.to_device, steps.normalize]
    return make_policy_processor_pipelines(input_steps=before, output_steps=[steps.unnormalize, steps.to_cpu])


def tokenizer() -> Any:
    """One token per character, 64 in all."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    marks = ["<pad>", "<unk>", "\n", " "]
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + [str(digit) for digit in range(10)]
    one = Tokenizer(models.WordLevel({token: at for at, token in enumerate(marks + letters)}, unk_token="<unk>"))
    one.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=one, pad_token="<pad>", unk_token="<unk>")


@contextmanager
def tiny_smolvlm() -> Iterator[None]:
    """SmolVLA's language model from a small config instead of the Hub's; of its processor only two numbers are read."""
    from lerobot.policies.smolvla import smolvlm_with_expert
    from transformers import SmolVLMConfig

    text = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": WORDS, "pad_token_id": 0}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = SmolVLMConfig(
        text_config=text | heads,
        vision_config=vision | {"image_size": 32, "patch_size": 8},
        scale_factor=2,
        image_token_id=1,
    )
    marks = SimpleNamespace(tokenizer=SimpleNamespace(fake_image_token_id=1, global_image_token_id=2))
    auto = SimpleNamespace(from_pretrained=lambda name: config)
    with exchanged(smolvlm_with_expert, AutoConfig=auto, AutoProcessor=SimpleNamespace(from_pretrained=lambda name: marks)):
        yield


@contextmanager
def tiny_paligemma() -> Iterator[None]:
    """pi0's two transformers and its vision tower in small; the classes are LeRobot's own."""
    from lerobot.policies.pi0 import modeling_pi0

    size = modeling_pi0.GemmaConfig(width=32, depth=2, mlp_dim=64, num_heads=2, num_kv_heads=1, head_dim=16)
    whole, expert = modeling_pi0.PaliGemmaForConditionalGenerationWithPiGemma, modeling_pi0.PiGemmaForCausalLM

    def paligemma(config: Any) -> Any:
        vision = config.vision_config
        vision.hidden_size, vision.intermediate_size, vision.projection_dim = 16, 32, size.width
        vision.num_hidden_layers, vision.num_attention_heads = 1, 2
        config.text_config.vocab_size = WORDS
        return whole(config=config)

    def gemma(config: Any) -> Any:
        config.vocab_size = WORDS
        return expert(config=config)

    with exchanged(
        modeling_pi0,
        get_gemma_config=lambda variant: size,
        PaliGemmaForConditionalGenerationWithPiGemma=paligemma,
        PiGemmaForCausalLM=gemma,
    ):
        yield
