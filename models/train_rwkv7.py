#!/usr/bin/env python3
"""Train the small byte-level RWKV-7 that leanbits ships, on enwik8, on one GPU.

    python3 train_rwkv7.py --data enwik8.gz --out tiny-rwkv7 --minutes 9
    python3 train_rwkv7.py --check

RWKV-7 ("Goose", x070; RWKV-7 "Goose" with Expressive Dynamic State Evolution, arXiv 2503.14456) keeps a matrix S per
head in the place of a key/value cache:

    S_t = S_(t-1) (diag(w_t) + a_t b_tᵀ) + v_t k_tᵀ,    y_t = S_t r_t,

rows for values, columns for keys. Token by token this is too slow to train, so `delta_rule` below computes it in chunks
of 16 bytes; --check compares it with the recurrence as written, gradients included.

Tensors are stored under RWKV's own names; every matrix, the low-rank pairs too, as (out, in), and the six token-shift
vectors of the time mix as one tensor, in the order r, w, k, v, a, g. The text, its split and the loop are in common.py;
options are those of train.py.
"""
import argparse
import math
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

from common import arguments, fit, read_enwik8

CONFIG = {
    "architectures": ["RWKV_x070"],
    "model_type": "rwkv7",
    "vocab_size": 256,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "head_size": 64,
    "decay_low_rank_dim": 32,
    "a_low_rank_dim": 32,
    "v_low_rank_dim": 32,
    "gate_low_rank_dim": 64,
    "layer_norm_eps": 1e-5,
    "group_norm_eps": 64e-5,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "torch_dtype": "bfloat16",
}
SHIFTS = "rwkvag"


def recurrence(r, log_w, k, v, a, b):
    """The rule as written, one step at a time. All [batch, heads, time, size]."""
    state = torch.zeros(*r.shape[:2], r.shape[-1], r.shape[-1], dtype=r.dtype, device=r.device)
    out = []
    for t in range(r.shape[2]):
        rt, wt, kt, vt, at, bt = (x[:, :, t] for x in (r, log_w.exp(), k, v, a, b))
        state = (state * wt.unsqueeze(-2) + (state @ at.unsqueeze(-1)) @ bt.unsqueeze(-2)
                 + vt.unsqueeze(-1) @ kt.unsqueeze(-2))
        out.append((state @ rt.unsqueeze(-1)).squeeze(-1))
    return torch.stack(out, 2)


@torch.library.custom_op("tiny_rwkv7::walk", mutates_args=())
def walk(step: torch.Tensor, add: torch.Tensor, backwards: bool) -> torch.Tensor:
    """Z_(i+1) = step_i Z_i + add_i from Z_0 = 0, along the first axis of [chunks, batch, size, size]; all but the last.

    Backwards it goes from the last to the first with the transposed steps: Z_(i-1) = step_(i-1)ᵀ Z_i + add_(i-1) from
    Z_last = add_last. An operator of its own, so that torch.compile need not look into the loop.
    """
    out = torch.empty_like(add)
    with torch.autocast(add.device.type, enabled=False):
        if backwards:
            out[-1] = add[-1]
            for i in range(len(add) - 1, 0, -1):
                torch.baddbmm(add[i - 1], step[i - 1].mT, out[i], out=out[i - 1])
        else:
            out[0] = 0.0
            for i in range(len(add) - 1):
                torch.baddbmm(add[i], step[i], out[i], out=out[i + 1])
    return out


@walk.register_fake
def _(step, add, backwards):
    return torch.empty_like(add)


def keep_states(ctx, inputs, output):
    ctx.save_for_backward(inputs[0], output)


def walk_gradient(ctx, gradient):
    """What reaches Z_(i+1), through all later ones too, is the gradient of add_i, and times Z_iᵀ that of step_i."""
    step, states = ctx.saved_tensors
    reaches = F.pad(walk(step, gradient.contiguous(), True)[1:], (0, 0, 0, 0, 0, 0, 0, 1))
    return reaches @ states.mT, reaches, None


