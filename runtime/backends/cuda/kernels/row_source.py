"""Row programs (`RowKernel`) as CUDA C: a block computes a row, its threads go over the row's numbers.

A line is printed as an expression of the position, so lines that work number by number cost no loop of their own.
A sum over a row ends a loop; what it summed stays in registers, where the next loop finds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from adaptc.runtime.bundle.gpu_steps.device_step import RowKernel, RowLine
from adaptc.runtime.bundle.gpu_steps.row_program import check_row_kernel

THREADS = 1024
"""Most threads of a block."""

_EACH = 4
"""Numbers of a row that a thread has, if there are threads enough."""

_MOST_KEPT = 16
"""Numbers that a thread keeps in registers between two loops."""

_SPREAD = 256
"""Threads of a block of a kernel whose rows several blocks share."""

_FUNCTIONS = {
    "add": "({0} + {1})",
    "sub": "({0} - {1})",
    "mul": "({0} * {1})",
    "div": "({0} / {1})",
    "tanh": "tanhf({0})",
    "sigmoid": "(1.0f / (1.0f + expf(-({0}))))",
    "gelu": "gelu({0})",
    "gelu_tanh": "gelu_tanh({0})",
}
"""What works number by number."""

_PRELUDE = """
// A thread's numbers of a row: as many for each, so that the compiler knows how many.
#ifdef ON_CPU
#define KEPT(WIDTH) WIDTH
#define OVER(WIDTH) for (int k = 0, i = threadIdx.x; i < WIDTH; ++k, i += blockDim.x)
#else
#define KEPT(WIDTH) ((WIDTH + EACH - 1) / EACH)
#define OVER(WIDTH) _Pragma("unroll") for (int k = 0; k < KEPT(WIDTH); ++k) \\
    if (int i = threadIdx.x + k * EACH; i < WIDTH)
