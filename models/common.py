"""What the training scripts share: the text and its split, the training loop and the folder that it writes.

enwik8 is cut in the usual way: 90 MB for training, the next 5 MB for validation, the last 5 MB for the test. The
vocabulary is the 256 byte values, so there is no tokenizer.

A model that `fit` trains is a torch module with
    loss(ids)       mean negative log likelihood in nats of each byte of the rows but the first,
    objective(ids)  what training minimizes, the loss and whatever is added to it,
    tensors()       the weights under the names and in the shapes in which they are stored,
    forward(ids)    logits.
Its matrices are 2-dimensional parameters and decay; vectors are 1-dimensional and do not.
"""
import argparse
import gzip
import hashlib
import json
import math
import os
import platform
import time

import torch
import torch.nn as nn
from safetensors.torch import save_file

ENWIK8_SHA256 = "2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8"
TRAIN_BYTES, VALID_BYTES = 90_000_000, 5_000_000


def read_enwik8(path):
    with (gzip.open if path.endswith(".gz") else open)(path, "rb") as f:
        data = f.read()
    if hashlib.sha256(data).hexdigest() != ENWIK8_SHA256:
        raise SystemExit(f"{path}: not enwik8 (100,000,000 bytes, sha256 {ENWIK8_SHA256})")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def batches(data, context, batch, seed):
    """Endless (batch, context + 1) rows. Each pass cuts the text at a new phase and shuffles the pieces."""
    g = torch.Generator(device=data.device).manual_seed(seed)
    span = torch.arange(context + 1, device=data.device)
    pieces = (len(data) - 1) // context - 1
    while True:
        phase = torch.randint(context, (1,), generator=g, device=data.device)
        starts = torch.randperm(pieces, generator=g, device=data.device) * context + phase
        for i in range(0, pieces - batch + 1, batch):
            yield data[starts[i:i + batch, None] + span].long()


