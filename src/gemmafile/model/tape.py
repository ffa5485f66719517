"""The tape: the forward pass recorded once, as about a dozen kinds of operation with their shapes.

`gemma.py` and `llama.py` call the methods of `Tape`; nothing is computed, each call appends one `Op`.
A backend replays the list for every pass. A pass has T rows (tokens); every `Value` is float32[T, width]
until `take_outputs`, after which it has one row for each row whose logits are wanted, or two (`Split`). That is behind
the last attention: what follows it in the last layer does a row for itself, so nobody misses the others.

Values are written once. `add` may reuse the memory of its first argument: the planner in a backend
decides, the tape only states who reads what.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from gemmafile.model.config import Rope
from gemmafile.model.weights import Weight


@dataclass(frozen=True, slots=True)
class Value:
    """float32[T, width]; `name` is what traces and comparisons call it, e.g. "blk.0.attn_q".

    `on_outputs`  one row for each wanted row of logits, not for each token · `parts`  rows for each of these
    """

    id: int
    width: int
    name: str
    on_outputs: bool = False
    parts: int = 1


@dataclass(frozen=True, slots=True)
class Embed:
    """out = dequantised rows of `table` for the pass's token ids, times `scale`."""

    table: Weight
    scale: float
    out: Value


@dataclass(frozen=True, slots=True)
class Norm:
    """out = x / sqrt(mean(x²) + eps) * weight, over groups of `len(weight)` (the row, or each head)."""

    x: Value
    weight: Weight
    eps: float
    out: Value


@dataclass(frozen=True, slots=True)
class MatMul:
    """outs[i] = x · weights[i]ᵀ; one pass over the activations for all of them."""

    x: Value
    weights: tuple[Weight, ...]
    outs: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Rotate:
    """out = x with rotary positions applied to each head of `head_dim`."""

    x: Value
    rope: Rope
    head_dim: int
    out: Value


@dataclass(frozen=True, slots=True)
class Attention:
    """Stores k and v at the rows' positions, then out = softmax(cap(q·kᵀ·scale) + mask)·v for each head.

    `layer`  index into the KV cache · `window`  positions seen, itself included, 0: all · `softcap`  0: none
    """

    q: Value
    k: Value
    v: Value
    layer: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    scale: float
    window: int
    softcap: float
    out: Value


@dataclass(frozen=True, slots=True)
class Gate:
    """out = activation(gate) * up; activation is "gelu" (tanh form) or "silu"."""

    gate: Value
    up: Value
    activation: str
    out: Value


@dataclass(frozen=True, slots=True)
class Add:
    """out = x + y."""

    x: Value
    y: Value
    out: Value


@dataclass(frozen=True, slots=True)
class TakeOutputs:
    """out = the rows of x whose logits are wanted."""

    x: Value
    out: Value


@dataclass(frozen=True, slots=True)
class Split:
    """Rows 2i and 2i + 1 of out: row i of x, and what is lost of it when it is rounded for products with `weight`."""

    x: Value
    weight: Weight
    out: Value


@dataclass(frozen=True, slots=True)
class Join:
    """out[i] = x[2i] + x[2i + 1]."""

    x: Value
    out: Value


@dataclass(frozen=True, slots=True)
class SoftCap:
    """out = cap * tanh(x / cap)."""

    x: Value
    cap: float
    out: Value


Op: TypeAlias = Embed | Norm | MatMul | Rotate | Attention | Gate | Add | TakeOutputs | Split | Join | SoftCap


def reads(op: Op) -> tuple[Value, ...]:
    """The values an operation reads."""
    match op:
        case Embed():
            return ()
        case Attention():
            return op.q, op.k, op.v
        case Gate():
            return op.gate, op.up
        case Add():
            return op.x, op.y
        case _:
            return (op.x,)


def writes(op: Op) -> tuple[Value, ...]:
    """The values an operation writes."""
    return op.outs if isinstance(op, MatMul) else (op.out,)


def hidden_value(tape: Tape) -> Value:
    """The hidden state after the last norm, one row for each output: what the output matrix multiplies."""
    return next(op.out for op in reversed(tape.ops) if isinstance(op, Norm))