walk.register_autograd(walk_gradient, setup_context=keep_states)


def delta_rule(r, log_w, k, v, a, b, chunk=16):
    """The same in chunks. All [batch, heads, time, size]; log_w must not be below -0.61, or float32 may run out.

    With W_t the product of a chunk's decays up to t, write S_t = Ŝ_t diag(W_t). Then Ŝ no longer decays:
        Ŝ_t = Ŝ_(t-1) + u_t (b_t / W_t)ᵀ + v_t (k_t / W_t)ᵀ,    u_t = Ŝ_(t-1) (W_(t-1) a_t),
    so that a chunk's u, as rows of U, solve the unit lower triangular system
        (I - L) U = A S₀ᵀ + M V,    L_ts = a_t·b_s, M_ts = a_t·k_s (both for s < t, all vectors rescaled as above).
    What does not depend on the chunk's first state S₀ is computed for all chunks at once; the state then walks from
    chunk to chunk. The code holds Z = Sᵀ, keys by values.
    """
    time_steps = r.shape[2]
    pad = -time_steps % chunk
    r, log_w, k, v, a, b = (F.pad(x, (0, 0, 0, pad)).unflatten(2, (-1, chunk)) for x in (r, log_w, k, v, a, b))
    total = log_w.cumsum(-2)
    grow, shrink = (-total).exp(), total.exp()
    r, a, k, b = r * shrink, a * (total - log_w).exp(), k * grow, b * grow

    below = torch.ones(chunk, chunk, dtype=r.dtype, device=r.device).tril(-1)
    upto = below + torch.eye(chunk, dtype=r.dtype, device=r.device)
    kt, bt = k.transpose(-1, -2), b.transpose(-1, -2)
    power = (a @ bt) * below
    # (I - L)⁻¹ = (I + L)(I + L²)(I + L⁴)(I + L⁸), since L to the power of the chunk's length is zero
    inverse = power + torch.eye(chunk, dtype=r.dtype, device=r.device)
    for _ in range(int(math.log2(chunk)) - 1):
        power = power @ power
        inverse = inverse + inverse @ power
    from_state = inverse @ a                                  # U = from_state Z + from_values
    from_values = inverse @ (((a @ kt) * below) @ v)
    rb, rk = (r @ bt) * upto, (r @ kt) * upto
    last = shrink[..., -1, :].unsqueeze(-1)
    step = last * (bt @ from_state + torch.eye(r.shape[-1], dtype=r.dtype, device=r.device))
    add = last * (bt @ from_values + kt @ v)

    by_chunk = lambda x: x.flatten(0, 1).transpose(0, 1).contiguous()  # noqa: E731
    states = walk(by_chunk(step), by_chunk(add), False).transpose(0, 1).unflatten(0, r.shape[:2])
    y = (r + rb @ from_state) @ states + rb @ from_values + rk @ v
    return y.flatten(2, 3)[:, :, :time_steps]


def shifted(x):
    """What the byte before gave, less what this one gives."""
    return F.pad(x, (0, 0, 1, -1)) - x


def low_rank(inner, size, c):
    """The pair of matrices, (out, in) each, of a low-rank path. The second starts at zero."""
    return nn.Parameter(torch.randn(inner, c) * c ** -0.5), nn.Parameter(torch.zeros(size, inner))


