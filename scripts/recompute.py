"""Recompute every score of an `eval video` run from its pictures alone, without this package, and compare.

    python scripts/recompute.py runs/eval-video/default

Reads ``frames/*.npz``, ``baseline/frames/*.npz`` and ``control/frames/*.npz``, and writes each formula out once more with numpy
and SciPy (the optical flow is OpenCV's). Prints the largest difference per row and metric to ``scores.json``, and ends with 1 when
one is not rounding. Scores of networks and filter banks (lpips, fvd, perceptual) are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter, maximum_filter
from scipy.stats import binomtest

ROUNDING = 1e-5


def mse(p, q, given):
    return ((p / 255.0 - q / 255.0) ** 2).mean(axis=(1, 2, 3))


def db(error):
    """Squared error of pixels in 0 … 1 -> dB, at most 100."""
    return -10 * np.log10(np.maximum(error, 1e-10))


def psnr(p, q, given):
    return db(mse(p, q, given))


def moved(frames, given):
    """Any channel more than 10/255 away from the given frame, and its 5 x 5 neighbourhood: bool ``[n, H, W]``."""
    away = np.abs(frames.astype(int) - given.astype(int)).max(axis=-1) > 10
    return maximum_filter(away, size=(1, 5, 5), mode="constant")


def over(mask, p, q):
    """PSNR of each frame over its own mask; NaN without one."""
    error = ((p / 255.0 - q / 255.0) ** 2).mean(axis=-1)
    return np.array([db(e[m].mean()) if m.any() else np.nan for e, m in zip(error, mask)])


def motion_psnr(p, q, given):
    return over(moved(p, given) | moved(q, given), p, q)


def motion_mse(p, q, given):
    error, mask = ((p / 255.0 - q / 255.0) ** 2).mean(axis=-1), moved(p, given) | moved(q, given)
    return np.array([e[m].mean() if m.any() else np.nan for e, m in zip(error, mask)])


def truth_motion_psnr(p, q, given):
    return over(moved(q, given), p, q)


def ssim(p, q, given):
    def blur(x):  # 11 x 11 Gaussian over each channel
        return gaussian_filter(x, (0, 1.5, 1.5, 0), truncate=3.5)

    x, y, c1, c2 = p.astype(float), q.astype(float), (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mx, my = blur(x), blur(y)
    vx, vy, vxy = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    score = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return score[:, 5:-5, 5:-5].mean(axis=(1, 2, 3))


def flow_error(p, q, given):
    factor = max(1.0, min(given.shape[:2]) / 128)

    def grey(frame):
        g = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        size = (round(g.shape[1] / factor), round(g.shape[0] / factor))
        return cv2.resize(g, size, interpolation=cv2.INTER_AREA) if factor > 1 else g

    def flow(frame):
        a, b = grey(given), grey(frame)
        zero = np.zeros((*a.shape, 2), np.float32)
        return zero if (a == b).all() else cv2.calcOpticalFlowFarneback(a, b, zero, 0.5, 3, 15, 3, 5, 1.2, 0)

    return np.array([np.linalg.norm(flow(a) - flow(b), axis=-1).mean() * factor for a, b in zip(p, q)])


def mae(p, q, given):
    return np.abs(p / 255.0 - q / 255.0).mean(axis=(1, 2, 3))


METRICS = {f.__name__: f for f in (psnr, ssim, mse, mae, motion_mse, motion_psnr, truth_motion_psnr, flow_error)}
LOWER = ("mse", "mae", "motion_mse", "flow_error")


def samples(file) -> np.ndarray:
    return file["samples"] if "samples" in file else file["pred"][None]


def futures(file, others) -> dict[str, list[np.ndarray]]:
    """Row -> candidate futures ``[n, H, W, 3]`` of one episode; the given frame is never among them."""
    truth = file["truth"]
    rows = {"model": samples(file), **{row: samples(other) for row, other in others.items()}}
    if len(rows["model"]) > 1:
        rows["best_of_n"] = rows["model"]
    rows["copy_last"] = np.repeat(truth[None, :1], len(truth), axis=1)
    rows["shifted"] = np.concatenate([truth[:1], truth[:-1]])[None]
    for row, key in (("ceiling", "reconstruction"), ("permuted", "permuted")):
        if key in file:
            rows[row] = file[key][None] if key == "reconstruction" else file[key]
    return {row: [one[1:] for one in some] for row, some in rows.items()}


def compare(run: Path) -> dict[str, float]:
    """``row/metric`` and the gap -> largest absolute difference to ``scores.json``."""
    told = json.loads((run / "scores.json").read_text(encoding="utf8"))
    own: dict[str, list[np.ndarray]] = {}
    paths = {str(read(path)["episode"]): path for path in (run / "frames").glob("*.npz")}
    for episode in told["episodes"]:
        data, name = read(paths[episode]), paths[episode].name
        others = {row: read(path) for row in ("baseline", "control") if (path := run / row / "frames" / name).exists()}
        truth, given = data["truth"][1:], data["truth"][0]
        for row, some in futures(data, others).items():
            for name in METRICS.keys() & told["per_episode"].get(row, {}).keys():
                values = np.stack([METRICS[name](future, truth, given) for future in some])
                kept = mean_where_defined(values) if row != "best_of_n" else best(values, name)
                own.setdefault(f"{row}/{name}", []).append(kept)
    out = {}
    for key, episodes in sorted(own.items()):
        row, name = key.split("/")
        out[key] = worst(np.stack(episodes), np.array(told["per_episode"][row][name], float))
    return out | gap(own, told.get("permutation"))


def read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def mean_where_defined(values: np.ndarray) -> np.ndarray:
    """``[N, n]`` -> ``[n]``: samples or permutations averaged, without those that have no value."""
    defined = ~np.isnan(values)
    mean = np.where(defined, values, 0).sum(0) / np.maximum(defined.sum(0), 1)
    return np.where(defined.any(0), mean, np.nan)


def best(values: np.ndarray, name: str) -> np.ndarray:
    """``[N, n]`` -> the ``[n]`` of the sample with the best mean over frames that have a value."""
    means = [np.nan if np.isnan(one).all() else np.nanmean(one) for one in values]
    worst_of_all = np.inf if name in LOWER else -np.inf
    means = [worst_of_all if np.isnan(m) else m for m in means]
    return values[int(np.argmin(means) if name in LOWER else np.argmax(means))]


def gap(own, told) -> dict[str, float]:
    """Own minus other episode's actions: the mean of the episodes' means, and the one-sided sign test."""
    if not told or f"permuted/{told['metric']}" not in own:
        return {}
    mine, other = (np.stack(own[f"{row}/{told['metric']}"]) for row in ("model", "permuted"))
    sign = -1 if told["metric"] in LOWER else 1
    gaps = sign * np.array([np.nanmean(a) - np.nanmean(b) for a, b in zip(mine, other) if not np.isnan(a).all()])
    wins, losses = int((gaps > 0).sum()), int((gaps < 0).sum())
    p = binomtest(wins, wins + losses, 0.5, alternative="greater").pvalue if wins + losses else 1.0
    return {"permutation gap": abs(gaps.mean() - told["gap"]), "sign test": abs(p - told["p"])}


def worst(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference; infinite where only one side has a value or the shapes differ."""
    if a.shape != b.shape or (np.isnan(a) != np.isnan(b)).any():
        return float("inf")
    return float(np.nanmax(np.abs(a - b), initial=0.0))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="out folder of eval video")
    found = compare(parser.parse_args(argv).run)
    for key, difference in found.items():
        print(f"{key:<32} {difference:.1e}{'' if difference <= ROUNDING else '   DIFFERS'}")
    wrong = [key for key, difference in found.items() if not difference <= ROUNDING]
    print(f"{len(found)} numbers recomputed, {len(wrong)} differ from scores.json")
    return 1 if wrong or not found else 0


if __name__ == "__main__":
    sys.exit(main())