@torch.no_grad()
def bits_per_byte(model, data, context, batch=256):
    """Non-overlapping windows of `context` bytes; every byte of a window but its first is predicted."""
    rows = data[: len(data) // context * context].view(-1, context)
    nats = 0.0
    for i in range(0, len(rows), batch):
        ids = rows[i:i + batch].long()
        nats += model.loss(ids).double().item() * len(ids) * (context - 1)
    return nats / (len(rows) * (context - 1)) / math.log(2)


def dump(value):
    def save(path):
        with open(path, "w") as f:
            json.dump(value, f, indent=2)
            f.write("\n")
    return save


def write_folder(tensors, config, out):
    """Write the model's folder, each file beside its final name first."""
    os.makedirs(out, exist_ok=True)

    def put(name, save):
        save(os.path.join(out, name + ".tmp"))
        os.replace(os.path.join(out, name + ".tmp"), os.path.join(out, name))

    tensors = {k: v.detach().to("cpu", torch.bfloat16).contiguous() for k, v in tensors.items()}
    put("model.safetensors", lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    put("config.json", dump(config))
    put("generation_config.json", dump({"do_sample": True, "temperature": 0.8, "bos_token_id": None,
                                        "eos_token_id": None}))


@torch.no_grad()
def sample(model, prompt, count, temperature, seed, context):
    device = next(model.parameters()).device
    g = torch.Generator().manual_seed(seed)
    ids = list(prompt)
    for _ in range(count):
        window = torch.tensor([ids[-context:]], device=device)
        p = (model(window)[0, -1].float().cpu() / temperature).softmax(-1)
        ids.append(torch.multinomial(p, 1, generator=g).item())
    return bytes(ids).decode("utf-8", "replace")


def arguments(description, out, **defaults):
    """The options of every training script; `defaults` are those that differ from the Llama's."""
    p = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--data", required=True, help="enwik8 or enwik8.gz")
    p.add_argument("--out", default=out, help="folder to write")
    p.add_argument("--log", help="JSON file for the run's figures (default: OUT/train-log.json)")
    p.add_argument("--minutes", type=float, default=9.0, help="time budget, compiling included, final evaluation not")
    p.add_argument("--steps", type=int, help="a fixed number of steps in place of the time budget")
    p.add_argument("--batch", type=int, default=128, help="rows of one step, each of --context bytes")
    p.add_argument("--context", type=int, default=512)
    p.add_argument("--lr", type=float, default=3e-3, help="peak learning rate")
    p.add_argument("--warmup", type=int, default=500, help="steps of linear warmup")
    p.add_argument("--weight-decay", type=float, default=0.1, help="on matrices, not on norms and biases")
    p.add_argument("--clip", type=float, default=1.0, help="gradient norm limit")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--device", default="cuda")
    p.add_argument("--no-compile", action="store_true", help="do not use torch.compile")
    p.add_argument("--eval-every", type=int, default=2000, help="steps between validation figures and checkpoints")
    p.add_argument("--final-bytes", type=int, default=VALID_BYTES, help="bytes of each split the last figures use")
    p.set_defaults(**defaults)
    return p


def fit(model, config, data, a, start):
    """Train the model under the options `a` on enwik8, on a.device both, and write its folder, log and a sample.

    `start` is when the script's clock started. The model ends up with its stored weights, widened to float32.
    """
    train = data[:TRAIN_BYTES]
    valid = data[TRAIN_BYTES:TRAIN_BYTES + VALID_BYTES][:a.final_bytes]
    test = data[TRAIN_BYTES + VALID_BYTES:][:a.final_bytes]
    quick_valid = valid[:1_000_000]

    parameters = sum(p.numel() for p in model.parameters())
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": a.weight_decay},
                                   {"params": vectors, "weight_decay": 0.0}],
                                  lr=a.lr, betas=(0.9, 0.95), eps=1e-8, fused=True)
    objective = model.objective if a.no_compile else torch.compile(model.objective)
    autocast = torch.autocast(torch.device(a.device).type, dtype=torch.bfloat16)
    print(f"{parameters:,} parameters, {len(train):,} training bytes, torch {torch.__version__}", flush=True)

    budget, clock = a.minutes * 60, None
    curve, step = [], 0
    for rows in batches(train, a.context, a.batch, a.seed):
        # the clock of the schedule starts once the first step has been compiled
        if clock is None:
            progress = 0.0
        elif a.steps:
            progress = step / a.steps
        else:
            now = time.perf_counter()
            progress = (now - clock) / max(budget - (clock - start), 1e-9)
        if progress >= 1.0:
            break
        lr = a.lr * min(1.0, (step + 1) / a.warmup) * 0.5 * (1.0 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = lr
        with autocast:
            loss = objective(rows)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), a.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0:
            # reading the loss also keeps the host from running far ahead of the device's clock
            bits = loss.item() / math.log(2)
            if not math.isfinite(bits):
                raise SystemExit(f"step {step}: the loss is not finite")
            if clock is None:
                clock = time.perf_counter()
            if step % 500 == 0:
                print(f"step {step:6d}  {time.perf_counter() - start:6.1f} s  lr {lr:.2e}  "
                      f"train {bits:.4f} bits/byte  grad {norm.item():.2f}", flush=True)
        step += 1
        if step % a.eval_every == 0:
            with autocast:
                v = bits_per_byte(model, quick_valid, a.context)
            curve.append([step, round(bits, 4), round(v, 4)])
            print(f"step {step:6d}  {time.perf_counter() - start:6.1f} s  validation {v:.4f} bits/byte", flush=True)
            write_folder(model.tensors(), config, a.out)
    seconds = time.perf_counter() - start

    # the figures are those of the stored weights, computed in float32
    write_folder(model.tensors(), config, a.out)
    torch.backends.cuda.matmul.allow_tf32 = False
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.to(torch.bfloat16).float())
    result = {
        "parameters": parameters, "steps": step, "batch": a.batch, "context": a.context, "seed": a.seed,
        "lr": a.lr, "warmup": a.warmup, "weight_decay": a.weight_decay, "clip": a.clip,
        "training_bytes_seen": step * a.batch * a.context,
        "seconds": round(seconds, 1), "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if a.device.startswith("cuda") else platform.machine(),
        "train_bits_per_byte": bits_per_byte(model, train[:len(valid)], a.context),
        "validation_bits_per_byte": bits_per_byte(model, valid, a.context),
        "test_bits_per_byte": bits_per_byte(model, test, a.context),
        "curve": curve,
    }
    with open(a.log or os.path.join(a.out, "train-log.json"), "w") as f:
        json.dump(result, f)
        f.write("\n")
    print(json.dumps({k: v for k, v in result.items() if k != "curve"}, indent=1))
    print(sample(model, b"'''Rust''' is a ", 400, 0.8, a.seed, a.context), flush=True)