class TimeMix(nn.Module):
    def __init__(self, c, layer):
        super().__init__()
        width = c["hidden_size"]
        self.size, self.heads, self.eps = c["head_size"], width // c["head_size"], c["group_norm_eps"]
        ramp = torch.arange(width) / width
        for i, name in enumerate(SHIFTS):
            # low channels take more of the byte before, and deeper layers less of it
            power = (0.3 + 0.1 * i) * (1.0 - layer / c["num_hidden_layers"])
            setattr(self, "x_" + name, nn.Parameter(1.0 - ramp ** power))
        # per head, from channels that hardly forget to channels that forget within a few bytes
        self.w0 = nn.Parameter(torch.linspace(-6.0, 1.0, self.size).repeat(self.heads))
        self.w1, self.w2 = low_rank(c["decay_low_rank_dim"], width, width)
        self.a0 = nn.Parameter(torch.zeros(width))
        self.a1, self.a2 = low_rank(c["a_low_rank_dim"], width, width)
        if layer > 0:
            self.v0 = nn.Parameter(torch.zeros(width))
            self.v1, self.v2 = low_rank(c["v_low_rank_dim"], width, width)
        self.g1, self.g2 = low_rank(c["gate_low_rank_dim"], width, width)
        nn.init.normal_(self.g2, std=c["gate_low_rank_dim"] ** -0.5)
        self.k_k = nn.Parameter(torch.ones(width))
        self.k_a = nn.Parameter(torch.ones(width))
        self.r_k = nn.Parameter(torch.zeros(width))
        self.receptance, self.key, self.value, self.output = (nn.Linear(width, width, bias=False) for _ in range(4))
        for linear in (self.receptance, self.key, self.value):
            nn.init.normal_(linear.weight, std=0.5 * width ** -0.5)
        nn.init.zeros_(self.output.weight)
        self.ln_x = nn.GroupNorm(self.heads, width, eps=self.eps)

    def forward(self, x, v_first):
        batch, steps, width = x.shape
        xx = shifted(x)
        xr, xw, xk, xv, xa, xg = (x + xx * getattr(self, "x_" + name) for name in SHIFTS)
        r, k, v = self.receptance(xr), self.key(xk), self.value(xv)
        w = self.w0 + F.linear(F.linear(xw, self.w1).tanh(), self.w2)
        if v_first is None:
            v_first = v
        else:
            v = v + (v_first - v) * (self.v0 + F.linear(F.linear(xv, self.v1), self.v2)).sigmoid()
        a = (self.a0 + F.linear(F.linear(xa, self.a1), self.a2)).sigmoid()
        g = F.linear(F.linear(xg, self.g1).sigmoid(), self.g2)

        with torch.autocast(x.device.type, enabled=False):
            heads = lambda z: z.float().unflatten(-1, (self.heads, self.size)).transpose(1, 2)  # noqa: E731
            log_w = -math.exp(-0.5) * heads(w).sigmoid()
            kk = F.normalize(heads(k * self.k_k), dim=-1, eps=1e-12)
            k = heads(k * (1.0 + (a - 1.0) * self.k_a))
            r, v = heads(r), heads(v)
            y = delta_rule(r, log_w, k, v, -kk, kk * heads(a))
            y = self.ln_x(y.transpose(1, 2).reshape(batch * steps, width)).view(batch, steps, width)
            bonus = (r * k * self.r_k.view(self.heads, 1, self.size)).sum(-1, keepdim=True) * v
            y = y + bonus.transpose(1, 2).reshape(batch, steps, width)
        return self.output(y * g), v_first


class ChannelMix(nn.Module):
    def __init__(self, c, layer):
        super().__init__()
        width = c["hidden_size"]
        self.x_k = nn.Parameter(1.0 - (torch.arange(width) / width) ** (1.0 - layer / c["num_hidden_layers"]))
        self.key = nn.Linear(width, c["intermediate_size"], bias=False)
        self.value = nn.Linear(c["intermediate_size"], width, bias=False)
        nn.init.normal_(self.key.weight, std=width ** -0.5)
        nn.init.zeros_(self.value.weight)

    def forward(self, x):
        return self.value(self.key(x + shifted(x) * self.x_k).relu() ** 2)


