#!/usr/bin/env python3
"""Cuts the reduced golden vectors in vectors/ out of the full set.

usage: reduce.py FULL_SET_FOLDER

Only the standard library is used. A file of single values keeps every n-th one; of the others
whole arrays are kept, inputs included, chosen by the patterns below.
"""

import fnmatch
import json
import pathlib
import struct
import sys

# name: (every n-th value of arrays, patterns of the arrays to keep)
PLAN = {
    "scalar_decode": (1, ["*"]),
    "scalar_encode": (83, ["*"]),
    "scalar_rounding": (5, ["f8e4m3fn/*", "f4e2m1/*"]),
    "half": (97, ["x", "*/numpy", "*/torch", "*/ml_dtypes"]),
    "mx_torchao": (1, ["x/main", "x/edge", "f4e2m1/floor/[me]???/*", "f4e2m1/even/[me]???/scale", "f4e2m1/even/[me]???/data",
                       "f8e4m3fn/rceil/[me]???/scale", "f8e4m3fn/rceil/[me]???/data"]),
    "nvfp4_torchao": (1, ["*"]),
    "nvfp4_ct": (1, ["*"]),
    "fp4_modelopt": (1, ["*"]),
    "int_ct": (1, ["w", "int4/*sym/group/[!d]*", "fp8/channel/[!d]*", "bf16/*"]),
    "int_gptq_awq": (1, ["w", "gptq/b4/asym/*", "gptq/b4/sym_mse/*", "awq/b4/zp/*"]),
    "onnx_qdq": (1, ["x", "*int4/*", "uint4_pack/*", "f8e4m3fn/*"]),
    "nf4_bnb": (1, ["*"]),
    "bfp_microxcaling": (1, ["x", "b32/m4/*", "b32/shared_exp"]),
    "packing_ct": (1, ["*"]),
}


def read(path):
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    arrays = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        arrays[name] = (entry["dtype"], entry["shape"], data[8 + length + begin : 8 + length + end])
    return arrays, metadata


def write(path, arrays, metadata):
    header, offset = {"__metadata__": metadata}, 0
    # The widest elements first, so that all of them are aligned.
    width = {"F64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "I16": 2, "U16": 2, "I8": 1, "U8": 1}
    order = sorted(arrays, key=lambda name: (-width[arrays[name][0]], name))
    for name in order:
        dtype, shape, data = arrays[name]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(arrays[name][2] for name in order))


def every(step, array):
    dtype, shape, data = array
    if step == 1:
        return array
    count = shape[0]
    width = len(data) // count
    kept = [data[i * width : (i + 1) * width] for i in range(0, count, step)]
    return dtype, [len(kept)], b"".join(kept)


def main():
    full = pathlib.Path(sys.argv[1])
    out = pathlib.Path(__file__).parent / "vectors"
    out.mkdir(exist_ok=True)
    total = 0
    for name, (step, patterns) in PLAN.items():
        arrays, metadata = read(full / f"{name}.safetensors")
        kept = {k: every(step, v) for k, v in arrays.items() if any(fnmatch.fnmatchcase(k, p) for p in patterns)}
        write(out / f"{name}.safetensors", kept, metadata)
        size = (out / f"{name}.safetensors").stat().st_size
        total += size
        print(f"{name}: {len(kept)} of {len(arrays)} arrays, {size} bytes")
    print(f"{total} bytes")


main()
