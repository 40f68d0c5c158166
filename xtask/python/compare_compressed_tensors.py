#!/usr/bin/env python3
"""Compare decompressed weights with those of the Python package, value by value.

    cargo run -p quant-io --example compressed_tensors -- decompress MODEL_DIR PLAIN_DIR
    python3 compare_compressed_tensors.py MODEL_DIR PLAIN_DIR

Each compressed module of MODEL_DIR is decompressed by the package twice and compared with PLAIN_DIR bit for bit:

  as stored   the package multiplies in the type of the scales; our f32 values are rounded to the type it gives;
  widened     with the scales widened to float32 first, against our values as they are.

Exit status 1 when a single bit differs. Needs torch and compressed-tensors (seen working with 2.15.0 and 0.20.0).
"""
import argparse
import functools
import glob
import json
import sys

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.mxfp6 import base as mxfp6
from compressed_tensors.compressors.nvfp4 import base as nvfp4
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.utils.match import match_targets
from safetensors.torch import load_file

INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def tensors_of(folder):
    tensors = {}
    for file in sorted(glob.glob(f"{folder}/*.safetensors")):
        tensors.update(load_file(file))
    return tensors


def decompress(config, tensors, widened):
    """The weight of each module that has scales, as the package decompresses it."""
    schemes = {target: group for group in config.config_groups.values() for target in group.targets}
    weights = {}
    for module in (name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")):
        scheme = schemes[match_targets(module, torch.nn.Linear(1, 1), schemes)[0]]
        compressor = BaseCompressor.get_value_from_registry(scheme.format or config.format)
        state = {k.removeprefix(f"{module}."): v for k, v in tensors.items() if k.startswith(f"{module}.")}
        if widened:
            state = {k: v.float() if v.dtype in (torch.bfloat16, torch.float16) else v for k, v in state.items()}
        weights[module] = compressor.decompress(state, scheme)["weight"]
    return weights


def differing_bits(ours, theirs):
    ours = ours.to(theirs.dtype)
    return (ours.view(INTEGERS[ours.dtype]) != theirs.view(INTEGERS[theirs.dtype])).sum().item()


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("folder", help="model folder in the compressed-tensors layout")
    p.add_argument("plain", help="the same model, decompressed by us")
    a = p.parse_args()

    with open(f"{a.folder}/config.json") as f:
        config = QuantizationConfig.model_validate(json.load(f)["quantization_config"])
    tensors, plain = tensors_of(a.folder), tensors_of(a.plain)
    fine = True
    for name, widened in (("as stored", False), ("widened", True)):
        if widened:
            # these two make bfloat16 by themselves
            for module, unpack in ((nvfp4, "unpack_fp4_from_uint8"), (mxfp6, "unpack_fp6_from_uint8")):
                setattr(module, unpack, functools.partial(getattr(module, unpack), dtype=torch.float32))
        weights = decompress(config, tensors, widened)
        if not weights:
            sys.exit(f"{a.folder}: no module has scales")
        if widened:
            weights = {module: weight.float() for module, weight in weights.items()}
        differences = sum(differing_bits(plain[f"{m}.weight"], w) for m, w in weights.items())
        types = sorted({str(w.dtype) for w in weights.values()})
        values = sum(w.numel() for w in weights.values())
        print(f"{name:10} {len(weights)} modules, {values} values in {', '.join(types)}: {differences} differ")
        fine &= differences == 0
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
