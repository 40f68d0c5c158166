#!/usr/bin/env python3
"""Train the small byte-level mixture of experts that leanbits ships, on enwik8, on one GPU.

    python3 train_moe.py --data enwik8.gz --out tiny-moe --minutes 9

The layout is Qwen2-MoE's, and `transformers` loads the folder as a Qwen2MoeForCausalLM: each layer has 16 small
experts, of which a byte takes the two that its router gives the largest probabilities, weighted with these
probabilities as they are (not renormalised), and a shared expert behind a sigmoid gate that every byte takes.

The loss that evens out the load of the experts is weak (router_aux_loss_coef), so that they end up unevenly used. In
training every expert is computed for every byte and those not chosen get the weight zero.

The text, its split and the loop are in common.py, the network in decoder.py; options are those of train.py.
"""
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

from common import arguments, fit, read_enwik8
from decoder import CausalLM, Mlp

CONFIG = {
    "architectures": ["Qwen2MoeForCausalLM"],
    "model_type": "qwen2_moe",
    "vocab_size": 256,
    "hidden_size": 192,
    "intermediate_size": 512,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 128,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "norm_topk_prob": False,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "output_router_logits": False,
    "router_aux_loss_coef": 0.0005,
    "num_hidden_layers": 5,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "qkv_bias": True,
    "max_position_embeddings": 512,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "use_sliding_window": False,
    "sliding_window": None,
    "max_window_layers": 5,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
    "bos_token_id": None,
    "eos_token_id": None,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}


class Experts(nn.Module):
    """All experts of a layer as three matrices: rows i * width .. (i + 1) * width belong to expert i."""

    def __init__(self, experts, hidden, width):
        super().__init__()
        self.experts, self.width = experts, width
        self.gate_proj = nn.Linear(hidden, experts * width, bias=False)
        self.up_proj = nn.Linear(hidden, experts * width, bias=False)
        self.down_proj = nn.Linear(experts * width, hidden, bias=False)

    def forward(self, x, weights):
        h = F.silu(self.gate_proj(x)) * self.up_proj(x)
        h = h.unflatten(-1, (self.experts, self.width)) * weights.to(h.dtype).unsqueeze(-1)
        return self.down_proj(h.flatten(-2))

    def tensors(self):
        """The matrices of each expert, under the names that published checkpoints use."""
        for i in range(self.experts):
            rows = slice(i * self.width, (i + 1) * self.width)
            yield f"{i}.gate_proj.weight", self.gate_proj.weight[rows]
            yield f"{i}.up_proj.weight", self.up_proj.weight[rows]
            yield f"{i}.down_proj.weight", self.down_proj.weight[:, rows]


class SparseMlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        hidden = c["hidden_size"]
        self.chosen = c["num_experts_per_tok"]
        self.gate = nn.Linear(hidden, c["num_experts"], bias=False)
        self.experts = Experts(c["num_experts"], hidden, c["moe_intermediate_size"])
        self.shared_expert = Mlp(hidden, c["shared_expert_intermediate_size"])
        self.shared_expert_gate = nn.Linear(hidden, 1, bias=False)
        self.unevenness = None

    def route(self, x):
        """Each expert's probability, and whether a byte takes it; in float32, since the choice hangs on small gaps."""
        with torch.autocast(x.device.type, enabled=False):
            p = self.gate(x.float()).softmax(-1)
        taken = torch.zeros_like(p).scatter(-1, p.topk(self.chosen, -1).indices, 1.0)
        return p, taken

    def forward(self, x):
        p, taken = self.route(x)
        # the load-balancing loss of Switch Transformers: `chosen` where the load is even
        self.unevenness = p.shape[-1] * (taken.flatten(0, -2).mean(0) * p.flatten(0, -2).mean(0)).sum()
        return self.experts(x, p * taken) + self.shared_expert_gate(x).sigmoid() * self.shared_expert(x)


class TinyMoe(CausalLM):
    def __init__(self, c):
        super().__init__(c, bias=True, mlp=SparseMlp)
        self.balance = c["router_aux_loss_coef"]

    def objective(self, ids):
        nats = self.loss(ids)
        return nats + self.balance * sum(layer.mlp.unevenness for layer in self.model.layers) / len(self.model.layers)

    def tensors(self):
        stacked = {k: v for k, v in self.state_dict().items() if ".experts." not in k}
        for i, layer in enumerate(self.model.layers):
            stacked |= {f"model.layers.{i}.mlp.experts.{k}": v for k, v in layer.mlp.experts.tensors()}
        return stacked


@torch.no_grad()
def loads(model, ids):
    """How often each expert of each layer is taken, in thousandths of all choices."""
    counts = []
    hooks = [layer.mlp.register_forward_pre_hook(
        lambda mlp, x: counts.append(mlp.route(x[0])[1].flatten(0, -2).sum(0))) for layer in model.model.layers]
    model(ids)
    for hook in hooks:
        hook.remove()
    return [(1000 * c / c.sum()).round().int().tolist() for c in counts]


def main():
    start = time.perf_counter()
    a = arguments(__doc__.splitlines()[0], "tiny-moe").parse_args()
    torch.manual_seed(a.seed)
    data = read_enwik8(a.data).to(a.device)
    model = TinyMoe(CONFIG).to(a.device)
    fit(model, CONFIG, data, a, start)
    print("loads on 128 windows of the validation split, in thousandths:")
    for row in loads(model, data[90_000_000:][:128 * a.context].view(128, -1).long()):
        print(row, flush=True)


if __name__ == "__main__":
    main()
