#!/usr/bin/env python3
"""Times a mixture of experts in ggml, on the shapes and numbers of rows of `cargo bench --workspace --bench grouped`.

    pip install numpy ggml-python && python3 xtask/python/peer_moe.py THREADS

64 experts of 1408 x 2048, eight a token, chosen with weights that fall as 1/(e + 4); weights in q4_0, repacked where the
processor has kernels for that, products by `mul_mat_id`. Prints milliseconds, the least of several runs, and the largest
error relative to products in f32.
"""

import ctypes
import pathlib
import sys
import time

import ggml
import numpy as np

FEATURES, OUTPUTS, EXPERTS, TOP_K = 2048, 1408, 64, 8
ROUNDS = {1: 9, 8: 9, 64: 5, 1024: 2}


def repack_buffer():
    """The type of buffers whose weights are rearranged; the header declares it for C++ only."""
    library = ctypes.CDLL(str(pathlib.Path(ggml.__file__).parent / "lib" / "libggml-cpu.so"))
    find = library._Z35ggml_backend_cpu_repack_buffer_typev
    find.restype = ctypes.c_void_p
    return ctypes.cast(find(), ctypes.c_void_p)


def choices(tokens):
    """The experts of each token, dealt out so that none has one twice."""
    weights = 1.0 / (np.arange(EXPERTS) + 4)
    left, experts = tokens * TOP_K, []
    for expert, share in enumerate(np.ceil(left * weights / weights.sum()).astype(int)):
        count = min(share, left, tokens)
        experts += [expert] * count
        left -= count
    experts += [EXPERTS - 1] * left
    place = np.arange(tokens * TOP_K)
    return np.array(experts, np.int32)[place % TOP_K * tokens + place // TOP_K].reshape(tokens, TOP_K)


def pointer(array):
    return array.ctypes.data_as(ctypes.c_void_p)


def measure(tokens, threads):
    params = ggml.ggml_init_params(mem_size=1 << 20, mem_buffer=None, no_alloc=True)
    weights, graph_context = ggml.ggml_init(params), ggml.ggml_init(params)
    kind = ggml.GGML_TYPE_Q4_0
    w = ggml.ggml_new_tensor_3d(weights, kind, FEATURES, OUTPUTS, EXPERTS)
    x = ggml.ggml_new_tensor_3d(graph_context, ggml.GGML_TYPE_F32, FEATURES, 1, tokens)
    ids = ggml.ggml_new_tensor_2d(graph_context, ggml.GGML_TYPE_I32, TOP_K, tokens)
    y = ggml.ggml_mul_mat_id(graph_context, w, x, ids)
    graph = ggml.ggml_new_graph(graph_context)
    ggml.ggml_build_forward_expand(graph, y)
    backend = ggml.ggml_backend_cpu_init()
    ggml.ggml_backend_cpu_set_n_threads(backend, threads)
    buffers = [
        ggml.ggml_backend_alloc_ctx_tensors_from_buft(weights, repack_buffer()),
        ggml.ggml_backend_alloc_ctx_tensors(graph_context, backend),
    ]
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((OUTPUTS, FEATURES)).astype(np.float32)
    one = np.zeros(ggml.ggml_nbytes(w) // EXPERTS, np.uint8)
    floats = dense.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    ggml.ggml_quantize_chunk(kind, floats, pointer(one), 0, OUTPUTS, FEATURES, None)
    inputs = rng.standard_normal((tokens, FEATURES)).astype(np.float32)
    for tensor, values in ((w, np.tile(one, EXPERTS)), (x, inputs), (ids, choices(tokens))):
        ggml.ggml_backend_tensor_set(tensor, pointer(values), 0, values.nbytes)
    best = float("inf")
    for _ in range(ROUNDS[tokens]):
        start = time.perf_counter()
        ggml.ggml_backend_graph_compute(backend, graph)
        best = min(best, time.perf_counter() - start)
    found = np.zeros((tokens, TOP_K, OUTPUTS), np.float32)
    ggml.ggml_backend_tensor_get(y, pointer(found), 0, found.nbytes)
    wanted = inputs @ dense.T
    error = np.abs(found - wanted[:, None]).max() / np.abs(wanted).max()
    for buffer in buffers:
        ggml.ggml_backend_buffer_free(buffer)
    ggml.ggml_free(weights)
    ggml.ggml_free(graph_context)
    return 1e3 * best, error


def main():
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    for tokens in ROUNDS:
        milliseconds, error = measure(tokens, threads)
        print(f"{tokens} tokens, {threads} threads: {milliseconds:.1f} ms, error {error:.3f}", flush=True)


if __name__ == "__main__":
    main()
