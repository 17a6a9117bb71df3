"""``worldsim eval``: scores that anyone can recompute."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from worldsim.cli.shared import command


def add(app: typer.Typer) -> None:
    group = typer.Typer(help="Score world models and policies.", no_args_is_help=True, rich_markup_mode=None)
    app.add_typer(group, name="eval")
    _worlds(group)
    _policies(group)
    _arms(group)


def _worlds(group: typer.Typer) -> None:
    """What world models and tokenizers are judged by."""

    @command(group, "video", job="eval-video")
    def video(
        data: Annotated[str | None, typer.Argument(metavar="DATA", help="Dataset folder, any format.")] = None,
        model: Annotated[str | None, typer.Option(metavar="RUN", help="Run folder of a world model.")] = None,
        baseline: Annotated[str | None, typer.Option(metavar="RUN", help="Another model to show as a row.")] = None,
        predictions: Annotated[str | None, typer.Option(metavar="DIR", help="Frames that infer has written.")] = None,
        episodes: Annotated[str | None, typer.Option(metavar="SPEC", help="held-out, all, 0:16 or ids a,b.")] = None,
        frames: Annotated[int | None, typer.Option(metavar="N", help="Frames to imagine after the given one.")] = None,
    ) -> dict[str, Any]:
        """Score imagined videos against the truth and honest reference rows; writes a report page."""
        return {
            "data": data,
            "model": model,
            "baseline": baseline,
            "predictions": predictions,
            "episodes": episodes,
            "frames": frames,
        }

    @command(group, "tokens", job="eval-tokens")
    def tokens(
        data: Annotated[str | None, typer.Argument(metavar="DATA", help="Dataset folder, any format.")] = None,
        tokenizer: Annotated[
            str | None, typer.Option(metavar="RUN", help="What tokenize-world --tokenizer kmeans made.")
        ] = None,
        camera: Annotated[str | None, typer.Option(metavar="C", help="Camera; the codebook's when not given.")] = None,
        columns: Annotated[str | None, typer.Option(metavar="DIR", help="Where columns go when DATA is read-only.")] = None,
    ) -> dict[str, Any]:
        """What world tokens say by themselves: vocabulary, entropy, copy and bigram baselines, a picture of each code."""
        given = {"data": data, "tokenizer": tokenizer, "columns": columns}
        return {**given, "camera": camera and camera.replace(",", "+")}


def _policies(group: typer.Typer) -> None:
    """Closed loop."""

    @command(group, "policy", job="eval-policy")
    def policy(
        data: Annotated[str | None, typer.Argument(metavar="DATA", help="For dreams: the dataset they begin in.")] = None,
        env: Annotated[str | None, typer.Option(metavar="NAME", help="pusht, metaworld:TASK or dream.")] = None,
        policy: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="RUN, scripted:NAME, … (repeat).")] = None,
        world: Annotated[str | None, typer.Option(metavar="RUN", help="For dreams: run folder of a world model.")] = None,
        truth: Annotated[str | None, typer.Option(metavar="RESULTS", help="Another run of it to agree with.")] = None,
    ) -> dict[str, Any]:
        """Let policies act, count successes with intervals, compare them on the same seeds; writes a report page."""
        return {
            "dream.data": data,
            "env.name": env,
            "policy": policy or None,
            "dream.world": world,
            "truth": truth,
        }


def _arms(group: typer.Typer) -> None:
    """World-modality policies on recordings."""

    @command(group, "offline", job="eval-offline")
    def offline(
        data: Annotated[str | None, typer.Argument(metavar="DATA", help="Dataset folder, any format.")] = None,
        model: Annotated[list[str] | None, typer.Option(metavar="RUN", help="A trained arm (repeat).")] = None,
        all_arms: Annotated[bool | None, typer.Option("--all-arms", help="Every arm and seed left in --runs.")] = None,
        seeds: Annotated[
            int | None, typer.Option(metavar="N", help="With --all-arms: seeds that every arm must have.")
        ] = None,
        runs: Annotated[
            str | None, typer.Option(metavar="DIR", help="What train --config world_modality_all left.")
        ] = None,
        episodes: Annotated[str | None, typer.Option(metavar="SPEC", help="held-out, 0:16 or ids a,b.")] = None,
    ) -> dict[str, Any]:
        """Compare world-modality policies on held-out episodes: action error, world tokens, a report. Trains nothing."""
        given = {"data": data, "model": model or None, "seeds": seeds, "runs": runs, "episodes": episodes}
        return {**given, "all_arms": all_arms}

    @command(group, "intervene", job="eval-intervene")
    def intervene(
        data: Annotated[str | None, typer.Argument(metavar="DATA", help="Dataset folder, any format.")] = None,
        model: Annotated[list[str] | None, typer.Option(metavar="RUN", help="A trained arm (repeat).")] = None,
        episodes: Annotated[str | None, typer.Option(metavar="SPEC", help="held-out, 0:16 or ids a,b.")] = None,
    ) -> dict[str, Any]:
        """Put wrong world tokens into a policy: does its action error grow? Ratios with intervals, and what they mean."""
        return {"data": data, "model": model or None, "episodes": episodes}
