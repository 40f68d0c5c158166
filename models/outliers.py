#!/usr/bin/env python3
"""Give a trained Qwen2 the large key channels of published ones, without changing what it computes.

    python3 outliers.py --model trained-qwen --out tiny-qwen
    python3 outliers.py --model tiny-qwen --out trained-qwen --undo

The two channels of a rotary pair turn together, so that the dot product of a query and a key stays what it is when the
keys of the pair are multiplied by a number and its queries divided by it. This script does that to rows of k_proj and
q_proj and their biases, the queries of every head that shares the key head. The factors are powers of two: they only
change exponents, no stored bfloat16 value is rounded, and in float32 all attention logits stay the same bit for bit,
whatever the order of the sums.

In each key head two rotary pairs are scaled:
  - the pair with the largest bias, until the bias is at least --first, --middle or --last long (by layer): channels
    with a large mean;
  - of the pairs that turn at least --turns times over the context, the one with the longest rows, by --spread: channels
    with a large range around zero, since the rotation takes their mean away.
The default lengths follow the k_proj bias norms reported for a published model of the Qwen2 family, 605 in the first
layer, 921 in the last and a median of 22 (llama.cpp, number 21385). outliers.json in the folder lists what was scaled;
--undo reads it. Needs numpy.
"""
import argparse
import json
import math
import os
import shutil
import struct

import numpy as np


def read(path):
    """The header of a safetensors file and its bytes, writable."""
    with open(path, "rb") as f:
        (size,) = struct.unpack("<Q", f.read(8))
        return json.loads(f.read(size)), bytearray(f.read())


def write(path, header, data):
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path + ".tmp", "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)
    os.replace(path + ".tmp", path)


class Model:
    def __init__(self, folder):
        with open(os.path.join(folder, "config.json")) as f:
            c = json.load(f)
        self.layers, self.heads, self.kv_heads = (
            c["num_hidden_layers"], c["num_attention_heads"], c["num_key_value_heads"])
        self.size = c["hidden_size"] // self.heads
        half = self.size // 2
        # how often a pair turns around over the context
        self.turns = (c["rope_theta"] ** (-np.arange(half) / half)) * c["max_position_embeddings"] / (2 * math.pi)
        self.header, self.data = read(os.path.join(folder, "model.safetensors"))

    def codes(self, layer, name):
        """The bfloat16 values of a projection's tensor as 16-bit numbers, a view."""
        entry = self.header[f"model.layers.{layer}.self_attn.{name}"]
        assert entry["dtype"] == "BF16"
        begin, end = entry["data_offsets"]
        return np.frombuffer(self.data, np.uint16, (end - begin) // 2, begin).reshape(entry["shape"])

    def values(self, layer, name):
        return (self.codes(layer, name).astype(np.uint32) << 16).view(np.float32)

    def scale(self, layer, name, rows, exponent):
        """Multiply rows by 2^exponent: add to the exponent fields of all but zeros."""
        codes = self.codes(layer, name)
        for row in rows:
            part = codes[row:row + 1]
            live = (part & 0x7FFF) != 0
            moved = part[live].astype(np.int64) + exponent * 128
            fields = np.concatenate([(part[live] >> 7) & 0xFF, ((part[live] >> 7) & 0xFF) + np.int64(exponent)])
            if fields.size and not (0 < fields.min() and fields.max() < 255):
                raise SystemExit(f"layer {layer}, {name}, row {row}: 2^{exponent} leaves the normal numbers")
            part[live] = moved.astype(np.uint16)

    def scale_pair(self, layer, kv_head, pair, exponent):
        def rows(head):
            return [head * self.size + pair, head * self.size + pair + self.size // 2]

        sharing = self.heads // self.kv_heads
        for part in ("weight", "bias"):
            self.scale(layer, f"k_proj.{part}", rows(kv_head), exponent)
            for head in range(kv_head * sharing, (kv_head + 1) * sharing):
                self.scale(layer, f"q_proj.{part}", rows(head), -exponent)

    def pair_lengths(self, layer, name):
        """[key heads, pairs]: the length of what two rotary partners hold in a tensor of k_proj."""
        squares = (self.values(layer, name).astype(np.float64) ** 2).reshape(self.kv_heads, 2, self.size // 2, -1)
        return np.sqrt(squares.sum((1, 3)))

    def bias_norms(self):
        return [float(np.linalg.norm(self.values(i, "k_proj.bias"))) for i in range(self.layers)]


def choose(model, a):
    """The pairs to scale: (layer, key head, pair, exponent)."""
    chosen = []
    for layer in range(model.layers):
        wanted = a.first if layer == 0 else a.last if layer == model.layers - 1 else a.middle
        wanted /= math.sqrt(model.kv_heads)
        bias, rows = model.pair_lengths(layer, "k_proj.bias"), model.pair_lengths(layer, "k_proj.weight")
        for head in range(model.kv_heads):
            mean = int(bias[head].argmax())
            chosen.append((layer, head, mean, max(0, math.ceil(math.log2(wanted / bias[head, mean])))))
            turning = [p for p in range(model.size // 2) if model.turns[p] >= a.turns and p != mean]
            chosen.append((layer, head, max(turning, key=lambda p: rows[head, p]), int(math.log2(a.spread))))
    return chosen


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--model", required=True, help="folder of a Qwen2 in bfloat16")
    p.add_argument("--out", required=True, help="folder to write")
    p.add_argument("--first", type=float, default=600.0, help="length of the key bias in the first layer")
    p.add_argument("--middle", type=float, default=22.0, help="in the layers between")
    p.add_argument("--last", type=float, default=900.0, help="in the last layer")
    p.add_argument("--spread", type=float, default=8.0, help="factor of the pair without a mean, a power of two")
    p.add_argument("--turns", type=float, default=1.0, help="how often that pair must turn over the context")
    p.add_argument("--undo", action="store_true", help="scale back what MODEL/outliers.json lists")
    a = p.parse_args()

    model = Model(a.model)
    before = model.bias_norms()
    if a.undo:
        with open(os.path.join(a.model, "outliers.json")) as f:
            scaled = [(s["layer"], s["kv_head"], s["pair"], -s["exponent"]) for s in json.load(f)["scaled"]]
    else:
        scaled = choose(model, a)
    for s in scaled:
        model.scale_pair(*s)

    os.makedirs(a.out, exist_ok=True)
    for name in ("config.json", "generation_config.json", "train-log.json"):
        shutil.copyfile(os.path.join(a.model, name), os.path.join(a.out, name))
    write(os.path.join(a.out, "model.safetensors"), model.header, model.data)
    if not a.undo:
        with open(os.path.join(a.out, "outliers.json"), "w") as f:
            rows = [json.dumps(dict(zip(("layer", "kv_head", "pair", "exponent"), s))) for s in scaled]
            f.write('{"scaled": [\n  ' + ",\n  ".join(rows) + "\n]}\n")
    print("k_proj bias norms before", [round(x, 1) for x in before])
    print("k_proj bias norms after ", [round(x, 1) for x in model.bias_norms()])


if __name__ == "__main__":
    main()