@dataclass
class Tape:
    """Records operations; see the module's head."""

    ops: list[Op] = field(default_factory=list)
    n_values: int = 0
    prefix: str = ""
    adapters: Mapping[str, Sequence[tuple[Weight, Weight]]] = field(default_factory=dict)
    """LoRA: the name of a matrix -> its pairs (A, B), which are added behind its product (`adapters.py`)."""
    has_fine_products: bool = True
    """False: `fine_matmul` is `matmul`."""

    def layer(self, index: int) -> None:
        """Names of the following values begin with "blk.{index}."; a negative index ends that."""
        self.prefix = f"blk.{index}." if index >= 0 else ""

    def _value(self, name: str, width: int, *sources: Value, parts: int | None = None) -> Value:
        self.n_values += 1
        parts = max((s.parts for s in sources), default=1) if parts is None else parts
        return Value(self.n_values - 1, width, self.prefix + name, any(s.on_outputs for s in sources), parts)

    def embed(self, table: Weight, scale: float) -> Value:
        out = self._value("embedding", table.shape[1])
        self.ops.append(Embed(table, scale, out))
        return out

    def rmsnorm(self, x: Value, weight: Weight, eps: float) -> Value:
        out = self._value(_short(weight), x.width, x)
        self.ops.append(Norm(x, weight, eps, out))
        return out

    def matmul(self, x: Value, *weights: Weight) -> tuple[Value, ...]:
        outs = tuple(self._value(_short(w), w.shape[0], x) for w in weights)
        self.ops.append(MatMul(x, weights, outs))
        return tuple(self._adapt(x, w, out) for w, out in zip(weights, outs, strict=True)) if self.adapters else outs

    def _adapt(self, x: Value, weight: Weight, out: Value) -> Value:
        """out + B (A x) for each adapter of the weight."""
        for a, b in self.adapters.get(weight.name, ()):
            low = self._value(_short(a), a.shape[0], x)
            high = self._value(_short(b), b.shape[0], x)
            self.ops += [MatMul(x, (a,), (low,)), MatMul(low, (b,), (high,))]
            out = self.add(out, high, f"{_short(weight)}_adapted")
        return out

    def rotate(self, x: Value, rope: Rope, head_dim: int, name: str) -> Value:
        out = self._value(name, x.width, x)
        self.ops.append(Rotate(x, rope, head_dim, out))
        return out

    def attention(
        self, q: Value, k: Value, v: Value, *, layer: int, n_heads: int, n_kv_heads: int, scale: float,
        window: int, softcap: float,
    ) -> Value:  # fmt: skip
        out = self._value("attention", q.width, q)
        head_dim = q.width // n_heads
        self.ops.append(Attention(q, k, v, layer, n_heads, n_kv_heads, head_dim, scale, window, softcap, out))
        return out

    def gate(self, gate: Value, up: Value, activation: str) -> Value:
        out = self._value("ffn_gated", gate.width, gate)
        self.ops.append(Gate(gate, up, activation, out))
        return out

    def add(self, x: Value, y: Value, name: str) -> Value:
        out = self._value(name, x.width, x)
        self.ops.append(Add(x, y, out))
        return out

    def take_outputs(self, x: Value) -> Value:
        self.n_values += 1
        out = Value(self.n_values - 1, x.width, f"{x.name}_outputs", on_outputs=True)
        self.ops.append(TakeOutputs(x, out))
        return out

    def fine_matmul(self, x: Value, *weights: Weight) -> tuple[Value, ...]:
        """x · weightᵀ for each weight, with x to about 15 bits where the format's kernels round activations to 8.

        What is lost in rounding goes through the same kernel as a second row; the weights are read once for both.
        For products whose rounding is heard in the logits more than their time is felt: docs/decisions.md.
        """
        if not self.has_fine_products or all(w.format.name in ("F32", "F16", "BF16") for w in weights):
            return self.matmul(x, *weights)
        if len({w.format.name for w in weights}) > 1:  # what is lost depends on the format
            return tuple(out for w in weights for out in self.fine_matmul(x, w))
        rows = self._value(_short(weights[0]) + "_parts", x.width, x, parts=2)
        self.ops.append(Split(x, weights[0], rows))
        products = tuple(self._value(_short(w) + "_products", w.shape[0], rows) for w in weights)
        self.ops.append(MatMul(rows, weights, products))
        outs = tuple(self._value(_short(w), w.shape[0], x, parts=1) for w in weights)
        self.ops += [Join(product, out) for product, out in zip(products, outs, strict=True)]
        return tuple(self._adapt(x, w, out) for w, out in zip(weights, outs, strict=True))

    def softcap(self, x: Value, cap: float) -> Value:
        out = self._value("logits", x.width, x)
        self.ops.append(SoftCap(x, cap, out))
        return out


def _short(weight: Weight) -> str:
    """ "blk.0.attn_q.weight" -> "attn_q": the layer is in the prefix already."""
    name = weight.name.removesuffix(".weight")
    return name.split(".", 2)[2] if name.startswith("blk.") else name
