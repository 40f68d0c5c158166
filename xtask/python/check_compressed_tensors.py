#!/usr/bin/env python3
"""Check a compressed-tensors folder that leanbits wrote, and leanbits' logits on it, against the Python packages.

    python3 check_compressed_tensors.py MODEL_DIR LOGITS.json
    python3 check_compressed_tensors.py MODEL_DIR --write LOGITS.json --text FILE [--tokens N]   # the packages' own logits

`transformers` loads the folder with `compressed-tensors` dequantizing the weights, and runs it in float32 on the CPU, twice:

  float32      the package's decompression with scales widened to float32 first, so that a weight is the exact product
               code x scale, which is what leanbits computes with;
  as loaded    what a user gets: the package rounds each weight to the stored type of the scales (bfloat16, as a rule).

LOGITS.json holds {"ids": [...], "logits": [[...], ...]}: one row of vocabulary-many numbers per id, or "last_logits" with the row
of the last id alone. For both runs the script prints the largest absolute difference, that difference relative to the
largest logit, and at how many positions the largest logit is the same one.

Exit status 1: a tolerance is exceeded, a logit is not finite, or a tensor of the folder is missing, left over or of the wrong shape.
Needs torch, transformers and compressed-tensors (seen working with 2.15.0, 5.23.0 and 0.20.0).
"""
import argparse
import functools
import json
import sys
import warnings

import compressed_tensors
import torch
import transformers
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.mxfp6 import base as mxfp6
from compressed_tensors.compressors.nvfp4 import base as nvfp4
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

HALF = (torch.bfloat16, torch.float16)


def subclasses(c):
    for s in c.__subclasses__():
        yield s
        yield from subclasses(s)


def decompress_in_float32():
    """Make the package's compressors multiply codes by scales in float32, whatever type the scales are stored in."""
    for c in set(subclasses(BaseCompressor)):
        if "decompress" not in vars(c):
            continue

        def widened(cls, state_dict, scheme, inner=vars(c)["decompress"].__func__):
            return inner(cls, {k: v.float() if v.dtype in HALF else v for k, v in state_dict.items()}, scheme)

        c.decompress = classmethod(widened)
    for module, name in ((nvfp4, "unpack_fp4_from_uint8"), (mxfp6, "unpack_fp6_from_uint8")):
        setattr(module, name, functools.partial(getattr(module, name), dtype=torch.float32))


def logits_of(folder, ids):
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True,
            quantization_config=CompressedTensorsConfig(dequantize=True))
    except (OSError, RuntimeError, ValueError) as e:
        sys.exit(f"{folder}: the packages refuse it: {e}")
    faults = {k: sorted(map(str, info[k])) for k in ("missing_keys", "unexpected_keys", "mismatched_keys") if info.get(k)}
    if faults:
        sys.exit(f"{folder}: the packages found {faults}")
    with torch.inference_mode():
        return model.eval()(torch.tensor([ids]), use_cache=False).logits[0].float()


def ids_of(text, folder, count):
    """The first ids of a text: its bytes where the folder has no tokenizer."""
    with open(text, "rb") as f:
        data = f.read()
    try:
        with open(f"{folder}/tokenizer.json"):
            pass
    except FileNotFoundError:
        return list(data[:count])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return tokenizer(data.decode("utf-8"), add_special_tokens=False).input_ids[:count]


def compare(name, ours, theirs, tolerance):
    if not torch.isfinite(ours).all():
        print(f"{name:10}  a logit is not finite")
        return False
    difference = (ours - theirs).abs().max().item()
    relative = difference / theirs.abs().max().item()
    same = (ours.argmax(-1) == theirs.argmax(-1)).sum().item()
    verdict = relative <= tolerance
    print(f"{name:10}  max abs {difference:.3e}  relative {relative:.3e} (limit {tolerance:g})  "
          f"argmax {same}/{len(ours)}  {'ok' if verdict else 'TOO FAR'}")
    return verdict


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("folder", help="model folder in the compressed-tensors layout")
    p.add_argument("logits", nargs="?", help="JSON file with ids and logits to compare")
    p.add_argument("--tolerance", type=float, default=1e-4, help="relative, against the float32 run")
    p.add_argument("--loaded-tolerance", type=float, default=2e-2, help="relative, against the model as loaded")
    p.add_argument("--write", metavar="FILE", help="write the packages' float32 logits instead of comparing")
    p.add_argument("--text", help="with --write: the text to run on")
    p.add_argument("--tokens", type=int, default=64, help="with --write: how many ids")
    a = p.parse_args()
    if (a.write is None) == (a.logits is None) or (a.write and not a.text):
        p.error("give either LOGITS.json, or --write FILE --text FILE")

    warnings.filterwarnings("ignore", message="You passed `quantization_config`")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    versions = f"transformers {transformers.__version__}, compressed-tensors {compressed_tensors.__version__}, torch {torch.__version__}"
    if a.write:
        ids = ids_of(a.text, a.folder, a.tokens)
    else:
        with open(a.logits) as f:
            given = json.load(f)
        ids = given["ids"]
        ours = torch.tensor(given["logits"] if "logits" in given else [given["last_logits"]], dtype=torch.float32)
    loaded = logits_of(a.folder, ids)
    decompress_in_float32()
    exact = logits_of(a.folder, ids)

    if a.write:
        with open(a.write, "w") as f:
            json.dump({"made_with": versions, "ids": ids,
                       "logits": [[round(x, 5) for x in row] for row in exact.tolist()]}, f)
            f.write("\n")
        ours = exact
    elif "logits" not in given:
        loaded, exact = loaded[-1:], exact[-1:]
    if ours.shape != exact.shape:
        sys.exit(f"{a.logits}: logits of shape {tuple(ours.shape)}, {tuple(exact.shape)} expected")
    print(f"{a.folder}: {len(ids)} ids, {versions}")
    fine = [] if a.write else [compare("float32", ours, exact, a.tolerance)]
    fine.append(compare("as loaded", ours, loaded, a.loaded_tolerance))
    sys.exit(0 if all(fine) else 1)


if __name__ == "__main__":
    main()
