#!/usr/bin/env python3
"""Quantize a byte-level model with llm-compressor and print perplexities, to set beside those of `leanbits compress`.

    python3 peer_gptq.py MODEL_DIR --calib CALIB.txt --text HELDOUT.txt [--bits 4 3] [--window 512] [--windows 40]

MODEL_DIR holds a Hugging Face model whose tokens are bytes. Every window of CALIB.txt is used for calibration. Linears but for
the head are quantized to unsigned integers with zero points in groups of 128 along the input, as `int4-g128-asym` has them: by
rounding to nearest, by GPTQ with its default options (damping 0.01, blocks of 128, activation order "static") and without
activation order, and by AWQ with its default options. Perplexity is for a byte, over the first windows of HELDOUT.txt, every byte of a window but its first predicted.

Needs torch, transformers, datasets and llmcompressor (seen working with 2.11.0, 5.17.0, 5.0.1 and 0.14.0.1).
"""
import argparse
import math

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

if not torch.cuda.is_available():
    # The package pins what it keeps between layers, which fails where there is no GPU.
    torch.Tensor.pin_memory = lambda self, *args, **kwargs: self


def windows(path, size, count=None):
    data = open(path, "rb").read()
    cut = [list(data[i : i + size]) for i in range(0, len(data) - size + 1, size)]
    return cut[:count]


def perplexity(model, texts):
    total, tokens = 0.0, 0
    with torch.no_grad():
        for text in texts:
            ids = torch.tensor([text])
            logits = model(ids).logits.double()[0, :-1]
            total += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
            tokens += len(text) - 1
    return math.exp(total / tokens), tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calib", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--windows", type=int, default=40)
    args = parser.parse_args()

    calib, heldout = windows(args.calib, args.window), windows(args.text, args.window, args.windows)
    data = Dataset.from_dict({"input_ids": calib, "attention_mask": [[1] * len(c) for c in calib]})
    # The texts are ids already, but the package asks for a tokenizer.
    processor = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), pad_token="<pad>")
    load = lambda: AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    value, tokens = perplexity(load(), heldout)
    print(f"{len(calib)} calibration windows, {tokens} predicted bytes; uncompressed {value:.4f}", flush=True)
    for bits in args.bits:
        def groups():
            weights = QuantizationArgs(num_bits=bits, type="int", symmetric=False, strategy="group", group_size=128)
            return {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}

        methods = {
            "rtn": lambda: QuantizationModifier(config_groups=groups(), ignore=["lm_head"]),
            "gptq": lambda: GPTQModifier(config_groups=groups(), ignore=["lm_head"], actorder=None),
            "gptq, static order": lambda: GPTQModifier(config_groups=groups(), ignore=["lm_head"], actorder="static"),
            "awq": lambda: [AWQModifier(), QuantizationModifier(config_groups=groups(), ignore=["lm_head"])],
        }
        for name, modifier in methods.items():
            model = load()
            oneshot(
                model=model,
                processor=processor,
                dataset=data,
                recipe=modifier(),
                max_seq_length=args.window,
                num_calibration_samples=len(calib),
            )
            print(f"{bits} bits, {name}: {perplexity(model, heldout)[0]:.4f}", flush=True)


if __name__ == "__main__":
    main()
