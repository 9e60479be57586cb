#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Takes the digits data set out of a scikit-learn wheel: 1,797 rows of 64 pixels (0 to 16) and the digit.

    tools/unpack_digits.py WHEEL OUTPUT.csv
"""
import gzip
import os
import sys
import zipfile

MEMBER = "sklearn/datasets/data/digits.csv.gz"
ROWS, COLUMNS = 1797, 65


def read_rows(wheel):
    with zipfile.ZipFile(wheel) as archive:
        text = gzip.decompress(archive.read(MEMBER)).decode("ascii")
    return [[int(float(number)) for number in line.split(",")] for line in text.splitlines() if line]


def check(rows):
    if len(rows) != ROWS or any(len(row) != COLUMNS for row in rows):
        raise SystemExit(f"{MEMBER}: {len(rows)} rows, not {ROWS} rows of {COLUMNS} numbers")
    if not all(0 <= pixel <= 16 for row in rows for pixel in row[:-1]) or not all(0 <= row[-1] <= 9 for row in rows):
        raise SystemExit(f"{MEMBER}: a pixel outside 0..16 or a digit outside 0..9")


def main():
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    wheel, output = sys.argv[1:]
    rows = read_rows(wheel)
    check(rows)
    # Written aside and renamed: an interrupted set-up leaves no half file behind.
    with open(output + ".part", "w", encoding="ascii") as file:
        file.writelines(",".join(map(str, row)) + "\n" for row in rows)
    os.replace(output + ".part", output)


if __name__ == "__main__":
    main()
