#!/usr/bin/env python3
"""What simple models score on the texts that the small Llama is judged by, in bits per byte.

    python3 baselines.py --data enwik8.gz --text heldout.txt

Byte n-grams are counted on the 90 MB training split and smoothed by interpolation with a Dirichlet prior:

    p(c | h) = (count(h, c) + s * p(c | h without its first byte)) / (count(h) + s),   p(c) = (count(c) + 1) / (N + 256)

with the strength s chosen on the validation split from powers of two. A text is one sequence; its first bytes use
the shorter contexts. gzip and xz start from nothing and see only the text itself. Needs numpy.
"""
import argparse
import gzip
import lzma

import numpy as np


def counts(data, order):
    """Occurrences of each sequence of `order` bytes, as an array of shape (256,) * order."""
    total = np.zeros(256 ** order, np.int64)
    step = 1 << 22
    for i in range(0, len(data) - order + 1, step):
        part = data[i:i + step + order - 1].astype(np.int64)
        code = np.zeros(len(part) - order + 1, np.int64)
        for k in range(order):
            code = code * 256 + part[k:k + len(code)]
        total += np.bincount(code, minlength=len(total))
    return total.reshape((256,) * order)


def smooth(count, lower, strength):
    """The probability table of one order from its counts and the table of the order below."""
    return (count + strength * lower) / (count.sum(-1, keepdims=True) + strength)


def bits(text, tables):
    """Bits per byte of a text under the highest order of `tables` (orders 1, 2, ...)."""
    index = [text[i:] for i in range(len(tables))]
    n = len(index[-1])
    p = tables[-1][tuple(x[:n] for x in index)]
    nats = -np.log(p).sum()
    for order in range(1, len(tables)):
        nats -= np.log(tables[order - 1][tuple(int(x) for x in text[:order])])
    return nats / len(text) / np.log(2)


def best(valid, tables, count):
    """Append the next order's table, smoothed with the strength that suits the validation split best."""
    found = min((bits(valid, tables + [smooth(count, tables[-1], 2.0 ** e)]), 2.0 ** e) for e in range(-2, 15))
    return tables + [smooth(count, tables[-1], found[1])], found[1]


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--data", required=True, help="enwik8 or enwik8.gz")
    p.add_argument("--text", help="a further text to score, heldout.txt")
    a = p.parse_args()

    with (gzip.open if a.data.endswith(".gz") else open)(a.data, "rb") as f:
        data = np.frombuffer(f.read(), np.uint8)
    train, valid, test = data[:90_000_000], data[90_000_000:95_000_000], data[95_000_000:]
    texts = {"validation": valid, "test": test}
    if a.text:
        texts[a.text] = np.fromfile(a.text, np.uint8)

    one = counts(train, 1)
    tables = [(one + 1) / (one.sum() + 256)]
    rows = [("unigram bytes", [bits(t, tables) for t in texts.values()])]
    for order, name in ((2, "bigram"), (3, "trigram")):
        tables, strength = best(valid, tables, counts(train, order))
        rows.append((f"{name} (s = {strength:g})", [bits(t, tables) for t in texts.values()]))
    rows.append(("gzip -9", [8 * len(gzip.compress(t.tobytes(), 9)) / len(t) for t in texts.values()]))
    rows.append(("xz -9e", [8 * len(lzma.compress(t.tobytes(), preset=9 | lzma.PRESET_EXTREME)) / len(t)
                            for t in texts.values()]))

    print("| model | " + " | ".join(f"{n} ({len(t):,} bytes)" for n, t in texts.items()) + " |")
    print("| --- |" + " ---: |" * len(texts))
    for name, figures in rows:
        print(f"| {name} | " + " | ".join(f"{x:.3f}" for x in figures) + " |")


if __name__ == "__main__":
    main()
