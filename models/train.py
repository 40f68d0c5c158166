#!/usr/bin/env python3
"""Train the small byte-level Llama that leanbits ships, on enwik8, on one GPU.

    python3 train.py --data enwik8.gz --out tiny-llama --minutes 9

The result is a Hugging Face folder (config.json, generation_config.json, model.safetensors in bfloat16) that
`transformers` loads as a LlamaForCausalLM. The text, its split and the loop are in common.py, the network in
decoder.py.

The learning rate follows a cosine over the time budget (--minutes), or over a step count (--steps): use
the step count that train-log.json records to repeat a run on a machine of another speed.

Needs torch and safetensors. `--minutes 0.3 --batch 4 --device cpu --no-compile` tries it without a GPU.
"""
import time

import torch

from common import arguments, fit, read_enwik8
from decoder import CausalLM

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
    "bos_token_id": None,
    "eos_token_id": None,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}


def main():
    start = time.perf_counter()
    a = arguments(__doc__.splitlines()[0], "tiny-llama").parse_args()
    torch.manual_seed(a.seed)
    data = read_enwik8(a.data).to(a.device)
    fit(CausalLM(CONFIG).to(a.device), CONFIG, data, a, start)


if __name__ == "__main__":
    main()