#endif
static __device__ __forceinline__ float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); }
static __device__ __forceinline__ float gelu_tanh(float x) {
    return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
}
"""


def row_source(kernels: Sequence[RowKernel]) -> str:
    """CUDA C of these kernels, `rows_0` and so on; `common.cu` comes before it.

    Each takes a pointer for each input, weight and output, in this order, and then: float* thresholds, u8* decisions,
    float* margins, u8* wants, int skip. `decisions` and `margins` get a number a row for a kernel with a gate. The grid
    is the rows, and `blocks`.

    Raises:
        BundleError: a program is not well formed.
    """
    return _PRELUDE + "\n".join(_Printer(f"rows_{index}", kernel).text() for index, kernel in enumerate(kernels))


def blocks(kernel: RowKernel) -> int:
    """Blocks that share a row: several where no line sums it."""
    return 1 if _sums(kernel) else -(-max(kernel.lines[output.line].width for output in kernel.outputs) // _SPREAD)


def threads(kernel: RowKernel) -> int:
    """Threads of a block for a kernel's rows."""
    summed = [kernel.lines[line.args[0]].width for line in kernel.lines if line.op in ("rms_norm", "dot")]
    widest = max([1, *summed, *(kernel.lines[output.line].width for output in kernel.outputs)])
    each = _EACH if _sums(kernel) else 1
    return min(THREADS if _sums(kernel) else _SPREAD, max(32, -(-widest // (32 * each)) * 32))


def _sums(kernel: RowKernel) -> bool:
    """Whether lines sum a row, or a gate decides: then one block has all of it."""
    return kernel.gate is not None or any(line.op in ("rms_norm", "dot") for line in kernel.lines)


@dataclass(slots=True)
class _Printer:
    """Prints one kernel."""

    name: str
    kernel: RowKernel
    lines: list[str] = field(default_factory=list)
    kept: dict[int, str] = field(default_factory=dict)  # lines in registers, by the array's name
    sums: dict[int, str] = field(default_factory=dict)  # names of reduced lines
    done: set[int] = field(default_factory=set)  # outputs that were written

    def text(self) -> str:
        kernel = self.kernel
        check_row_kernel(self.name, kernel)
        for index, line in enumerate(kernel.lines):
            if line.op in ("rms_norm", "dot"):
                self.reduce(index, line)
        left = [i for i in range(len(kernel.outputs)) if i not in self.done]
        for width in dict.fromkeys(kernel.lines[kernel.outputs[i].line].width for i in left):
            same = [i for i in left if kernel.lines[kernel.outputs[i].line].width == width]
            self.loop(width, [self.store(i) for i in same])
        if kernel.gate is not None:
            self.lines += [
                "if (threadIdx.x == 0) {",
                f"    margins[row] = {self.at(kernel.gate, '0')} - thresholds[row];",
                f"    decisions[row] = {self.at(kernel.gate, '0')} >= thresholds[row];",
                "}",
            ]
        body = "\n".join(f"    {line}" for line in self.lines)
        return f"{self.head()}\n{body}\n}}\n#undef EACH\n"

    def head(self) -> str:
        """The signature, and what a row that does not run does."""
        kernel = self.kernel
        pointers = [f"const {_C[i.dtype]}* in{n}" for n, i in enumerate(kernel.inputs)]
        pointers += [f"const float* weight{n}" for n in range(len(kernel.weights))]
        pointers += [f"{_C[o.dtype]}* out{n}" for n, o in enumerate(kernel.outputs)]
        ends = "const float* thresholds, u8* decisions, float* margins, const u8* wants, int skip"
        threads_ = threads(kernel)
        lines = [
            f'extern "C" __global__ void __launch_bounds__({threads_}) {self.name}({", ".join([*pointers, ends])}) {{',
            *(f"    prefetch(weight{n}, {width});" for n, width in enumerate(kernel.weights)),
            f"#define EACH {threads_}",
            "    after_previous();",
            "    long long row = blockIdx.x;",
            "    bool runs = runs_for(wants, blockIdx.x, skip);",
            "    if (!runs && !(skip & ZEROS)) return;",
        ]
        for n, each in enumerate(kernel.inputs):
            lines.append(f"    in{n} += row * {kernel.lines[each.line].width};")
        lines += [f"    out{n} += row * {self.width(o.line)};" for n, o in enumerate(kernel.outputs)]
        lines.append("    if (!runs) {")
        for n, output in enumerate(kernel.outputs):
            lines.append(f"        {self.over(self.width(output.line))} out{n}[i] = 0;")
        lines += ["        return;", "    }"]
        return "\n".join(lines)

    def width(self, line: int) -> int:
        return self.kernel.lines[line].width

    def reduce(self, index: int, line: RowLine) -> None:
        """A loop over what a sum needs, and the sum."""
        source = line.args[0]
        width = self.width(source)
        name = self.sums[index] = f"sum{index}"
        if line.op == "rms_norm" and int(line.numbers[1]) < width:
            self.grouped(name, source, width, line)
            return
        before = self.keep(source, width)
        self.lines.append(f"float {name} = 0;")
        if line.op == "dot":
            self.loop(width, [*before, f"{name} += {self.at(source, 'i')} * {self.at(line.args[1], 'i')};"])
            self.lines.append(f"{name} = block_sum({name});")
            return
        self.loop(width, [*before, f"{{ float x = {self.at(source, 'i')}; {name} += x * x; }}"])
        self.lines.append(f"{name} = 1.0f / sqrtf(block_sum({name}) / {width}.0f + {_number(line.numbers[0])});")

    def grouped(self, name: str, source: int, width: int, line: RowLine) -> None:
        """The sums of groups of a row: a warp has a group, whose numbers are no thread's own."""
        group = int(line.numbers[1])
        kept, self.kept = self.kept, {}
        self.lines += [
            f"__shared__ float {name}[{width // group}];",
            f"for (int g = WARP; g < {width // group}; g += WARPS_HERE) {{",
            "    float all = 0;",
            f"    for (int i = g * {group} + LANE; i < (g + 1) * {group}; i += LANES) {{",
            f"        float x = {self.at(source, 'i')};",
            "        all += x * x;",
            "    }",
            "    all = lane_sum(all);",
            f"    if (LANE == 0) {name}[g] = 1.0f / sqrtf(all / {group}.0f + {_number(line.numbers[0])});",
            "}",
            "__syncthreads();",
        ]
        self.kept = kept

    def keep(self, line: int, width: int) -> list[str]:
        """Statements that compute a line into registers, and write it where it is an output."""
        each = -(-width // threads(self.kernel))
        if line in self.kept or self.kernel.lines[line].op in ("weight", "number") or each > _MOST_KEPT:
            return []
        name = f"kept{line}"
        self.lines.append(f"float {name}[KEPT({width})];")
        found = [f"{name}[k] = {self.at(line, 'i')};"]
        self.kept[line] = name
        for i, output in enumerate(self.kernel.outputs):
            if output.line == line:
                found.append(self.store(i))
        return found

    def store(self, output: int) -> str:
        """The statement that writes an output."""
        each = self.kernel.outputs[output]
        self.done.add(output)
        value = self.at(each.line, "i")
        return f"out{output}[i] = {value if each.dtype == 'float32' else f'to_half({value})'};"

    def loop(self, width: int, statements: Sequence[str]) -> None:
        """Every thread's share of a row."""
        self.lines.append(f"{self.over(width)} {{")
        self.lines += [f"    {statement}" for statement in statements]
        self.lines.append("}")

    def over(self, width: int) -> str:
        """The head of a loop over a row: `i` is the position, `k` counts a thread's own."""
        if blocks(self.kernel) == 1:
            return f"OVER({width})"
        return f"for (int i = blockIdx.y * blockDim.x + threadIdx.x; i < {width}; i += gridDim.y * blockDim.x)"

    def at(self, index: int, i: str) -> str:
        """A line's value at a position."""
        line = self.kernel.lines[index]
        if line.width == 1 and line.op not in ("number", "dot"):
            i = "0"
        if index in self.kept and i == "i":
            return f"{self.kept[index]}[k]"
        match line.op:
            case "input":
                read = f"in{line.args[0]}[{i}]"
                half = self.kernel.inputs[line.args[0]].dtype == "float16"
                return f"from_half({read})" if half else read
            case "weight":
                return f"weight{line.args[0]}[{i}]"
            case "number":
                return _number(line.numbers[0])
            case "slice":
                return self.at(line.args[0], f"({i} + {int(line.numbers[0])})")
            case "dot":
                return self.sums[index]
            case "rms_norm":
                source, weight = line.args
                group, width = int(line.numbers[1]), self.width(source)
                scale = self.sums[index] if group == width else f"{self.sums[index]}[({i}) / {group}]"
                inside = i if group == width else f"(({i}) % {group})"
                return f"({self.at(source, i)} * {scale} * {self.at(weight, inside)})"
        return _FUNCTIONS[line.op].format(*(self.at(arg, i) for arg in line.args))


_C = {"float32": "float", "float16": "u16"}


def _number(value: float) -> str:
    return f"{value!r}f" if "." in repr(value) or "e" in repr(value) else f"{value!r}.0f"
