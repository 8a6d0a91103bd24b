"""The attention calls that are measured: names or sizes from the command line, goals, FLOPs."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

import torch

from coeff_tuning.errors import BenchError

FORWARD, BACKWARD = "forward", "forward+backward"
PASSES = (FORWARD, BACKWARD)
_KEYS = {"B": "batch", "H": "heads", "kv": "kv_heads", "L": "length", "S": "source", "E": "head_size"}
_EXAMPLE = "B=1,H=12,L=1024 with S=.., E=.., kv=.. and causal as further parts"


@dataclass(frozen=True)
class Shape:
    """One attention call; values have the head size of queries and keys.

    Attributes:
        name: name in the table, or the sizes as text.
        batch: B.
        heads: H, query heads.
        kv_heads: heads of key and value.
        length: L, queries.
        source: S, keys.
        head_size: E.
        is_causal: query `i` sees keys `0..i`.
        dtype: of query, key and value.
        device: "cpu" or "cuda".
        goals: at most this multiple of the time of torch's own attention, by pass.
    """

    name: str
    batch: int
    heads: int
    kv_heads: int
    length: int
    source: int
    head_size: int = 64
    is_causal: bool = False
    dtype: str = "float32"
    device: str = "cpu"
    goals: dict[str, float] = field(default_factory=dict)

    @property
    def passes(self) -> tuple[str, ...]:
        """What is measured; a single query is a decoding step, which has no backward pass."""
        return PASSES if self.length > 1 else (FORWARD,)

    @property
    def torch_dtype(self) -> torch.dtype:
        """Dtype of query, key and value."""
        return getattr(torch, self.dtype)  # type: ignore[no-any-return]

    @property
    def text(self) -> str:
        """The sizes, as the command line takes them."""
        parts = [f"B={self.batch}", f"H={self.heads}", f"L={self.length}"]
        parts += [f"S={self.source}"] if self.source != self.length else []
        parts += [f"E={self.head_size}"] if self.head_size != 64 else []
        parts += [f"kv={self.kv_heads}"] if self.kv_heads != self.heads else []
        return ",".join([*parts, *(["causal"] if self.is_causal else [])])

    @property
    def pairs(self) -> int:
        """Query-key pairs of one head that a mask leaves."""
        if not self.is_causal:
            return self.length * self.source
        full = min(self.length, self.source)
        return full * (full + 1) // 2 + (self.length - full) * self.source

    def flops(self, measured: str, *, mixed: bool = True) -> int:
        """Floating point operations that the formula needs; a kernel that computes scores again needs more.

            forward    2 * B * H * pairs * (2 E + H)        # scores, mix, product with values
            backward   2 * B * H * pairs * (5 E + 3 H)      # scores again; dvalue, dmixed, dquery, dkey; mix again,
                                                            # dcoeff, dmaps

        Args:
            measured: one of `PASSES`.
            mixed: False leaves the terms in `H` out: torch's own attention.

        Returns:
            The number of operations.
        """
        products, mixes = (2, 1) if measured == FORWARD else (7, 4)
        mixing = mixes * self.heads if mixed else 0
        return 2 * self.batch * self.heads * self.pairs * (products * self.head_size + mixing)

    def ratio_limit(self, measured: str) -> float:
        """FLOPs over those of torch's own attention: `1 + H/(2E)` forward, `1 + 4H/(7E)` with backward."""
        return self.flops(measured) / self.flops(measured, mixed=False)

    @property
    def maps_mib(self) -> float:
        """One array of all attention maps, in the float32 (or float64) that they are computed in."""
        itemsize = 8 if self.dtype == "float64" else 4
        return self.batch * self.heads * self.length * self.source * itemsize / 2**20

    def scaled_down(self) -> Shape:
        """The same call with few samples and positions: all heads and the head size stay."""
        length, source = min(self.length, 131), min(self.source, 131 if self.source == self.length else 149)
        return replace(self, batch=min(self.batch, 2), length=length, source=source)


def _goals(forward: float, backward: float | None = None) -> dict[str, float]:
    return {FORWARD: forward} if backward is None else {FORWARD: forward, BACKWARD: backward}


