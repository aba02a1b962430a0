"""Read the text of a compiled program (optimized HLO): instructions, how often each one runs, and the bytes it moves."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

BYTES = {"pred": 1, "bf16": 2, "f16": 2}  # of one element; else the number of bits in the type's name
FAST_MEMORY = 1  # the memory space of a TPU's on-chip memory; other arrays lie in the device's main memory


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array of an instruction's result, as one device holds it."""

    dtype: str
    dims: tuple[int, ...]
    space: int = 0  # 0: the device's main memory

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        if self.dtype in BYTES:
            return self.size * BYTES[self.dtype]
        bits = re.match(r"[a-z]+(\d+)", self.dtype)
        return -(-self.size * int(bits.group(1)) // 8) if bits else 0  # tokens and opaque types hold nothing

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    opcode: str
    shapes: tuple[Shape, ...]  # of the result; several for a tuple
    operands: tuple[str, ...]
    attributes: str
    is_root: bool
    arguments: str = ""  # the text between the parentheses

    @property
    def bytes(self) -> int:
        """Bytes of the result in the device's main memory."""
        return sum(shape.bytes for shape in self.shapes if shape.space != FAST_MEMORY)

    @functools.cached_property
    def calls(self) -> tuple[str, ...]:
        """Names of the computations that it calls, without a loop's."""
        found = re.findall(r"(?:calls|to_apply|called_computations|branch_computations|true_computation|false_computation)="
                           r"(?:\{([^}]*)\}|%?([\w.\-]+))", self.attributes)  # fmt: skip
        return tuple(name.strip().lstrip("%") for several, one in found for name in (several or one).split(","))

    def attribute(self, pattern: str) -> str | None:
        found = re.search(pattern, self.attributes)
        return found.group(1) if found else None

    @property
    def op_name(self) -> str:
        """The name that JAX gave the operation: "jit(step)/.../dot_general"."""
        return self.attribute(r'op_name="([^"]*)"') or ""


@dataclasses.dataclass(frozen=True)
class Module:
    computations: Mapping[str, Mapping[str, Instruction]]  # computation -> instruction by name, in order
    entry: str
    partitions: int = 1
    _readers: dict[str, Mapping[str, list[Instruction]]] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def root(self, computation: str) -> Instruction:
        body = self.computations[computation].values()
        return next((i for i in body if i.is_root), None) or list(body)[-1]

    def walk(self, computation: str | None = None, times: int = 1, loops: tuple[int, ...] = ()) -> Iterator["Executed"]:
        """Yield every instruction that runs as one operation of the device, with how often it runs in one step.

        Loops and calls are entered, fusions are not. Of a conditional every branch counts.
        """
        name = computation or self.entry
        for instruction in self.computations.get(name, {}).values():
            if instruction.opcode == "while":
                trips = self.trips(name, instruction)
                body = instruction.attribute(r"body=%?([\w.\-]+)") or ""
                yield from self.walk(body, times * trips, (*loops, trips))
            elif instruction.opcode in ("call", "conditional", "async-start"):
                for called in instruction.calls:
                    yield from self.walk(called, times, loops)
            else:
                yield Executed(name, instruction, times, loops)

    def inside(self, instruction: Instruction) -> Iterator[tuple[str, Instruction]]:
        """Yield (computation, instruction) of everything that a fusion holds."""
        for called in instruction.calls:
            for inner in self.computations.get(called, {}).values():
                yield called, inner
                if inner.opcode == "fusion":
                    yield from self.inside(inner)

    def readers(self, computation: str) -> Mapping[str, list[Instruction]]:
        """Return the instructions of a computation by the names of their operands."""
        if computation not in self._readers:
            found: dict[str, list[Instruction]] = {}
            for one in self.computations[computation].values():
                for name in one.operands:
                    found.setdefault(name, []).append(one)
            self._readers[computation] = found
        return self._readers[computation]

    def trips(self, computation: str, loop: Instruction) -> int:
        """Return how often a loop's body runs: XLA's own count, else the limit that its condition compares with; else 1."""
        known = loop.attribute(r'known_trip_count":\{"n":"(\d+)"')
        if known:
            return int(known)
        condition = loop.attribute(r"condition=%?([\w.\-]+)") or ""
        numbers = [self._number(condition, name, computation, loop) for name in self._limits(condition)]
        return max([n for n in numbers if n is not None], default=1) or 1

    def _limits(self, condition: str) -> list[str]:
        """Names in a condition that its comparison reads, through a fusion's parameters."""
        found = []
        for instruction in self.computations.get(condition, {}).values():
            holds = instruction.opcode == "compare" or any(i.opcode == "compare" for _, i in self.inside(instruction))
            if holds:
                found += instruction.operands
                found += [i.name for _, i in self.inside(instruction) if i.opcode == "constant"]
        return found

    def _number(self, computation: str, name: str, outside: str, loop: Instruction) -> int | None:
        """Return the constant that `name` holds in a condition, perhaps given from outside of the loop."""
        instruction = self.computations[computation].get(name)
        if instruction is None:  # a constant of a fusion
            instruction = next((body[name] for body in self.computations.values() if name in body), None)
        if instruction is None:
            return None
        if instruction.opcode == "constant":
            return int(instruction.arguments) if instruction.arguments.lstrip("-").isdigit() else None
        if instruction.opcode in ("copy", "bitcast", "convert") and instruction.operands:
            return self._number(computation, instruction.operands[0], outside, loop)
        if instruction.opcode == "get-tuple-element" and computation != outside:
            index, given = int(instruction.attribute(r"index=(\d+)") or 0), self.computations[outside].get(loop.operands[0])
            if given is not None and given.opcode == "tuple":
                return self._number(outside, given.operands[index], outside, loop)
        return None


@dataclasses.dataclass(frozen=True)
class Executed:
    """An instruction of `computation` that runs `times` a step, in loops of so many iterations each, outermost first."""

    computation: str
    instruction: Instruction
    times: int
    loops: tuple[int, ...]


def parse(text: str) -> Module:
    """Parse the text that `jax.stages.Compiled.as_text` gives."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None or not line.startswith(" "):
            head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
            if head:
                current = head.group(2)
                computations[current] = {}
                entry = current if head.group(1) else entry
            continue
        instruction = parse_instruction(line)
        if instruction is not None:
            computations[current][instruction.name] = instruction
    partitions = re.search(r"num_partitions=(\d+)", text[:20_000])
    return Module(computations, entry or (list(computations) or [""])[-1], int(partitions.group(1)) if partitions else 1)


def parse_instruction(line: str) -> Instruction | None:
    """Parse `  ROOT %name = type opcode(operands), attributes`; None for another line."""
    head = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not head:
        return None
    start = head.end()
    if line[start] == "(":
        end = _closing(line, start) + 1
    else:
        end = line.find(" ", start)
    opcode = re.match(r" ?([\w\-]+)\(", line[end:])
    if opcode is None:
        return None
    opening = end + opcode.end() - 1
    closing = _closing(line, opening)
    arguments = line[opening + 1 : closing]
    operands = tuple(re.findall(r"%([\w.\-]+)", arguments))
    if not operands and opcode.group(1) not in ("constant", "parameter", "iota"):
        operands = tuple(word.split()[-1] for word in re.sub(r"/\*.*?\*/", "", arguments).split(",") if word.strip())
    return Instruction(head.group(2), opcode.group(1), parse_shapes(line[start:end]), operands, line[closing + 1 :],
                       bool(head.group(1)), arguments.strip())  # fmt: skip


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """Parse "f32[2,3]{1,0:T(8,128)S(1)}", or a tuple of such."""
    found = []
    for dtype, dims, layout in re.findall(r"\b([a-z]\w*)\[([\d,<= ]*)\](\{[^}]*\})?", text):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(n) for n in re.findall(r"\d+", dims))
        found.append(Shape(dtype, sizes, int(space.group(1)) if space else 0))
    return tuple(found)


def _closing(text: str, opening: int) -> int:
    """Return the position of the parenthesis that closes the one at `opening`."""
    depth = 0
    for i in range(opening, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    return len(text)
