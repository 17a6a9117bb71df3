"""How fast `worldsim rlvr` is, beside the straightforward pipeline around transformers' LlamaForCausalLM, and beside the floor.

Sampling at the released geometry (12 layers x 768, prompt 1373, group 16, three frames of 80 drawn and 13 given tokens): ours;
LlamaForCausalLM with a cache inside each frame, the whole prefix of every sample going in again for each frame
(`sampler_ratio`); and with its cache kept over all frames (`generate_ratio`). Then one whole iteration at 4 layers x 256 (prompt
1373, response 651, group 16, 2 prompts): sample, decode, reward, log-probabilities of the policy and of the reference, update
(`ratio`; `ratio_without_old` spares the plain pipeline the policy's, which ours records while sampling). Random weights; both
arms draw with the same noise and write the same tokens, and the updated weights are compared. Arms take turns: ours runs whole
before each frame of the others, and its mean counts. `floor_ratio` is the time of the unavoidable multiply-adds at this
machine's matrix product rate over ours. Last line: one JSON object.

    python scripts/bench/rlvr.py [--quick] [--only sampler|iteration] [--dtype float32] [--cache static|dynamic] [--frames 3]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import _rlvr_ours as ours
import _rlvr_plain as plain
import _rlvr_work as work_of
import torch
from _rlvr_work import Meter, Work

from worldsim import rewards
from worldsim.rl.groups import Prompts
from worldsim.world_models._token_layout import Layout
from worldsim.world_models._token_net import NetSpec

STAGES = ("sample", "decode", "reward", "old", "reference", "update")
"""``old``: log-probabilities of the policy that drew; ours records them while sampling."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, seconds: does everything run, do the arms agree")
    parser.add_argument("--only", choices=("sampler", "iteration"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of both arms' sampling")
    parser.add_argument("--cache", default="static", choices=("static", "dynamic"), help="the baseline's class of cache")
    parser.add_argument("--frames", type=int, default=3, help="predicted frames of the sampling part")
    parser.add_argument("--prompts", type=int, default=1, help="groups of the sampling part")
    parser.add_argument("--reward", default="mae+perceptual", help="of the iteration")
    return parser.parse_args()


def sampler_part(options: argparse.Namespace) -> dict[str, Any]:
    """Three ways to draw the same tokens."""
    if options.quick:
        layout = Layout(15, 6, 24, 1, 7, 3, 16, kind="released-multi")
        spec, size = NetSpec(layout.vocab, 2, 32, 64, 2), 4
    else:
        layout = Layout.released_multi()
        spec, size = NetSpec(layout.vocab), 16
    work = Work.make(layout, spec, size, options.frames, options.prompts, getattr(torch, options.dtype))
    net, meter = work.net(), Meter()
    llama = net.to_llama()
    arms = {
        "reprefill": plain.PlainSampler(llama, work, keep=False, cache=options.cache),
        "kept": plain.PlainSampler(llama, work, keep=True, cache=options.cache),
    }
    going = {name: arm.frames() for name, arm in arms.items()}
    for frame in range(options.frames):
        with meter.stage("ours"):
            tokens = ours.draw_all(net, work)
        for name, frames in going.items():
            with meter.stage(name):
                next(frames)
        print(f"frame {frame + 1} of {options.frames}: " + said(meter), file=sys.stderr, flush=True)
    for frames in going.values():
        next(frames, None)
    same = {name: same_share(tokens.flatten(0, 1), arm.tokens, work) for name, arm in arms.items()}
    meter.wall["ours"] /= options.frames
    meter.cpu["ours"] /= options.frames
    rate = work_of.machine_rates(work.dtype)
    macs, read = work_of.floor_macs(work)["sample"] / rate["macs"], work_of.floor_bytes(work) / rate["bytes"]
    print(f"{'sampling':<12}{'s':>10}{'cpu s':>10}{'tokens/s':>10}{'peak MB':>10}{'same tokens':>13}")
    for name in ("ours", *arms):
        line = f"{name:<12}{meter.wall[name]:>10.3f}{meter.cpu[name]:>10.3f}{work.sampled / meter.wall[name]:>10.1f}"
        print(line + f"{meter.grown.get(name, 0):>10.0f}{same.get(name, 1.0):>13.4f}")
    return {
        "sampler_ratio": round(meter.wall["reprefill"] / meter.wall["ours"], 2),
        "generate_ratio": round(meter.wall["kept"] / meter.wall["ours"], 2),
        "sampler_cpu_ratio": round(meter.cpu["reprefill"] / meter.cpu["ours"], 2),
        "generate_cpu_ratio": round(meter.cpu["kept"] / meter.cpu["ours"], 2),
        "sampler_floor_ratio": round(macs / meter.wall["ours"], 3),
        "sampler_memory_floor_ratio": round(read / meter.wall["ours"], 3),
        "sampler_seconds": rounded(meter.wall),
        "sampler_cpu_seconds": rounded(meter.cpu),
        "sampler_tokens_per_second": {name: round(work.sampled / s, 1) for name, s in meter.wall.items()},
        "sampler_peak_mb": rounded(meter.grown, 0),
        "sampler_same_tokens": rounded(same, 4),
        "sampler": f"{spec.layers} layers x {spec.width}, {options.dtype}, prompt {layout.prompt_length}, "
        f"{options.prompts} group(s) of {size}, {options.frames} frames of {layout.frame_tokens} drawn and "
        f"{layout.action_tokens} given tokens; baseline: LlamaForCausalLM, {options.cache} cache, sdpa, the same dtype",
    }


def iteration_part(options: argparse.Namespace) -> dict[str, Any]:
    """One iteration of ours, of the plain pipeline, and of ours again."""
    if options.quick:
        layout = Layout(15, 6, 96, 1, 2, 3, 16, kind="released-multi")
        spec, size, pixels = NetSpec(layout.vocab, 2, 32, 64, 2), 4, (16, 24, (8, 8))
    else:
        layout = Layout.released_multi()
        spec, size, pixels = NetSpec(layout.vocab, 4, 256, 1024, 4), 16, (64, 80, (8, 16))
    work = Work.make(layout, spec, size, layout.predicted, 2, torch.float32)
    tokenizer, judge = work_of.tokenizer_of(layout, *pixels), rewards.load(options.reward)
    prompts = scenes(work, *pixels[:2])
    mine, ends = Meter(), []
    for turn in range(2):
        net = work.net()
        spent, groups = ours.iteration(net, work.net().requires_grad_(False), work, tokenizer, judge, prompts)
        mine.add(spent, 0.5)
        print(f"ours, turn {turn + 1}: {said(spent)}", file=sys.stderr, flush=True)
        ends.append(net)
        if turn == 0:
            llama = work.net().to_llama().requires_grad_(True)
            theirs, written = plain.iteration(llama, work, tokenizer, judge, prompts, options.cache)
            print(f"plain: {said(theirs)}", file=sys.stderr, flush=True)
    mine.wall["old"], mine.cpu["old"] = 0.0, 0.0
    arms = {"ours": mine, "plain": theirs}
    seconds = {name: sum(meter.wall[stage] for stage in STAGES) for name, meter in arms.items()}
    cpu = {name: sum(meter.cpu[stage] for stage in STAGES) for name, meter in arms.items()}
    titles = ("ours s", "plain s", "ratio", "ours tok/s", "plain tok/s", "ours MB", "plain MB")
    print(f"{'iteration':<12}" + "".join(f"{title:>12}" for title in titles))
    for stage in STAGES:
        one, two = mine.wall[stage], theirs.wall[stage]
        fast = [work.sampled / spent if spent else 0 for spent in (one, two)]
        row = (two / one if one else 0, *fast, mine.grown.get(stage, 0), theirs.grown.get(stage, 0))
        print(f"{stage:<12}{one:>12.3f}{two:>12.3f}{row[0]:>12.2f}" + "".join(f"{value:>12.0f}" for value in row[1:]))
    distinct, count = groups.numbers["distinct"]
    macs = sum(work_of.floor_macs(work).values()) + work_of.decode_macs(tokenizer, work, distinct / count)
    return {
        "ratio": round(seconds["plain"] / seconds["ours"], 2),
        "ratio_without_old": round((seconds["plain"] - theirs.wall["old"]) / seconds["ours"], 2),
        "cpu_ratio": round(cpu["plain"] / cpu["ours"], 2),
        "floor_ratio": round(macs / work_of.machine_rates(torch.float32)["macs"] / seconds["ours"], 3),
        "seconds": {"ours": rounded(mine.wall), "plain": rounded(theirs.wall)},
        "cpu_seconds": {"ours": rounded(mine.cpu), "plain": rounded(theirs.cpu)},
        "tokens_per_second": {
            name: {stage: round(work.sampled / meter.wall[stage], 1) for stage in STAGES if meter.wall[stage]}
            for name, meter in arms.items()
        },
        "peak_mb": {"ours": rounded(mine.grown, 0), "plain": rounded(theirs.grown, 0)},
        "same_tokens": round(same_share(groups.responses.flatten(0, 1), written, work), 4),
        "update_gap": update_gap(ends[-1], llama, work),
        "update_difference": update_difference(ends[-1], llama, work),
        "iteration": f"{spec.layers} layers x {spec.width}, float32, prompt {layout.prompt_length}, response "
        f"{layout.response_length}, 2 prompts x {size}, reward {options.reward}, {pixels[0]}x{pixels[1]} pixels; plain: "
        f"{options.cache} cache, prompt copied, whole-sequence logits, decode and reward {plain.DECODED} samples at a time",
    }


def scenes(work: Work, height: int, width: int) -> Prompts:
    """The work's prompts with random true frames."""
    draw, count = torch.Generator().manual_seed(3), len(work.prompt)
    truth = torch.randint(256, (count, work.frames, height, width, 3), generator=draw, dtype=torch.uint8)
    where = [f"scene {number}" for number in range(count)]
    return Prompts(work.prompt, work.forced, work.context, work.given, truth, truth[:, 0], work.seeds, where)


def same_share(one: torch.Tensor, two: torch.Tensor, work: Work) -> float:
    """Share of samples whose drawn tokens are all the same in both arms (rounding can flip a draw, and all after it)."""
    stop = work.frames * work.layout.block - work.layout.action_tokens
    return float((one[:, :stop] == two[:, :stop]).all(1).float().mean())


def update_gap(net: Any, llama: Any, work: Work) -> float:
    """Largest distance of two updated weights, as a share of the largest step that ours made. Up to 2: Adam's first step goes by
    the sign of a gradient, and one that is nothing but rounding may point either way."""
    start, mine, theirs = (dict(model.state_dict()) for model in (work.net(), net, llama))
    step = max(float((mine[key] - start[key]).abs().max()) for key in start)
    gap = max(float((mine[key] - theirs[key]).abs().max()) for key in start)
    return round(gap / step, 4)


def update_difference(net: Any, llama: Any, work: Work) -> float:
    """Length of the difference of both arms' updates, all weights together, over the length of ours."""
    start, mine, theirs = (dict(model.state_dict()) for model in (work.net(), net, llama))
    apart = sum(float((mine[key] - theirs[key]).square().sum()) for key in start)
    return round((apart / sum(float((mine[key] - start[key]).square().sum()) for key in start)) ** 0.5, 4)


def rounded(values: dict[str, float], digits: int = 3) -> dict[str, float]:
    return {name: round(value, digits) for name, value in values.items()}


def said(meter: Meter) -> str:
    """Seconds so far, wall and processor."""
    return ", ".join(f"{name} {wall:.1f} s ({meter.cpu[name]:.1f} cpu)" for name, wall in meter.wall.items())


def main() -> int:
    options = arguments()
    found: dict[str, Any] = {}
    if options.only != "iteration":
        found |= sampler_part(options)
    if options.only != "sampler":
        found |= iteration_part(options)
    found["compared"] = (
        "sampling with LlamaForCausalLM that takes the whole prefix in again for each frame (sampler_ratio) or keeps its cache "
        "(generate_ratio); a whole iteration with the straightforward pipeline (ratio); floor_ratio: unavoidable multiply-adds"
    )
    found["machine"] = (
        f"CPU, {platform.platform()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"
    )
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