TABLE = {
    shape.name: shape
    for shape in (
        Shape("vit", 16, 12, 12, 197, 197, goals=_goals(1.15, 1.30)),
        Shape("clip-l", 8, 16, 16, 577, 577, goals=_goals(1.20, 1.35)),
        Shape("len-1024", 1, 12, 12, 1024, 1024, goals=_goals(1.25, 1.40)),
        Shape("len-4096", 1, 12, 12, 4096, 4096, goals=_goals(1.30, 1.40)),
        Shape("len-4096-causal", 1, 12, 12, 4096, 4096, is_causal=True, goals=_goals(1.35, 1.50)),
        Shape("decode", 1, 9, 3, 1, 2048, goals=_goals(1.30)),
        Shape("gpu-len-4096", 8, 12, 12, 4096, 4096, 64, False, "bfloat16", "cuda", _goals(2.0, 2.5)),
        Shape("gpu-vit", 64, 12, 12, 197, 197, 64, False, "bfloat16", "cuda", _goals(1.5, 2.0)),
        Shape("gpu-causal", 1, 32, 8, 8192, 8192, 128, True, "bfloat16", "cuda", _goals(2.2, 2.8)),
    )
}
SWEEPS = {
    "sweep-length": [f"B=1,H=12,L={length}" for length in (256, 512, 1024, 2048, 4096, 8192)],
    "sweep-heads": [f"B=1,H={heads},L=512" for heads in (4, 8, 16, 32, 64)],
    "sweep-batch": [f"B={batch},H=12,L=256" for batch in (1, 2, 4, 8, 16)],
}


def parse_shapes(texts: list[str], device: str, dtype: str | None) -> list[Shape]:
    """Shapes by name or by size.

    Args:
        texts: names of `TABLE` or `SWEEPS`, or sizes. Empty: those of the table for this device.
        device: "cpu" or "cuda".
        dtype: instead of that of the table (float32 on the CPU, bfloat16 on CUDA). Goals hold for the table's only.

    Returns:
        The shapes.

    Raises:
        BenchError: a name or a size is not known, or a shape is for another device.
    """
    if not texts:
        texts = [name for name, shape in TABLE.items() if shape.device == device]
    texts = [part for text in texts for part in SWEEPS.get(text, [text])]
    shapes = []
    for text in texts:
        shape = TABLE[text] if text in TABLE else _parse_sizes(text, device)
        if shape.device != device:
            raise BenchError(
                f"shape {text!r} is for {shape.device}, and the device is {device}; pass its sizes instead"
            )
        if dtype is not None and dtype != shape.dtype:
            shape = replace(shape, dtype=dtype, goals={})
        shapes.append(shape)
    return shapes


def _parse_sizes(text: str, device: str) -> Shape:
    if "=" not in text:
        raise BenchError(f"shape must be one of {', '.join([*TABLE, *SWEEPS])}, or sizes like {_EXAMPLE}; got {text!r}")
    sizes: dict[str, int] = {}
    is_causal = False
    for part in text.split(","):
        if part == "causal":
            is_causal = True
            continue
        key, _, number = part.partition("=")
        if key not in _KEYS or _KEYS[key] in sizes:
            raise BenchError(f"shape {text!r} must name each of {', '.join(_KEYS)} at most once; got {part!r}")
        if not re.fullmatch("[1-9][0-9]*", number):
            raise BenchError(f"shape {text!r} must have whole numbers above 0; got {part!r}")
        sizes[_KEYS[key]] = int(number)
    missing = [key for key in ("B", "H", "L") if _KEYS[key] not in sizes]
    if missing:
        raise BenchError(f"shape {text!r} must say {', '.join(missing)}, like {_EXAMPLE}")
    sizes = {"kv_heads": sizes["heads"], "source": sizes["length"], "head_size": 64, **sizes}
    heads = sizes["heads"]
    if heads % sizes["kv_heads"]:
        raise BenchError(f"shape {text!r} must have a multiple of kv as H; got H={heads} for kv={sizes['kv_heads']}")
    shape = Shape(
        name="",
        batch=sizes["batch"],
        heads=sizes["heads"],
        kv_heads=sizes["kv_heads"],
        length=sizes["length"],
        source=sizes["source"],
        head_size=sizes["head_size"],
        is_causal=is_causal,
        dtype="float32" if device == "cpu" else "bfloat16",
        device=device,
    )
    return replace(shape, name=shape.text)
