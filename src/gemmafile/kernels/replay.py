"""The CPU replay: a tape bound to memory once, then walked by all threads for every pass.

Binding gives each value of the tape a place in the arena (places are used again as soon as their value has been
read for the last time), turns each operation into one or more records that a kernel reads (`ops.py`), and finds
the kernels' machine code. A pass fills in what changes (rows, positions, pages), embeds the tokens and starts the
walk; no Python runs between operations. Twin and judge: `reference.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from gemmafile.kernels import (
    amx,
    attention,
    attention_store,
    batch_amx,
    batch_bf16,
    bf16,
    bf16_amx,
    bf16_floats,
    packing,
    pointwise,
    quads,
    quads_amx,
    streams,
    superblocks,
    superblocks_amx,
)
from gemmafile.kernels.arena import Arena, aligned_bytes, aligned_rows, give_back
from gemmafile.kernels.attention_tasks import AttentionTasks
from gemmafile.kernels.backend import PEAK_GROUP, Told, Trace
from gemmafile.kernels.cache import KVCache
from gemmafile.kernels.compile import Kernels
from gemmafile.kernels.formats_on import format_module
from gemmafile.kernels.ops import (
    BARRIER,
    KERNEL,
    N_OPS,
    N_OUTPUT_PARTS,
    N_OUTPUTS,
    N_ROW_PARTS,
    N_ROWS,
    N_THREADS,
    NEXT,
    OP_BYTES,
    OPS,
    OUTPUTS,
    POSITIONS,
    ROW_TABLES,
    ROWS,
    SCRATCH,
    SCRATCH_BYTES,
    SHARED_BYTES,
    YIELD,
    float_bits,
)  # fmt: skip
from gemmafile.kernels.packing import allocated_tokens, packed_bytes
from gemmafile.kernels.products import PRODUCTS, Product, size_class
from gemmafile.kernels.rotary import inverse_frequencies, rotary_table
from gemmafile.kernels.threads import Team, yield_address
from gemmafile.model.batch import Batch
from gemmafile.model.config import ModelConfig, Rope
from gemmafile.model.tape import (
    Add,
    Attention,
    Embed,
    Gate,
    Join,
    MatMul,
    Norm,
    Op,
    Rotate,
    SoftCap,
    Split,
    TakeOutputs,
    Tape,
    Value,
    hidden_value,
    writes,
)  # fmt: skip
from gemmafile.model.weights import ModelWeights, Weight


@dataclass(slots=True)
class Record:
    """One operation as a kernel sees it. `kernel` is for few rows; `several` and `many` are others for more, if any."""

    kernel: str
    fields: dict[int, int]
    rows: int = N_ROWS
    several: str | None = None
    many: str | None = None
    barrier: bool = True
    values: tuple[Value, ...] = ()

    def kernel_for(self, size: int) -> str:
        choices = (self.kernel, self.several, self.many)
        return next(kernel for kernel in choices[size::-1] if kernel is not None)

    @property
    def kernels(self) -> set[str]:
        return {kernel for kernel in (self.kernel, self.several, self.many) if kernel is not None}


@dataclass
class Rotation:
    """The angle tables of one kind of layer, filled for each pass."""

    inv_freq: np.ndarray
    cos: np.ndarray
    sin: np.ndarray


@dataclass
class Program:
    """Records with their kernels chosen, ready to be walked."""

    ops: np.ndarray
    starts: list[tuple[int, int, tuple[Value, ...]]] = field(default_factory=list)


class CpuReplay:
    """Replays a tape with compiled kernels. Not for several callers at once: the engine sees to that."""

    name = "cpu"

    def __init__(
        self, tape: Tape, config: ModelConfig, weights: ModelWeights, cache: KVCache,
        *, threads: int, threads_batch: int, max_rows: int, say: Callable[[str], None] | None = None,
    ):  # fmt: skip
        """threads  that compute a single row · threads_batch  that compute several"""
        self._threads, self._threads_batch = threads, threads_batch
        self.config, self.weights, self.cache, self.max_rows = config, weights, cache, max_rows
        self._has_unit = amx.is_ready()
        self._arena = Arena(tape, allocated_tokens(max_rows))
        self._packed = {
            kind: aligned_rows(size) for kind, size in _packed_sizes(tape, allocated_tokens(max_rows)).items()
        }
        self._rotations: dict[Rope, Rotation] = {}
        windows = [op.window for op in tape.ops if isinstance(op, Attention)]
        self._attention_tasks = AttentionTasks(cache, windows, max_rows)
        self._embed = next(op for op in tape.ops if isinstance(op, Embed))
        self._records = [record for op in tape.ops for record in self._records_of(op)]
        self._logits, self._hidden = writes(tape.ops[-1])[0], hidden_value(tape)
        self._peaks = self._add_peaks()
        self._has_peaks = False
        self._walking: np.ndarray | None = None
        self._kernels = Kernels(_kernel_names(self._records) | self._attention_tasks.all_kernels, say)
        self._programs: dict[tuple[int, ...], Program] = {}
        self._allocate_pass(max(threads, threads_batch))
        self._team = Team(max(threads, threads_batch), self._kernels["threads.walk"])

    def prepare(self, told: Told | None = None) -> None:
        """Be ready to be confined: kernels that are not there yet are compiled now, where somebody is told of it; else
        compilers are started, and they are compiled when they are needed."""
        names = _kernel_names(self._records) | self._attention_tasks.all_kernels
        if told is not None:
            self._kernels.prepare(names, told)
        self._kernels.be_confined(names)

    def rest(self) -> None:
        self._has_peaks = False
        memories = [*self._arena.buffers, *self._packed.values(), *self._attention_tasks.buffers, self._scratch]
        for memory in [*memories, self._peaks]:
            if memory is not None:
                give_back(memory)

    def n_walked(self) -> int:
        """Chunks that were taken, of the pass under way or of the last."""
        ops = self._walking
        return 0 if ops is None else int(ops[:, NEXT // 8].sum())

    # --- a pass -------------------------------------------------------------------------------------------------

    def run(self, batch: Batch, trace: Trace | None = None) -> np.ndarray:
        program = self._start_pass(batch)
        self._has_peaks = trace is None
        if trace is None:
            self._walk(program.ops)
        else:
            self._walk_traced(program, batch, trace)
        return self._arena.view(self._logits, len(batch.outputs))

    def peaks(self, n_outputs: int) -> np.ndarray | None:
        return self._peaks[:n_outputs] if self._has_peaks and self._peaks is not None else None

    def _add_peaks(self) -> np.ndarray | None:
        """One more record behind the tape's, for `peaks`; None where the vocabulary is no multiple of their groups."""
        width = self._logits.width
        if width % PEAK_GROUP:
            return None
        n = width // PEAK_GROUP
        found: np.ndarray = aligned_bytes(4 * n * self.max_rows).view(np.float32).reshape(self.max_rows, n)
        p, arena = pointwise, self._arena
        fields = {
            p.X: arena.address(self._logits), p.X_STRIDE: arena.stride(self._logits),
            p.OUT: found.ctypes.data, p.OUT_STRIDE: 4 * n, p.WIDTH: width,
        }  # fmt: skip
        self._records.append(Record("pointwise.peaks", fields, N_OUTPUTS))
        return found

    def run_hidden(self, batch: Batch) -> np.ndarray:
        program = self._start_pass(batch)
        end = next(end for _, end, values in program.starts if self._hidden in values)
        self._walk(program.ops[:end])
        return self._arena.view(self._hidden, len(batch.outputs))

    def _start_pass(self, batch: Batch) -> Program:
        """Fill in what changes from pass to pass; the operations to walk."""
        assert 0 < batch.n_rows <= self.max_rows
        with np.errstate(all="ignore"):  # weights may be infinite or NaN: the sampler says so, once
            self._fill_pass(batch)
        program = self._program(batch.n_rows, len(batch.outputs))
        program.ops[:, NEXT // 8] = 0
        return program

    def _walk(self, ops: np.ndarray) -> None:
        self._walking = ops
        self._shared[OPS // 8], self._shared[N_OPS // 8] = ops.ctypes.data, len(ops)
        n_threads = self._threads if self._shared[N_ROWS // 8] == 1 else self._threads_batch
        self._shared[N_THREADS // 8] = n_threads
        self._team.run(self._shared_address, n_threads)

    def _walk_traced(self, program: Program, batch: Batch, trace: Trace) -> None:
        trace(self._embed.out.name, self._arena.view(self._embed.out, batch.n_rows))
        for first, end, values in program.starts:
            self._walk(program.ops[first:end])
            for value in values:
                n = len(batch.outputs) if value.on_outputs else batch.n_rows
                trace(value.name, self._arena.view(value, value.parts * n))

    def _fill_pass(self, batch: Batch) -> None:
        n, shared = batch.n_rows, self._shared
        self._positions[:n] = batch.positions
        self._outputs[: len(batch.outputs)] = batch.outputs
        shared[N_ROWS // 8], shared[N_OUTPUTS // 8] = n, len(batch.outputs)
        shared[N_ROW_PARTS // 8], shared[N_OUTPUT_PARTS // 8] = 2 * n, 2 * len(batch.outputs)
        tables = np.ascontiguousarray(batch.page_tables, np.int32)
        self._tables = tables  # alive for the length of the pass
        addresses = tables.ctypes.data + tables.strides[0] * np.arange(len(tables), dtype=np.int64)
        self._row_tables[:n] = addresses[batch.sequences]
        self._attention_tasks.fill(batch, self._row_tables, self._threads if n == 1 else self._threads_batch)
        for rotation in self._rotations.values():
            cos, sin = rotary_table(rotation.inv_freq, batch.positions)
            rotation.cos[:n], rotation.sin[:n] = cos, sin
        self._embed_tokens(batch)

    def _embed_tokens(self, batch: Batch) -> None:
        table = self._embed.table
        rows = table.data.reshape(table.shape[0], -1)[batch.token_ids]
        out = self._arena.view(self._embed.out, batch.n_rows)
        np.multiply(format_module(table.format.name).dequantize(rows), np.float32(self._embed.scale), out=out)

    def _allocate_pass(self, threads: int) -> None:
        n = self.max_rows
        self._shared = aligned_bytes(SHARED_BYTES).view(np.int64)
        self._shared_address = self._shared.ctypes.data
        self._positions, self._outputs = np.zeros(n, np.int32), np.zeros(n, np.int32)
        self._row_tables = np.zeros(n, np.int64)
        group = self.config.n_heads // self.config.n_kv_heads
        products = (
            superblocks, quads, bf16, bf16_floats, superblocks_amx, quads_amx, bf16_amx, batch_amx, batch_bf16,
        )  # fmt: skip
        needs = (attention.scratch_bytes(group, self.cache.width), *(module.SCRATCH_NEEDED for module in products))
        scratch = -(-max(needs) // 4096) * 4096 + 128  # threads' scratch not at the same place in their pages
        self._scratch = aligned_bytes(scratch * threads)
        values = {
            YIELD: yield_address(), OUTPUTS: self._outputs.ctypes.data,
            SCRATCH: self._scratch.ctypes.data, SCRATCH_BYTES: scratch,
            POSITIONS: self._positions.ctypes.data, ROW_TABLES: self._row_tables.ctypes.data,
        }  # fmt: skip
        for at, value in values.items():
            self._shared[at // 8] = value

    def _program(self, n_rows: int, n_outputs: int) -> Program:
        counts = {N_ROWS: n_rows, N_OUTPUTS: n_outputs, N_ROW_PARTS: 2 * n_rows, N_OUTPUT_PARTS: 2 * n_outputs}
        sizes = {rows: size_class(n) for rows, n in counts.items()}
        tiles = self._attention_tasks.kernels(n_rows)
        key = (*sizes.values(), len(tiles))
        if key not in self._programs:
            self._programs[key] = self._choose_kernels(sizes, tiles)
        return self._programs[key]

    def _choose_kernels(self, sizes: dict[int, int], tiles: dict[int, str]) -> Program:
        """The records with the kernels for these size classes; `tiles` are those that attention calls."""
        ops = aligned_bytes(OP_BYTES * len(self._records)).view(np.int64).reshape(-1, OP_BYTES // 8)
        program = Program(ops)
        # Those of a single row too: it comes next, and one wait is better than two.
        names = {r.kernel_for(size) for r in self._records for size in (0, sizes[r.rows])}
        self._kernels.prepare(names | set(tiles.values()))
        self._attention_tasks.set_kernels({at: self._kernels[name] for at, name in tiles.items()})
        first = 0
        for i, record in enumerate(self._records):
            kernel = record.kernel_for(sizes[record.rows])
            fields = {KERNEL: self._kernels[kernel], BARRIER: int(record.barrier), ROWS: record.rows, **record.fields}
            for at, value in fields.items():
                ops[i, at // 8] = value
            if record.values:
                program.starts.append((first, i + 1, record.values))
                first = i + 1
        return program

    # --- binding ------------------------------------------------------------------------------------------------

    def _records_of(self, op: Op) -> list[Record]:
        """The records of one operation; the last one carries the values to show in a trace."""
        match op:
            case Embed():
                return []
            case Norm():
                records = [self._norm(op)]
            case MatMul():
                records = self._matmul(op)
            case Rotate():
                records = [self._rotate(op)]
            case Attention():
                records = self._attention(op)
            case Gate():
                fields = self._in_out(op.gate, op.out) | self._second(op.up)
                records = [Record(f"pointwise.{op.activation}", fields)]
            case Add():
                records = [Record("pointwise.add", self._in_out(op.x, op.out) | self._second(op.y))]
            case TakeOutputs():
                records = [Record("pointwise.take_outputs", self._in_out(op.x, op.out), N_OUTPUTS)]
            case Split():
                kind = PRODUCTS[op.weight.format.name].packing
                records = [Record(f"parts.split_{kind}", self._in_out(op.x, op.out))]
            case Join():
                records = [Record("parts.join", self._in_out(op.x, op.out))]
            case SoftCap():
                caps = {
                    pointwise.CAP: float_bits(op.cap),
                    pointwise.INVERSE_CAP: float_bits(float(np.float32(1.0 / op.cap))),
                }
                records = [Record("pointwise.softcap", self._in_out(op.x, op.out) | caps)]
        out = writes(op)[0]
        counts = (N_OUTPUTS, N_OUTPUT_PARTS) if out.on_outputs else (N_ROWS, N_ROW_PARTS)
        for record in records:
            record.rows = counts[out.parts - 1]
        records[-1].values = writes(op)
        return records

    def _in_out(self, x: Value, out: Value) -> dict[int, int]:
        arena = self._arena
        return {
            pointwise.X: arena.address(x), pointwise.X_STRIDE: arena.stride(x),
            pointwise.OUT: arena.address(out), pointwise.OUT_STRIDE: arena.stride(out), pointwise.WIDTH: x.width,
        }  # fmt: skip

    def _second(self, y: Value) -> dict[int, int]:
        return {pointwise.Y: self._arena.address(y), pointwise.Y_STRIDE: self._arena.stride(y)}

    def _norm(self, op: Norm) -> Record:
        own = {
            pointwise.WEIGHT: op.weight.address, pointwise.GROUP: op.weight.shape[0],
            pointwise.EPS: float_bits(op.eps),
        }  # fmt: skip
        return Record("pointwise.norm", self._in_out(op.x, op.out) | own)

    def _rotate(self, op: Rotate) -> Record:
        rotation = self._rotations.get(op.rope) or self._make_rotation(op.rope)
        own = {
            pointwise.HEAD_DIM: op.head_dim, pointwise.HALF: op.rope.dim // 2,
            pointwise.COS: rotation.cos.ctypes.data, pointwise.SIN: rotation.sin.ctypes.data,
        }  # fmt: skip
        kernel = "pointwise.rotate_interleaved" if op.rope.interleaved else "pointwise.rotate"
        return Record(kernel, self._in_out(op.x, op.out) | own)

    def _make_rotation(self, rope: Rope) -> Rotation:
        factors = None
        if rope.use_factors:
            assert self.weights.rope_freqs is not None
            factors = self.weights.rope_freqs.data.view("<f4")
        shape = (self.max_rows, rope.dim // 2)
        rotation = Rotation(
            inverse_frequencies(rope, factors), np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        )
        self._rotations[rope] = rotation
        return rotation

    def _matmul(self, op: MatMul) -> list[Record]:
        """Pack the activations for each kind of weights there is, then multiply; no waiting in between."""
        products = [PRODUCTS[w.format.name] for w in op.weights]
        records = [self._pack(op.x, p) for p in {p.packing: p for p in products if p.packing is not None}.values()]
        for weight, out in zip(op.weights, op.outs, strict=True):
            record = self._product(op.x, weight, out)
            record.barrier = weight is op.weights[-1]
            records.append(record)
        return records

    def _pack(self, x: Value, product: Product) -> Record:
        assert product.packing is not None
        fields = {
            packing.X: self._arena.address(x), packing.X_STRIDE: self._arena.stride(x),
            packing.PACKED: self._packed[product.packing].ctypes.data, packing.COLUMNS: x.width,
        }  # fmt: skip
        several = f"packing.{product.packing_batch}" if product.packing_batch and self._has_unit else None
        many = f"packing.{product.packing_unit}" if product.packing_unit and self._has_unit else None
        return Record(f"packing.{product.packing}", fields, several=several, many=many)

    def _product(self, x: Value, weight: Weight, out: Value) -> Record:
        product = PRODUCTS[weight.format.name]
        s, kind = streams, product.packing
        fields = {
            s.WEIGHTS: weight.address, s.ROW_BYTES: weight.row_bytes, s.N: weight.shape[0], s.COLUMNS: weight.shape[1],
            s.PACKED: self._packed[kind].ctypes.data if kind else self._arena.address(x),
            s.PACKED_STRIDE: 0 if kind else self._arena.stride(x),
            s.OUT: self._arena.address(out), s.OUT_STRIDE: self._arena.stride(out),
        }  # fmt: skip
        several = product.batch_unit if product.batch_unit and self._has_unit else product.matmul
        many = product.matmul_unit if self._has_unit else None
        return Record(product.matvec, fields, several=several, many=many)

    def _attention(self, op: Attention) -> list[Record]:
        a, cache, arena, tasks = attention, self.cache, self._arena, self._attention_tasks
        keys, values = cache.keys[op.layer], cache.values[op.layer]
        attend = {
            a.KEYS: keys.ctypes.data, a.VALUES: values.ctypes.data, a.Q: arena.address(op.q),
            a.Q_STRIDE: arena.stride(op.q), a.OUT: arena.address(op.out), a.OUT_STRIDE: arena.stride(op.out),
            a.SCALE: float_bits(op.scale), a.WINDOW: op.window, a.CAP: float_bits(op.softcap),
            a.INVERSE_CAP: float_bits(float(np.float32(1.0 / op.softcap)) if op.softcap else 0.0),
            a.TASKS: tasks.lists[op.window], a.SHAPE: tasks.shape,
        }  # fmt: skip
        stores = [self._store(op.k, keys, cache.kind_k, is_keys=True)]
        stores.append(self._store(op.v, values, cache.kind_v, is_keys=False))
        stores[0].barrier = False
        return [*stores, Record("attention.attend", attend)]

    def _store(self, x: Value, target: np.ndarray, kind: str, *, is_keys: bool) -> Record:
        a, config = attention_store, self.config
        fields = {
            a.X: self._arena.address(x), a.X_STRIDE: self._arena.stride(x), a.TARGET: target.ctypes.data,
            a.PAGE_BYTES: target.strides[0], a.HEAD_BYTES: target.strides[1],
            a.BLOCK_BYTES: target.strides[2] if is_keys else 0, a.N_KV: config.n_kv_heads,
            a.HEAD_DIM: config.head_dim, a.WIDTH: self.cache.width, a.IS_KEYS: int(is_keys),
        }  # fmt: skip
        return Record(f"attention_store.{kind}", fields)

    def close(self) -> None:
        self._team.close()


def _kernel_names(records: list[Record]) -> set[str]:
    names = {"threads.walk"}
    for record in records:
        names |= record.kernels
    return names


def _packed_sizes(tape: Tape, tokens: int) -> dict[str, int]:
    """Bytes of the buffer of packed activations of each kind: the largest that any product needs."""
    sizes: dict[str, int] = {}
    for op in tape.ops:
        if isinstance(op, MatMul):
            for weight in op.weights:
                kind = PRODUCTS[weight.format.name].packing
                if kind is not None:
                    sizes[kind] = max(sizes.get(kind, 0), packed_bytes(kind, op.x.width, op.x.parts * tokens))
    return sizes
