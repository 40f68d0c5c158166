#!/usr/bin/env python3
"""Reference numbers of a decoder from `transformers`, for the Rust tests, and its score on the held-out text.

    python3 golden.py --model tiny-llama --text heldout.txt --out tiny-llama/golden.json

and likewise for tiny-qwen and tiny-moe; tiny-rwkv7 has golden_rwkv7.py.

The stored bfloat16 weights are widened to float32 and everything is computed in float32 on the CPU. For a short
prompt the file holds the byte ids, all logits of the last position, the largest logit's index at every position,
and the mean absolute value of the cached keys (after the rotary embedding) and values of each layer; for the text,
sums of negative log likelihood in nats: non-overlapping windows of 512 bytes, every byte of a window but its first
predicted, once for the first 4096 bytes and once for all whole windows. Of a mixture of experts it also
holds how often each expert of each layer is taken over all whole windows.
"""
import argparse
import json
import math
import os

import torch
import transformers
from transformers import AutoModelForCausalLM

PROMPT = "'''Carl Friedrich Gauss''' (Gauß) was a [[Germany|German]] mathematician who "


@torch.inference_mode()
def window_nll(model, data, window, batch=8):
    """Summed negative log likelihood in nats of each whole window."""
    rows = data[: len(data) // window * window].view(-1, window)
    sums = []
    for part in rows.split(batch):
        logits = model(part, use_cache=False).logits[:, :-1]
        nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), part[:, 1:], reduction="none")
        sums += nll.double().sum(1).tolist()
    return sums


@torch.inference_mode()
def strided_nll(model, data, window, stride, batch=8):
    """Summed nll when windows overlap, each scoring what the one before has not. Returns (nats, bytes scored)."""
    last = len(data) - window
    starts = list(range(0, last + 1, stride))
    nats, scored = 0.0, 0
    for i in range(0, len(starts), batch):
        part = torch.stack([data[s:s + window] for s in starts[i:i + batch]])
        logits = model(part, use_cache=False).logits[:, :-1]
        nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), part[:, 1:], reduction="none").double()
        for s, row in zip(starts[i:i + batch], nll):
            new = row if s == 0 else row[-stride:]
            nats, scored = nats + new.sum().item(), scored + len(new)
    return nats, scored


@torch.inference_mode()
def expert_counts(model, data, window, batch=8):
    """[layers][experts]: how many bytes of the whole windows take each expert."""
    rows = data[: len(data) // window * window].view(-1, window)
    c = model.config
    counts = torch.zeros(c.num_hidden_layers, c.num_experts, dtype=torch.int64)
    for part in rows.split(batch):
        for layer, logits in enumerate(model(part, use_cache=False, output_router_logits=True).router_logits):
            taken = logits.softmax(-1).topk(c.num_experts_per_tok, -1).indices
            counts[layer] += torch.bincount(taken.flatten(), minlength=c.num_experts)
    return counts.tolist()


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--model", default="tiny-llama")
    p.add_argument("--text", default="heldout.txt")
    p.add_argument("--out", default="tiny-llama/golden.json")
    p.add_argument("--window", type=int, default=512)
    a = p.parse_args()

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32).eval()
    ids = list(PROMPT.encode())
    with torch.inference_mode():
        r = model(torch.tensor([ids]), use_cache=True)
    z = r.logits[0]
    nll = torch.nn.functional.cross_entropy(z[:-1], torch.tensor(ids[1:]), reduction="sum").item()
    top = z[-1].topk(10)
    layers = r.past_key_values.layers
    with open(a.text, "rb") as f:
        text = torch.tensor(list(f.read()))
    windows = window_nll(model, text, a.window)
    head = windows[: 4096 // a.window]
    per_window = a.window - 1

    def score(nats, scored):
        return {"nll_sum": round(nats, 3), "bytes_scored": scored, "perplexity": round(math.exp(nats / scored), 5),
                "bits_per_byte": round(nats / scored / math.log(2), 5)}

    golden = {
        "model": os.path.basename(os.path.normpath(a.model)),
        "made_with": f"transformers {transformers.__version__}, torch {torch.__version__}, float32 on CPU",
        "prompt": PROMPT, "ids": ids, "nll_sum": round(nll, 5), "perplexity": round(math.exp(nll / (len(ids) - 1)), 5),
        "logits_mean": round(z.mean().item(), 6), "logits_std": round(z.std().item(), 6),
        "last_top10": [[i, round(v, 5)] for i, v in zip(top.indices.tolist(), top.values.tolist())],
        "last_logits": [round(v, 5) for v in z[-1].tolist()],
        "all_positions_argmax": z.argmax(-1).tolist(),
        "kv_shape": list(layers[0].keys.shape),
        "key_mean_abs": [round(x.keys.abs().mean().item(), 6) for x in layers],
        "value_mean_abs": [round(x.values.abs().mean().item(), 6) for x in layers],
        "heldout_4096": {"window": a.window, **score(sum(head), per_window * len(head)),
                         "nll_per_window": [round(v, 4) for v in head]},
        "heldout_all": {"window": a.window, **score(sum(windows), per_window * len(windows))},
        "heldout_all_stride_256": {"window": a.window, **score(*strided_nll(model, text, a.window, 256))},
    }
    if hasattr(model.config, "num_experts"):
        golden["expert_counts_heldout"] = expert_counts(model, text, a.window)
    with open(a.out + ".tmp", "w") as f:
        json.dump(golden, f, ensure_ascii=False)
        f.write("\n")
    os.replace(a.out + ".tmp", a.out)
    for k in ("heldout_4096", "heldout_all", "heldout_all_stride_256"):
        print(k, {x: y for x, y in golden[k].items() if x != "nll_per_window"})
    print(bytes(golden["all_positions_argmax"][-12:]))


if __name__ == "__main__":
    main()
