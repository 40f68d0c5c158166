#!/usr/bin/env python3
"""Cut the held-out demo text: whole consecutive articles out of the test split of enwik8.

    python3 heldout.py --data enwik8.gz --out heldout.txt

The test split is the last 5 MB, which train.py never trains on. An article whose last edit was anonymous is left
out, since the dump then names an IP address. The script also counts how many of the text's longer lines occur in the
training split all the same.
"""
import argparse
import gzip

SPLIT = 95_000_000


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--data", required=True, help="enwik8 or enwik8.gz")
    p.add_argument("--out", default="heldout.txt")
    p.add_argument("--first", default="Isotope", help="title of the first article")
    p.add_argument("--last", default="Indiana Jones", help="title of the last article")
    p.add_argument("--line", type=int, default=64, help="bytes from which on a line counts as long")
    a = p.parse_args()

    with (gzip.open if a.data.endswith(".gz") else open)(a.data, "rb") as f:
        data = f.read()
    test = data[SPLIT:]

    def page(title):
        at = test.index(b"    <title>%s</title>\n" % title.encode())
        return test.rindex(b"  <page>\n", 0, at), test.index(b"  </page>\n", at) + len(b"  </page>\n")

    end = b"  </page>\n"
    pages = test[page(a.first)[0]:page(a.last)[1]].split(end)[:-1]
    text = b"".join(p + end for p in pages if b"<ip>" not in p)
    text.decode("utf-8")  # fails on a cut character
    with open(a.out, "wb") as f:
        f.write(text)

    seen = set(data[:90_000_000].split(b"\n"))
    lines = [line for line in text.split(b"\n") if len(line) >= a.line]
    known = [line for line in lines if line in seen]
    print(f"{a.out}: {len(text):,} bytes; of {len(lines)} lines of at least {a.line} bytes, "
          f"{len(known)} occur in the training split")
    for line in known:
        print("  ", line.decode()[:100])


if __name__ == "__main__":
    main()
