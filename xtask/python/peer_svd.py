#!/usr/bin/env python3
"""Times scikit-learn's randomized singular values beside `cargo bench --workspace --bench svd`.

    pip install numpy scikit-learn threadpoolctl && python3 xtask/python/peer_svd.py

The 128 and 512 largest of a 4096 x 4096 matrix in f32, ten columns more, two power iterations, one thread; CPU seconds, the
least of three runs.
"""

import time

import numpy as np
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits


def main():
    a = np.random.default_rng(0).standard_normal((4096, 4096)).astype(np.float32)
    with threadpool_limits(1):
        for rank in (128, 512):
            best = float("inf")
            for _ in range(3):
                start = time.process_time()
                randomized_svd(a, rank, n_oversamples=10, n_iter=2, random_state=0)
                best = min(best, time.process_time() - start)
            print(f"rank {rank}: {best:.2f} s", flush=True)


if __name__ == "__main__":
    main()
