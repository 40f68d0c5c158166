"""The decoder of the Llama family in PyTorch, its modules named as in `transformers`.

Rotary embedding pairs element i of a head with i + head_dim / 2, as there. Qwen2 is Llama with biases on the query,
key and value projections; Qwen2-MoE puts a mixture of experts in the place of the feed-forward network.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F


class Attention(nn.Module):
    def __init__(self, c, bias):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = c["num_attention_heads"], c["num_key_value_heads"], head_dim(c)
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.q_proj = nn.Linear(c["hidden_size"], q, bias=bias)
        self.k_proj = nn.Linear(c["hidden_size"], kv, bias=bias)
        self.v_proj = nn.Linear(c["hidden_size"], kv, bias=bias)
        self.o_proj = nn.Linear(q, c["hidden_size"], bias=False)

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        q = self.q_proj(x).view(b, t, self.heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(b, t, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(b, t, self.kv_heads, self.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1))


def head_dim(c):
    return c.get("head_dim", c["hidden_size"] // c["num_attention_heads"])


def rotate(x, cos, sin):
    """Rotary embedding: element i of a head turns together with element i + head_dim / 2."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


class Mlp(nn.Module):
    def __init__(self, hidden, width):
        super().__init__()
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c, bias, mlp):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(c["hidden_size"], eps=c["rms_norm_eps"])
        self.self_attn = Attention(c, bias)
        self.post_attention_layernorm = nn.RMSNorm(c["hidden_size"], eps=c["rms_norm_eps"])
        self.mlp = mlp(c)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, c, bias, mlp):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c, bias, mlp) for _ in range(c["num_hidden_layers"]))
        self.norm = nn.RMSNorm(c["hidden_size"], eps=c["rms_norm_eps"])


def dense(c):
    return Mlp(c["hidden_size"], c["intermediate_size"])


class CausalLM(nn.Module):
    """A decoder with the embedding as its head. `bias`: on q, k and v. `mlp` makes a layer's second half."""

    def __init__(self, c, bias=False, mlp=dense):
        super().__init__()
        self.model = Decoder(c, bias, mlp)
        half = head_dim(c) // 2
        frequency = c["rope_theta"] ** (-torch.arange(half, dtype=torch.float32) / half)
        angle = torch.outer(torch.arange(c["max_position_embeddings"], dtype=torch.float32), frequency)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                # what is added to the residual stream starts smaller, so that its variance does not grow with depth
                to_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                shrink = (2 * c["num_hidden_layers"]) ** -0.5 if to_residual else 1.0
                nn.init.normal_(p, std=c["initializer_range"] * shrink)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, ids):
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)

    def loss(self, ids):
        """Mean negative log likelihood (nats) of each byte but the first, over rows of context + 1 bytes."""
        logits = self(ids[:, :-1]).float()
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    def objective(self, ids):
        return self.loss(ids)

    def tensors(self):
        return self.state_dict()
