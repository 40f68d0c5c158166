#!/usr/bin/env python3
"""Reference numbers of tiny-rwkv7 from its recurrence in numpy, for the Rust tests, and its score on the held-out text.

    python3 golden_rwkv7.py --model tiny-rwkv7 --text heldout.txt --out tiny-rwkv7/golden.json

Nothing of train_rwkv7.py is used: the stored bfloat16 weights are widened to float64 and the network runs one byte at
a time, several windows side by side, each from an empty state. The file holds what golden.py writes, with the
state in the place of keys and values: the mean absolute value of each layer's matrices after the prompt, and of the
two vectors that the token shifts keep. `--check FILE` prints the largest difference to logits after the prompt, 256
float32 values. Needs numpy.
"""
import argparse
import json
import math
import os
import struct

import numpy as np

PROMPT = "'''Carl Friedrich Gauss''' (Gauß) was a [[Germany|German]] mathematician who "


def read_safetensors(path):
    """Every tensor of a file, in float64."""
    with open(path, "rb") as f:
        (size,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(size))
        data = f.read()
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        part = data[slice(*entry["data_offsets"])]
        if entry["dtype"] == "BF16":
            values = (np.frombuffer(part, np.uint16).astype(np.uint32) << 16).view(np.float32)
        elif entry["dtype"] == "F32":
            values = np.frombuffer(part, np.float32)
        else:
            raise SystemExit(f"{path}: {name} is {entry['dtype']}")
        tensors[name] = values.astype(np.float64).reshape(entry["shape"])
    return tensors


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def normalized(x, eps):
    """Mean 0 and variance 1 along the last axis."""
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)


