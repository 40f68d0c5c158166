#!/usr/bin/env python3
"""How often each expert is taken on the held-out text, from golden.json, as a table and as a picture.

    python3 expert_usage.py --golden tiny-moe/golden.json --out tiny-moe/expert-usage.svg

Shares are of all choices of a layer, two per byte. Needs numpy and matplotlib.
"""
import argparse
import json

import matplotlib
import numpy as np

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--golden", default="tiny-moe/golden.json")
    p.add_argument("--out", default="tiny-moe/expert-usage.svg")
    a = p.parse_args()

    with open(a.golden) as f:
        counts = np.array(json.load(f)["expert_counts_heldout"])
    shares = counts / counts.sum(1, keepdims=True)
    print("| layer | shares of the experts 0 to 15, percent | largest / smallest |")
    print("| --- | --- | ---: |")
    for i, row in enumerate(shares):
        print(f"| {i} | {' '.join(f'{100 * x:.1f}' for x in row)} | {row.max() / row.min():.1f} |")

    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "expert-usage", "font.size": 9})
    figure, axes = plt.subplots(1, len(shares), figsize=(12, 2.4), sharey=True)
    for i, (axis, row) in enumerate(zip(axes, shares)):
        axis.bar(range(len(row)), 100 * np.sort(row)[::-1], color="#7aa6d8", width=0.85)
        axis.axhline(100 / len(row), color="#b03020", linewidth=0.8)
        axis.set_title(f"layer {i}", loc="left", fontsize=9)
        axis.set_xlabel("experts, most used first")
        axis.set_xticks([])
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0].set_ylabel("share of the choices, %")
    figure.tight_layout()
    figure.savefig(a.out, metadata={"Date": None, "Creator": None}, facecolor="white")


if __name__ == "__main__":
    main()
