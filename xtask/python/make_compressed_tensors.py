#!/usr/bin/env python3
"""Write a Hugging Face folder in the compressed-tensors layout with that package itself, to test our reader on.

    python3 make_compressed_tensors.py MODEL_DIR SCHEME OUT_DIR

Weights are rounded to the nearest code with min/max scales computed by the package; nothing is calibrated and activations are
left alone. Needs torch, transformers and compressed-tensors (made with 2.15.0, 5.23.0 and 0.20.0).
"""
import argparse

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (QuantizationArgs, QuantizationConfig, QuantizationScheme,
                                             apply_quantization_config)
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from transformers import AutoModelForCausalLM

INT = {"type": "int", "dynamic": False}
FLOAT = {"type": "float", "dynamic": False, "symmetric": True}
SCHEMES = {
    "w4a16": dict(INT, num_bits=4, symmetric=True, strategy="group", group_size=128),
    "w4a16-asym": dict(INT, num_bits=4, symmetric=False, strategy="group", group_size=128),
    "w3a16": dict(INT, num_bits=3, symmetric=True, strategy="group", group_size=64),
    "w8": dict(INT, num_bits=8, symmetric=True, strategy="channel"),
    "w8a16": dict(INT, num_bits=8, symmetric=True, strategy="group", group_size=128),
    "fp8": dict(FLOAT, num_bits=8, strategy="channel"),
    "fp8-block": dict(FLOAT, num_bits=8, strategy="block", block_structure=[128, 128]),
    "nvfp4": dict(FLOAT, num_bits=4, strategy="tensor_group", group_size=16, scale_dtype="torch.float8_e4m3fn",
                  zp_dtype="torch.float8_e4m3fn"),
    "mxfp4": dict(FLOAT, num_bits=4, strategy="group", group_size=32, scale_dtype="torch.uint8",
                  zp_dtype="torch.uint8"),
    "mxfp8": dict(FLOAT, num_bits=8, strategy="group", group_size=32, scale_dtype="torch.uint8",
                  zp_dtype="torch.uint8"),
}
# the layout for schemes that would otherwise get the one meant for quantized activations or the packed one
FORMATS = {"w8": "int-quantized", "fp8": "float-quantized", "fp8-block": "float-quantized"}


def extremes(weight, args):
    """Smallest and largest value of each part of the weight that shares a scale, in the scale's shape."""
    rows, columns = weight.shape
    if args.strategy == "channel":
        parts, dims = weight, (1,)
    elif args.strategy == "block":
        r, c = args.block_structure
        return [f(weight.view(rows // r, r, columns // c, c), (1, 3)) for f in (torch.amin, torch.amax)]
    else:
        parts, dims = weight.view(rows, columns // args.group_size, args.group_size), (2,)
    low, high = parts.amin(dims), parts.amax(dims)
    return (low[:, None], high[:, None]) if args.strategy == "channel" else (low, high)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("model")
    p.add_argument("scheme", choices=SCHEMES)
    p.add_argument("out")
    a = p.parse_args()

    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.bfloat16)
    args = QuantizationArgs(**SCHEMES[a.scheme])
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format=FORMATS.get(a.scheme))
    apply_quantization_config(model, QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"]))
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is None:
            continue
        weight = module.weight.data
        global_scale = None
        if args.strategy == "tensor_group":
            global_scale = generate_gparam(weight.amin().float(), weight.amax().float())
            module.weight_global_scale.data = global_scale
        scale, zero = calculate_qparams(*extremes(weight, args), args, global_scale)
        if module.weight_scale.shape != scale.shape:
            raise SystemExit(f"scale of shape {tuple(scale.shape)}, {tuple(module.weight_scale.shape)} expected")
        module.weight_scale.data = scale.to(module.weight_scale.dtype)
        if hasattr(module, "weight_zero_point"):
            module.weight_zero_point.data = zero.to(module.weight_zero_point.dtype)

    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(a.out)
    compressor.update_config(a.out)


if __name__ == "__main__":
    main()