class Block(nn.Module):
    def __init__(self, c, layer):
        super().__init__()
        norm = lambda: nn.LayerNorm(c["hidden_size"], eps=c["layer_norm_eps"])  # noqa: E731
        if layer == 0:
            self.ln0 = norm()
        self.ln1, self.ln2 = norm(), norm()
        self.att, self.ffn = TimeMix(c, layer), ChannelMix(c, layer)

    def forward(self, x, v_first):
        y, v_first = self.att(self.ln1(x), v_first)
        x = x + y
        return x + self.ffn(self.ln2(x)), v_first


class TinyRwkv7(nn.Module):
    def __init__(self, c):
        super().__init__()
        width = c["hidden_size"]
        self.emb = nn.Embedding(c["vocab_size"], width)
        self.blocks = nn.ModuleList(Block(c, i) for i in range(c["num_hidden_layers"]))
        self.ln_out = nn.LayerNorm(width, eps=c["layer_norm_eps"])
        self.head = nn.Linear(width, c["vocab_size"], bias=False)
        nn.init.normal_(self.emb.weight, std=0.02)
        nn.init.normal_(self.head.weight, std=0.5 * width ** -0.5)

    def forward(self, ids):
        x, v_first = self.blocks[0].ln0(self.emb(ids)), None
        for block in self.blocks:
            x, v_first = block(x, v_first)
        return self.head(self.ln_out(x))

    def loss(self, ids):
        """Mean negative log likelihood (nats) of each byte but the first, over rows of context + 1 bytes."""
        logits = self(ids[:, :-1]).float()
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    def objective(self, ids):
        return self.loss(ids)

    def tensors(self):
        """The weights in RWKV's shapes: vectors as [1, 1, width], r_k as [heads, size], the shifts as one tensor."""
        stored = {}
        for name, p in self.state_dict().items():
            last = name.rsplit(".", 1)[1]
            if ".att.x_" in name:
                if last == "x_r":
                    block = name[: -len("x_r")]
                    shifts = [self.state_dict()[f"{block}x_{s}"] for s in SHIFTS]
                    stored[block + "x_rwkvag"] = torch.stack(shifts).unsqueeze(1)
            elif last == "r_k":
                stored[name] = p.view(-1, self.blocks[0].att.size)
            elif last in ("w0", "a0", "v0", "k_k", "k_a", "x_k"):
                stored[name] = p.view(1, 1, -1)
            else:
                stored[name] = p
        return stored


def check(device):
    """Chunks against the plain recurrence on random data, in float32 and, to tell rounding from error, in float64."""
    torch.manual_seed(0)
    shape = (2, 3, 50, 64)
    for dtype, limit in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        random = lambda: torch.randn(shape, dtype=dtype, device=device)  # noqa: E731
        # keys of one head point much the same way, so that a chunk's steps interact
        kk, a = F.normalize(random() + 2.0 * random()[:, :, :1], dim=-1), random().sigmoid()
        inputs = [random(), -math.exp(-0.5) * (random() * 3).sigmoid(), random(), random(), -kk, kk * a]
        inputs = [x.requires_grad_() for x in inputs]
        weight = random()
        results = []
        for rule in (recurrence, delta_rule):
            y = rule(*inputs)
            results.append([y.detach(), *torch.autograd.grad((y * weight).sum(), inputs)])
        errors = [((x - y).norm() / x.norm()).item() for x, y in zip(*results)]
        print(f"{dtype}: relative difference of output and gradients", " ".join(f"{e:.1e}" for e in errors))
        if not max(errors) < limit:
            raise SystemExit("the chunked rule differs from the recurrence")


def main():
    start = time.perf_counter()
    if "--check" in sys.argv[1:]:
        p = argparse.ArgumentParser()
        p.add_argument("--check", action="store_true")
        p.add_argument("--device", default="cuda")
        return check(p.parse_args().device)
    a = arguments(__doc__.splitlines()[0], "tiny-rwkv7", lr=2e-3).parse_args()
    torch.manual_seed(a.seed)
    data = read_enwik8(a.data).to(a.device)
    fit(TinyRwkv7(CONFIG).to(a.device), CONFIG, data, a, start)


if __name__ == "__main__":
    main()