class Rwkv7:
    """Several texts side by side: vectors are [texts, width], states [texts, heads, values, keys]."""

    def __init__(self, tensors, config, texts):
        self.tensors, self.config = tensors, config
        layers, width, size = config["num_hidden_layers"], config["hidden_size"], config["head_size"]
        self.heads = (texts, width // size, size)
        self.state = np.zeros((layers, *self.heads, size))
        self.shift = np.zeros((layers, 2, texts, width))  # the inputs of time mix and channel mix one byte ago

    def norm(self, x, name):
        weight, bias = self.tensors[name + ".weight"], self.tensors[name + ".bias"]
        return normalized(x, self.config["layer_norm_eps"]) * weight + bias

    def step(self, ids):
        """The logits of each text after one more byte each."""
        x = self.norm(self.tensors["emb.weight"][ids], "blocks.0.ln0")
        v_first = None
        for layer in range(self.config["num_hidden_layers"]):
            y, v_first = self.time_mix(layer, self.norm(x, f"blocks.{layer}.ln1"), v_first)
            x = x + y
            x = x + self.channel_mix(layer, self.norm(x, f"blocks.{layer}.ln2"))
        return self.norm(x, "ln_out") @ self.tensors["head.weight"].T

    def time_mix(self, layer, x, v_first):
        def at(name):
            return self.tensors[f"blocks.{layer}.att.{name}"]

        before, self.shift[layer, 0] = self.shift[layer, 0].copy(), x
        xr, xw, xk, xv, xa, xg = (x + (before - x) * mix for mix in at("x_rwkvag").reshape(6, -1))
        r = xr @ at("receptance.weight").T
        k = xk @ at("key.weight").T
        v = xv @ at("value.weight").T
        w = at("w0").ravel() + np.tanh(xw @ at("w1").T) @ at("w2").T
        w = -np.log1p(np.exp(-w)) - 0.5                       # -softplus(-w) - 0.5
        decay = np.exp(-np.exp(w)).reshape(self.heads)
        a = sigmoid(at("a0").ravel() + xa @ at("a1").T @ at("a2").T)
        g = sigmoid(xg @ at("g1").T) @ at("g2").T
        if layer == 0:
            v_first = v
        else:
            v = v + (v_first - v) * sigmoid(at("v0").ravel() + xv @ at("v1").T @ at("v2").T)
        kk = (k * at("k_k").ravel()).reshape(self.heads)
        kk = kk / np.maximum(np.sqrt((kk * kk).sum(-1, keepdims=True)), 1e-12)
        k = k * (1.0 + (a - 1.0) * at("k_a").ravel())
        r, k, v, a = (z.reshape(self.heads) for z in (r, k, v, a))

        state = self.state[layer]
        removed = np.einsum("thvk,thk->thv", state, -kk)
        state *= decay[:, :, None, :]
        state += removed[..., None] * (kk * a)[:, :, None, :]
        state += v[..., None] * k[:, :, None, :]
        y = np.einsum("thvk,thk->thv", state, r)

        y = normalized(y, self.config["group_norm_eps"]).reshape(x.shape) * at("ln_x.weight") + at("ln_x.bias")
        y = y + ((r * k * at("r_k")).sum(-1, keepdims=True) * v).reshape(x.shape)
        return (y * g) @ at("output.weight").T, v_first.reshape(x.shape)

    def channel_mix(self, layer, x):
        def at(name):
            return self.tensors[f"blocks.{layer}.ffn.{name}"]

        before, self.shift[layer, 1] = self.shift[layer, 1].copy(), x
        k = (x + (before - x) * at("x_k").ravel()) @ at("key.weight").T
        return np.maximum(k, 0.0) ** 2 @ at("value.weight").T


def log_likelihoods(logits, ids):
    top = logits.max(-1, keepdims=True)
    z = logits - top
    return np.take_along_axis(z, ids[:, None], -1)[:, 0] - np.log(np.exp(z).sum(-1))


def window_nll(tensors, config, rows):
    """Negative log likelihood in nats of each byte but the first of each row, [rows, bytes - 1]."""
    model = Rwkv7(tensors, config, len(rows))
    return np.stack([-log_likelihoods(model.step(rows[:, t]), rows[:, t + 1]) for t in range(rows.shape[1] - 1)], 1)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--model", default="tiny-rwkv7")
    p.add_argument("--text", default="heldout.txt")
    p.add_argument("--out", default="tiny-rwkv7/golden.json")
    p.add_argument("--window", type=int, default=512)
    p.add_argument("--prompt", default=PROMPT)
    p.add_argument("--check", help="expected logits after the prompt, float32; nothing is written then")
    a = p.parse_args()

    tensors = read_safetensors(os.path.join(a.model, "model.safetensors"))
    with open(os.path.join(a.model, "config.json")) as f:
        config = json.load(f)
    ids = np.array(list(a.prompt.encode()))
    model = Rwkv7(tensors, config, 1)
    z = np.concatenate([model.step(ids[t:t + 1]) for t in range(len(ids))])
    if a.check:
        print("largest difference", np.abs(z[-1] - np.fromfile(a.check, np.float32)).max())
        return
    nll = -log_likelihoods(z[:-1], ids[1:]).sum()
    top = np.argsort(-z[-1], kind="stable")[:10]

    with open(a.text, "rb") as f:
        text = np.frombuffer(f.read(), np.uint8).astype(np.int64)
    half = a.window // 2
    starts = np.arange(0, len(text) - a.window + 1, half)
    overlapping = window_nll(tensors, config, text[starts[:, None] + np.arange(a.window)])
    windows = overlapping[::2]
    head = windows[: 4096 // a.window].sum(1)

    def score(nats, scored):
        return {"nll_sum": round(nats, 3), "bytes_scored": scored, "perplexity": round(math.exp(nats / scored), 5),
                "bits_per_byte": round(nats / scored / math.log(2), 5)}

    golden = {
        "model": os.path.basename(os.path.normpath(a.model)),
        "made_with": f"golden_rwkv7.py, the recurrence in numpy {np.__version__}, float64",
        "prompt": a.prompt, "ids": ids.tolist(), "nll_sum": round(nll, 5),
        "perplexity": round(math.exp(nll / (len(ids) - 1)), 5),
        "logits_mean": round(z.mean(), 6), "logits_std": round(z.std(), 6),
        "last_top10": [[int(i), round(z[-1, i], 5)] for i in top],
        "last_logits": [round(v, 5) for v in z[-1].tolist()],
        "all_positions_argmax": z.argmax(-1).tolist(),
        "state_shape": list(model.state[0].shape),
        "state_mean_abs": [round(x, 6) for x in np.abs(model.state).mean((1, 2, 3, 4)).tolist()],
        "shift_mean_abs": [[round(y, 6) for y in x] for x in np.abs(model.shift).mean((2, 3)).tolist()],
        "heldout_4096": {"window": a.window, **score(head.sum(), head.size * (a.window - 1)),
                         "nll_per_window": [round(v, 4) for v in head.tolist()]},
        "heldout_all": {"window": a.window, **score(windows.sum(), windows.size)},
        "heldout_all_stride_256": {
            "window": a.window,
            **score(overlapping[0].sum() + overlapping[1:, -half:].sum(),
                    a.window - 1 + half * (len(overlapping) - 1))},
    }
    with open(a.out + ".tmp", "w") as f:
        json.dump(golden, f, ensure_ascii=False)
        f.write("\n")
    os.replace(a.out + ".tmp", a.out)
    for k in ("heldout_4096", "heldout_all", "heldout_all_stride_256"):
        print(k, {x: y for x, y in golden[k].items() if x != "nll_per_window"})
    print(bytes(golden["all_positions_argmax"][-12:]))


if __name__ == "__main__":
    main()
