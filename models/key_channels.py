#!/usr/bin/env python3
"""What each key channel of a Qwen2 ranges over, before and after outliers.py, as a table and as a picture.

    python3 key_channels.py --before trained-qwen --after tiny-qwen --text heldout.txt --out tiny-qwen/key-channels.svg

Keys are taken as they lie in the cache, after the rotary embedding, over the first windows of the text. The picture
shows mean and range (minimum to maximum) of each channel of two layers; channels 0 to 63 are those of the first key
head, those of the next follow. Needs transformers and matplotlib.
"""
import argparse
import io
import re

import matplotlib
import torch
from transformers import AutoModelForCausalLM

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402


@torch.inference_mode()
def key_channels(folder, rows):
    """Per layer the cached keys of all rows, [bytes, channels]."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    layers = model(rows, use_cache=True).past_key_values.layers
    return [layer.keys.permute(0, 2, 1, 3).flatten(2).flatten(0, 1) for layer in layers]


def table(name, layers):
    print(f"| layer, {name} | largest mean | largest range | median range | ratio |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for i, keys in enumerate(layers):
        spans = keys.amax(0) - keys.amin(0)
        largest, median = spans.max().item(), spans.median().item()
        mean = keys.mean(0).abs().max().item()
        print(f"| {i} | {mean:.1f} | {largest:.1f} | {median:.1f} | {largest / median:.1f} |")


def draw(before, after, shown, out):
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "key-channels", "font.size": 9})
    figure, axes = plt.subplots(len(shown), 2, figsize=(10, 2.6 * len(shown)), squeeze=False)
    for row, layer in zip(axes, shown):
        for axis, keys, name in zip(row, (before[layer], after[layer]), ("as trained", "rescaled")):
            channels = range(keys.shape[1])
            axis.fill_between(channels, keys.amin(0), keys.amax(0), color="#9cc0e6", linewidth=0.0)
            axis.plot(channels, keys.mean(0), color="#b03020", linewidth=0.8)
            axis.set_title(f"layer {layer}, {name}", loc="left", fontsize=9)
            axis.margins(x=0.01)
            axis.axhline(0.0, color="#888888", linewidth=0.5, zorder=0)
            for side in ("top", "right"):
                axis.spines[side].set_visible(False)
        row[0].set_ylabel("key")
    for axis in axes[-1]:
        axis.set_xlabel("channel (band: minimum to maximum, line: mean)")
    figure.tight_layout()
    svg = io.StringIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")
    with open(out, "w") as f:
        f.write(re.sub(r"(\d\.\d)\d+", r"\1", svg.getvalue()))  # a tenth of a point is enough


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--before", default="trained-qwen")
    p.add_argument("--after", default="tiny-qwen")
    p.add_argument("--text", default="heldout.txt")
    p.add_argument("--window", type=int, default=512)
    p.add_argument("--windows", type=int, default=8)
    p.add_argument("--layers", type=int, nargs="+", default=[0, 3], help="the layers of the picture")
    p.add_argument("--out", default="tiny-qwen/key-channels.svg")
    a = p.parse_args()

    with open(a.text, "rb") as f:
        text = torch.tensor(list(f.read(a.window * a.windows)))
    before, after = (key_channels(folder, text.view(a.windows, a.window)) for folder in (a.before, a.after))
    table("as trained", before)
    print()
    table("rescaled", after)
    draw(before, after, a.layers, a.out)


if __name__ == "__main__":
    main()
