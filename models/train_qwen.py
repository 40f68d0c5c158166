#!/usr/bin/env python3
"""Train the small byte-level Qwen2 that leanbits ships, on enwik8, on one GPU.

    python3 train_qwen.py --data enwik8.gz --out trained-qwen --minutes 9
    python3 outliers.py --model trained-qwen --out tiny-qwen

Qwen2 is a Llama with biases on its query, key and value projections. The biases of the keys start large here,
N(0, KEY_BIAS²), on the half of the rotary pairs that turn least over the context (pair 16 turns by half a radian, pair
31 by a thousandth), and at zero elsewhere. A bias that does not turn adds the same number to all logits of a
query, which the softmax drops, so that training has little reason to remove it: the trained keys keep means that are
large beside their spread, as published Qwen2 models have them. outliers.py then makes them as large as published ones
without changing what the network computes.

The text, its split and the loop are in common.py, the network in decoder.py; options are those of train.py.
"""
import time

import torch
import torch.nn as nn

from common import arguments, fit, read_enwik8
from decoder import CausalLM

KEY_BIAS = 4.0

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 256,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "use_sliding_window": False,
    "sliding_window": None,
    "max_window_layers": 6,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
    "bos_token_id": None,
    "eos_token_id": None,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}


def start_key_biases(model):
    for layer in model.model.layers:
        bias = layer.self_attn.k_proj.bias.data.view(layer.self_attn.kv_heads, 2, -1)  # (head, half, pair)
        nn.init.normal_(bias[:, :, bias.shape[2] // 2:], std=KEY_BIAS)


def main():
    start = time.perf_counter()
    a = arguments(__doc__.splitlines()[0], "trained-qwen").parse_args()
    torch.manual_seed(a.seed)
    data = read_enwik8(a.data).to(a.device)
    model = CausalLM(CONFIG, bias=True)
    start_key_biases(model)
    fit(model.to(a.device), CONFIG, data, a, start)


if __name__ == "__main__":
    main()
