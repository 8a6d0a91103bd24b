"""Peak memory of `coeff_attention`, forward and backward, above its inputs; one JSON line.

python benchmarks/attention_memory.py --length 16384
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time

import torch

from coeff_tuning import __version__, coeff_attention


def peak_mib() -> float:
    """Largest resident memory of this process so far, in MiB (Linux counts in KiB, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if platform.system() == "Darwin" else peak / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=16384, help="tokens")
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--head_size", type=int, default=64)
    parser.add_argument("--backend", default="chunked", choices=["chunked", "reference"])
    arguments = parser.parse_args()

    shape = (1, arguments.heads, arguments.length, arguments.head_size)
    query, key, value = (torch.randn(shape, requires_grad=True) for _ in range(3))
    coeff = torch.randn(arguments.heads, arguments.heads, requires_grad=True)
    upstream = torch.randn(shape)
    small = [x[:, :, :64].detach().requires_grad_() for x in (query, key, value)]
    coeff_attention(*small, coeff, backend=arguments.backend).sum().backward()  # libraries and thread pools
    before, started = peak_mib(), time.perf_counter()
    coeff_attention(query, key, value, coeff, backend=arguments.backend).backward(upstream)
    row = {
        **vars(arguments),
        "dtype": "float32",
        "peak_above_inputs_mib": round(peak_mib() - before, 1),
        "one_array_of_maps_mib": arguments.heads * arguments.length**2 * 4 / 2**20,
        "seconds": round(time.perf_counter() - started, 2),
        "machine": f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "coeff_tuning": __version__,
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
